"""Runs on a task one after another in one process group; a case may be asked to stop, and then goes on, here or not."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from ending import end

from homodistil_ds.config import RunConfig, from_dict
from homodistil_ds.errors import HomodistilError
from homodistil_ds.machine import Machine
from homodistil_ds.methods import method
from homodistil_ds.pruning.gates import Gates
from homodistil_ds.runtime import engine, guard, ranks
from homodistil_ds.runtime.exit_reason import leave


def run(config: RunConfig, machine: dict[str, Any], stop_after: int | None, resume: str) -> bool:
    """Whether it ran to its end; `stop_after` counts the looks for a reason to stop, one per step and stage."""
    looks = 0

    def reason() -> str | None:
        nonlocal looks
        looks += 1
        return "the test asks" if looks == stop_after else None

    guard.reason = reason
    try:
        method(config.method)(config, Machine(ds_config=machine, resume=resume), "python tests")
    except HomodistilError as error:
        if error.error_id != "STOP-SIGNAL":
            raise
        return False
    return True


def facts(run_dir: Path) -> dict[str, Any]:
    report = json.loads((run_dir / "report.json").read_text(encoding="utf-8"))
    weights = (run_dir / "student" / "model.safetensors").read_bytes()
    named = ("metrics", "teacher_metrics", "history", "world_size", "zero_stage", "family")
    kept = {name: report[name] for name in named}
    return {**kept, "weights": hashlib.sha256(weights).hexdigest()}


def error_with_other_gates(config: RunConfig, machine: dict[str, Any], broken_rank: int) -> str:
    """The error of a run of which one rank values its neurons the other way round."""
    values = Gates.values

    def turned(self: Gates) -> dict[str, torch.Tensor]:
        sign = -1 if ranks.rank() == broken_rank else 1
        return {group: sign * value for group, value in values(self).items()}

    Gates.values = turned  # type: ignore[method-assign]
    try:
        run(config, machine, None, "never")
    except HomodistilError as error:
        return f"{error.error_id}: {error.what}"
    finally:
        Gates.values = values  # type: ignore[method-assign]
    return ""


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    out, results = Path(settings["out"]), {}
    engine.prepare_op_folder()
    ranks.start()
    for name, case in settings["cases"].items():
        run_dir = out / name
        values = settings["config"] | case.get("config", {}) | {"output_dir": str(run_dir)}
        config: RunConfig = from_dict(RunConfig, values, "the test")
        if "broken_rank" in case:
            results[name] = {"error": error_with_other_gates(config, case["machine"], case["broken_rank"])}
            continue
        stops, ends = case.get("stops", []), case.get("ends", True)
        for place, stop_after in enumerate([*stops, *([None] if ends else [])]):
            resume = "auto" if place or case.get("begun") else "never"
            ended = run(config, case["machine"], stop_after, resume)
            assert ended == (stop_after is None), (name, stop_after)
            ranks.everyone(None)
        if not ends:
            continue
        results[name] = {"student": facts(run_dir)}
        for part in ("teacher", "trial"):
            if (run_dir / part).exists():
                results[name][part] = facts(run_dir / part)
    end(out, results)


if __name__ == "__main__":
    main()
    leave(0)
