"""Runs of the method one after another in one process group, with a teacher cache or without.

Only their end is replaced. A case says in which step its last rank dies, what of the configuration differs, and how few
bytes make a file. The calls of the teacher's body are counted on rank 0.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ending import end

from homodistil_ds.config import RunConfig, from_dict
from homodistil_ds.data.batches import Batches
from homodistil_ds.data.predicted import Batch
from homodistil_ds.distillation import vocabulary
from homodistil_ds.errors import HomodistilError
from homodistil_ds.machine import Machine
from homodistil_ds.methods import caching, homodistil
from homodistil_ds.methods.setting import Setting
from homodistil_ds.models.forward import Activations, Teacher
from homodistil_ds.runtime import claim, ds_config, engine, ranks
from homodistil_ds.runtime.exit_reason import leave
from homodistil_ds.runtime.shards import full_weights
from homodistil_ds.stage import Stage

ended: dict[str, Any] = {}
calls = 0
dies_at: int | None = None
run_body, fetch = Teacher.forward, Batches.micro_batches


def counted(teacher: Teacher, *shown: Any, **told: Any) -> Activations:
    global calls
    calls += 1
    return run_body(teacher, *shown, **told)


def mortal(batches: Batches, step: int) -> Iterator[Batch]:
    if step == dies_at and ranks.rank() == ranks.world_size() - 1:
        os._exit(9)
    return fetch(batches, step)


def note_the_end(setting: Setting, stage: Stage) -> None:
    digest = hashlib.sha256()
    for name, weight in sorted(full_weights(stage.engine).items()):
        digest.update(name.encode() + weight.numpy().tobytes())
    ended.update(weights=digest.hexdigest(), history=stage.history, calls=calls)
    setting.monitor.close()
    engine.dispose(stage.engine)


def main() -> None:
    global calls, dies_at
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    out, results = Path(settings["out"]), {}
    homodistil.finish, Teacher.forward, Batches.micro_batches = note_the_end, counted, mortal
    engine.prepare_op_folder()
    ranks.start()
    most_entries, file_bytes = vocabulary.MOST_ENTRIES, caching.FILE_BYTES
    for name, case in settings["cases"].items():
        vocabulary.MOST_ENTRIES = case.get("most_entries", most_entries)
        caching.FILE_BYTES = case.get("file_bytes", file_bytes)
        calls, dies_at = 0, case.get("dies_at")
        machine = out / f"{name}.json"
        if ranks.rank() == 0:
            machine.write_text(json.dumps(case["machine"]), encoding="utf-8")
        ranks.everyone(None)
        own = settings["config"] | {"output_dir": str(out / name)} | case.get("config", {})
        config: RunConfig = from_dict(RunConfig, own, "the test")
        start = Machine(
            ds_config=ds_config.read(machine),
            resume=case.get("resume", "never"),
            teacher_placement=case.get("placement", "auto"),
            teacher_cache=case.get("cache", ""),
        )
        ended.clear()
        try:
            homodistil.run(config, start, "python tests")
        except HomodistilError as error:
            ended.update(error=error.error_id, what=error.what)
        claim.release(out / name)
        results[name] = dict(ended)
    end(out, results)


if __name__ == "__main__":
    main()
    leave(0)
