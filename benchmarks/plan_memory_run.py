"""One run of plan_memory.py: plans itself, trains, and writes what was planned and measured. Runs under torchrun."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from homodistil_ds import methods
from homodistil_ds.command import parse
from homodistil_ds.methods import homodistil
from homodistil_ds.methods.setting import Setting
from homodistil_ds.planning.devices import this_cpu
from homodistil_ds.planning.job import job_of
from homodistil_ds.planning.plan import Plan, plan_of
from homodistil_ds.runtime import engine, exit_reason, launch, memory, ranks
from homodistil_ds.stage import Stage


def leave(setting: Setting, stage: Stage) -> None:
    """Engines go before the process group, whose threads they use."""
    setting.monitor.close()
    engine.dispose(stage.engine)
    if setting.read is not None and stage.teacher is not None:
        engine.dispose(stage.teacher)


def timed(stage: type[Stage]) -> list[float]:
    """Where the seconds of each optimizer step will be: its passes and its update, as they are planned."""
    seconds: list[float] = []
    attempt = stage.attempt

    def clocked(self: Stage, step: int) -> Any:
        began = time.perf_counter()
        found = attempt(self, step)
        seconds.append(time.perf_counter() - began)
        return found

    stage.attempt = clocked  # type: ignore[method-assign]
    return seconds


def peaks_before_the_loop() -> list[int]:
    """Where the most will be that this process held from now on until its loop began."""
    peaks: list[int] = []
    forget = memory.forget_peak
    forget()

    def noted() -> None:
        peaks.append(memory.peak_bytes())
        forget()

    memory.forget_peak = noted
    return peaks


def most(peak: int) -> int:
    """Of all ranks."""
    return -ranks.smallest(-peak)


def per_step(plan: Plan, seconds: Sequence[float]) -> list[dict[str, float]]:
    """Of every phase, without its first step, in which engines and kernels are set up."""
    return [
        {"planned": phase.pace.seconds, "measured": statistics.median(seconds[phase.first : phase.last])}
        for phase in plan.phases
        if phase.steps > 1
    ]


def main() -> None:
    result, *flags = sys.argv[1:]
    config, machine = parse(flags, launch.is_first_rank())
    with methods.process_group(config.method):
        plan = plan_of(job_of(config, machine, nodes=1, ranks_per_node=ranks.world_size(), device=this_cpu()))

        seconds, starts = timed(Stage), peaks_before_the_loop()
        finish = homodistil.finish

        def ended(setting: Setting, stage: Stage) -> None:
            loop = stage.peak_bytes
            memory.forget_peak()
            finish(setting, stage)
            found = {
                "planned": max(phase.footprint.peak for phase in plan.phases),
                "measured": loop,
                "start": {"planned": plan.start_peak, "measured": most(starts[0])},
                "end": {"planned": plan.end_peak, "measured": most(memory.peak_bytes())},
                "framework": plan.job.device.framework,
                "items": dict(plan.phases[0].footprint.items),
                "step_seconds": per_step(plan, seconds),
            }
            ranks.on_first(lambda: Path(result).write_text(json.dumps(found), encoding="utf-8"))

        homodistil.finish = ended
        methods.run_method(config, machine, "")


if __name__ == "__main__":
    main()
    exit_reason.leave(0)
