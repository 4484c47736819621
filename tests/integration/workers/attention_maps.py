"""One run with whole attention maps and with maps in tiles, pruned and cut, at ZeRO stages 0 and 3."""

from __future__ import annotations

from typing import Any

from tiny import Tiny, start

from homodistil_ds.config import LossConfig
from homodistil_ds.distillation.objective import Objective
from homodistil_ds.models.forward import Teacher
from homodistil_ds.models.width import Widths
from homodistil_ds.pruning.pruner import Pruner
from homodistil_ds.runtime.exit_reason import leave

TARGET = Widths(hidden=16, ffn=40, heads=2, head_size=8)


def history(tiny: Tiny, tiled: bool, zero: int) -> list[dict[str, Any]]:
    tiny.objective = Objective(LossConfig(attention=5.0, attention_kl=1.0), with_teacher=True, tiled=tiled)
    tiny.teacher = Teacher(tiny.teacher.model, tiny.plan.family, tiny.objective.teacher_reads())
    stage = tiny.stage(
        tiny.engine(tiny.student(noise=0.02), zero),
        steps=12,
        pruner=Pruner(tiny.plan, tiny.schedule(TARGET, end=6), "sensitivity", beta=0.85),
        milestones={6: TARGET},
        build=lambda widths: tiny.engine(tiny.blank(widths), zero),
    )
    stage.run()
    stage.engine.destroy()
    return stage.history


def main() -> None:
    tiny = start()
    tiny.finish({f"zero{zero}": {str(tiled): history(tiny, tiled, zero) for tiled in (False, True)} for zero in (0, 3)})


if __name__ == "__main__":
    main()
    leave(0)
