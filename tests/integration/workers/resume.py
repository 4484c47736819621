"""Runs of the method one after another in one process group, new or from a checkpoint; only their end is replaced.

A case may lower the number of logits that are made at once, and name a DeepSpeed configuration after cuts.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from ending import end

from homodistil_ds.config import RunConfig, from_dict
from homodistil_ds.distillation import vocabulary
from homodistil_ds.machine import Machine
from homodistil_ds.methods import homodistil
from homodistil_ds.methods.setting import Setting
from homodistil_ds.runtime import ds_config, engine, ranks
from homodistil_ds.runtime.exit_reason import leave
from homodistil_ds.runtime.shards import full_weights
from homodistil_ds.stage import Stage

ended: dict[str, Any] = {}


def note_the_end(setting: Setting, stage: Stage) -> None:
    digest = hashlib.sha256()
    for name, weight in sorted(full_weights(stage.engine).items()):
        digest.update(name.encode() + weight.numpy().tobytes())
    ended.update(recomputes=stage.engine.module.model.is_gradient_checkpointing)
    ended.update(weights=digest.hexdigest(), history=stage.history, masks=stage.pruner.masks.digest())
    models = [stage.engine.module, *filter(None, [stage.teacher])]
    buffers = [buffer for model in models for name, buffer in model.named_buffers() if name.endswith("inv_freq")]
    ended.update(frequencies=[buffer.double().tolist() for buffer in buffers])
    ended.update(scores={name: values.tolist() for name, values in stage.pruner.importance.values().items()})
    setting.monitor.close()
    engine.dispose(stage.engine)


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    out, results = Path(settings["out"]), {}
    homodistil.finish = note_the_end
    engine.prepare_op_folder()
    ranks.start()
    most_entries = vocabulary.MOST_ENTRIES
    for name, case in settings["cases"].items():
        vocabulary.MOST_ENTRIES = case.get("most_entries", most_entries)
        machine = out / f"{name}.json"
        if ranks.rank() == 0:
            machine.write_text(json.dumps(case["machine"]), encoding="utf-8")
        ranks.everyone(None)
        config: RunConfig = from_dict(RunConfig, settings["config"] | {"output_dir": str(out / name)}, "the test")
        later = case.get("after_cuts")
        start = Machine(
            ds_config=ds_config.read(machine), ds_config_after_cuts=later, resume=case.get("resume", "never")
        )
        homodistil.run(config, start, "python tests")
        results[name] = dict(ended)
    end(out, results)


if __name__ == "__main__":
    main()
    leave(0)
