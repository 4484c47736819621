"""One rank's gradient is not a number in one step, at every ZeRO stage: what the ranks say, and what it changed."""

from __future__ import annotations

from typing import Any

import torch
from tiny import Tiny, start

from homodistil_ds.errors import HomodistilError
from homodistil_ds.models.width import Widths
from homodistil_ds.pruning.pruner import Pruner
from homodistil_ds.runtime import carry, ranks
from homodistil_ds.runtime.exit_reason import leave
from homodistil_ds.runtime.shards import full_weights
from homodistil_ds.stage import Stage

BAD_RANK, BAD_STEP, STEPS = 1, 4, 6
TARGET = Widths(hidden=15, ffn=41, heads=3, head_size=5)


def state(stage: Stage) -> list[torch.Tensor]:
    assert stage.pruner is not None
    masks = stage.pruner.masks
    weights = full_weights(stage.engine)
    return [*weights.values(), *masks.kept.values(), stage.pruner.importance.mean.clone()]


def poisoned(tiny: Tiny, zero: int, precision: str | None) -> dict[str, Any]:
    pruner = Pruner(tiny.plan, tiny.schedule(TARGET, end=STEPS), "sensitivity", beta=0.85)
    stage = tiny.stage(tiny.engine(tiny.student(noise=0.02), zero, precision=precision), STEPS, pruner=pruner)
    armed, before = False, []
    attempt = stage.attempt

    def watched(step: int) -> Any:
        nonlocal armed, before
        armed = step == BAD_STEP and ranks.rank() == BAD_RANK
        before = state(stage)
        return attempt(step)

    stage.attempt = watched  # type: ignore[method-assign]
    first = next(p for p in stage.engine.module.parameters() if p.requires_grad)
    first.register_hook(lambda gradient: gradient * float("nan") if armed else gradient)
    error = None
    try:
        stage.run()
    except HomodistilError as raised:
        error = f"{raised.error_id} {raised.what}"
    same = all(torch.equal(was, now) for was, now in zip(before, state(stage), strict=True))
    result = {"errors": ranks.everyone(error), "unchanged": same, "adam_step": carry.progress(stage.engine).adam_step}
    stage.engine.destroy()
    return result


def main() -> None:
    tiny = start()
    cases = [(zero, None) for zero in range(4)] + [(zero, "bf16") for zero in (1, 2, 3)]
    tiny.finish({f"zero{zero}-{precision or 'fp32'}": poisoned(tiny, zero, precision) for zero, precision in cases})


if __name__ == "__main__":
    main()
    leave(0)
