"""Whole runs of the method in one process group, some of which have no room to measure their student in float32."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ending import end

from homodistil_ds.config import RunConfig, from_dict
from homodistil_ds.machine import Machine
from homodistil_ds.methods import homodistil, measuring
from homodistil_ds.models.forward import Teacher
from homodistil_ds.runtime import engine, ranks
from homodistil_ds.runtime.exit_reason import leave

seen: list[dict[str, list[str]]] = []


class Seen(Teacher):
    """Notes the number formats of what is measured."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        frequencies = [buffer for name, buffer in self.model.named_buffers() if name.endswith("inv_freq")]
        kinds = {"weights": self.model.parameters(), "frequencies": frequencies}
        seen.append({kind: sorted({str(tensor.dtype) for tensor in tensors}) for kind, tensors in kinds.items()})


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    out, results, room = Path(settings["out"]), {}, measuring.MEASURED_IN
    measuring.Teacher = Seen  # type: ignore[misc]
    engine.prepare_op_folder()
    ranks.start()
    for name, case in settings["cases"].items():
        measuring.MEASURED_IN = room if case["room"] else 0.0
        config: RunConfig = from_dict(RunConfig, settings["config"] | {"output_dir": str(out / name)}, "the test")
        machine = Machine(ds_config=case["machine"], teacher_placement=case["placement"])
        homodistil.run(config, machine, "python tests")
        ranks.everyone(None)
        report = json.loads((out / name / "report.json").read_text(encoding="utf-8"))
        results[name] = {"report": report, "seen": seen[-1]}
    end(out, results)


if __name__ == "__main__":
    main()
    leave(0)
