"""Bytes that collectives bring to rank 0 in each optimizer step of short runs with one cut, and what was planned."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from counting import Counting
from plan_memory_run import leave

from homodistil_ds.config import LossConfig, PruningConfig, RunConfig, StudentConfig
from homodistil_ds.distillation import vocabulary
from homodistil_ds.machine import Machine
from homodistil_ds.methods import homodistil
from homodistil_ds.planning.devices import this_cpu
from homodistil_ds.planning.job import job_of
from homodistil_ds.planning.plan import plan_of
from homodistil_ds.runtime import engine, exit_reason, ranks
from homodistil_ds.stage import Stage

CONTROL = 16  # bytes: norms, and whether a gradient overflowed
STEPS = 6


def one_case(settings: dict[str, Any], name: str, case: dict[str, Any]) -> dict[str, Any]:
    config = RunConfig(
        teacher=case.get("teacher", settings["teacher"]),
        corpus=(settings["corpus"],),
        output_dir=str(Path(settings["out"], name)),
        steps=STEPS,
        global_batch_size=16,
        sequence_length=32,
        held_out_sequences=16,
        log_interval=10,
        eval_interval=0,
        cuts=1,
        student=StudentConfig(hidden_size=16, intermediate_size=24, num_attention_heads=2),
        pruning=PruningConfig(interval=1, end=0.5),
        loss=LossConfig(**case.get("loss", {})),
    )
    most_entries, vocabulary.MOST_ENTRIES = vocabulary.MOST_ENTRIES, case.get("most_entries", vocabulary.MOST_ENTRIES)
    machine = Machine(ds_config=case["machine"], teacher_placement=case["placement"])
    job = job_of(config, machine, nodes=1, ranks_per_node=ranks.world_size(), device=this_cpu())
    steps = {}
    original = Stage.attempt

    def counted(stage: Stage, step: int) -> Any:
        with Counting() as counting:
            result = original(stage, step)
        steps[step] = sum(got for _, _, got in counting.seen if got > CONTROL)
        return result

    Stage.attempt = counted  # type: ignore[method-assign]
    homodistil.descend(config, machine, "")
    Stage.attempt = original  # type: ignore[method-assign]
    phases = [
        {"first": phase.first, "last": phase.last, "traffic": dict(phase.traffic)} for phase in plan_of(job).phases
    ]
    vocabulary.MOST_ENTRIES = most_entries
    return {"counted": steps, "phases": phases, "end": job.schedule.end}


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    engine.prepare_op_folder()
    ranks.start()
    homodistil.finish = leave
    found = {name: one_case(settings, name, case) for name, case in settings["cases"].items()}
    ranks.on_first(lambda: Path(settings["out"], "result.json").write_text(json.dumps(found), encoding="utf-8"))
    ranks.stop()


if __name__ == "__main__":
    main()
    exit_reason.leave(0)
