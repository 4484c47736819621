"""Prune for some steps, cut into a fresh engine, then train the masked and the cut student on the same batches."""

from __future__ import annotations

from typing import Any

import torch
from carry import cut_state, gather, inject
from tiny import Tiny, start

from homodistil_ds.models.forward import Activations
from homodistil_ds.models.width import Widths
from homodistil_ds.pruning import shrink
from homodistil_ds.pruning.pruner import Pruner
from homodistil_ds.runtime import ranks

PRUNED_FOR, ON = 8, 8
# Odd sizes: no parameter splits evenly over two ranks.
TARGET = Widths(hidden=15, ffn=41, heads=3, head_size=5)


def one_case(tiny: Tiny, stage: int) -> dict[str, Any]:
    masked = tiny.engine(tiny.student(noise=0.02), stage)
    pruner = Pruner(tiny.plan, tiny.schedule(TARGET, end=PRUNED_FOR), "sensitivity", beta=0.85)
    tiny.stage(masked, steps=PRUNED_FOR, pruner=pruner).run()
    masks = pruner.masks

    state = cut_state(gather(masked), tiny.plan, masks.indices())
    model = shrink.cut(masked.module.model, tiny.plan, masks.widths(), masks.indices())
    cut = tiny.engine(tiny.trainable(model), stage)
    inject(cut, state)
    result: dict[str, Any] = {
        "widths": str(masks.widths()),
        "adam_step": state.adam_step,
        "outputs": compare_outputs(tiny, masked, cut, masks.head_origins()),
    }

    steps = PRUNED_FOR + ON
    long = tiny.stage(masked, steps, pruner=pruner, first_step=PRUNED_FOR + 1)
    short = tiny.stage(cut, steps, first_step=PRUNED_FOR + 1, widths=masks.widths(), head_origins=masks.head_origins())
    long.run()
    norms = [masked.get_global_grad_norm()]
    short.run()
    result["losses"] = {
        name: [[row[name] for row in run.history if name in row] for run in (long, short)]
        for name in ("total", *tiny.objective.weights, "heldout_loss")
    }
    norms.append(cut.get_global_grad_norm())
    result["grad_norms"] = [float(norm) for norm in norms if norm is not None]  # DeepSpeed keeps none at stage 0
    result["regrown"], result["weights"] = compare_weights(tiny, gather(masked).masters, gather(cut).masters, masks)
    for trained in (masked, cut):
        trained.destroy()
    return result


@torch.no_grad()
def compare_outputs(tiny: Tiny, masked: Any, cut: Any, origins: list[torch.Tensor]) -> dict[str, float]:
    """Largest difference of every activation that a loss reads, relative to the largest value."""
    batch = next(iter(tiny.batches.micro_batches(1)))
    long: Activations = masked(batch.input_ids, batch.positions)
    short: Activations = cut(batch.input_ids, batch.positions)
    pairs = {
        "logits": (long.logits, short.logits),
        "embedding": (long.embedding, short.embedding),
        "hidden": (torch.stack(long.hidden), torch.stack(short.hidden)),
        "attention": (
            torch.stack([maps[:, heads] for maps, heads in zip(long.attention, origins, strict=True)]),
            torch.stack(short.attention),
        ),
    }
    return {name: relative(own, other) for name, (own, other) in pairs.items()}


def compare_weights(tiny: Tiny, long: Any, short: Any, masks: Any) -> tuple[int, dict[str, float]]:
    """How many masked masters are not exactly 0, and how far the kept ones are from the cut student's."""
    regrown, gaps = 0, {}
    for name, tensor in long.items():
        small = shrink.cut_tensor(tensor, tiny.plan.dims(name), masks.indices())
        regrown += int(tensor.count_nonzero() - small.count_nonzero())
        gaps[name] = relative(small, short[name])
    return regrown, gaps


def relative(own: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference over the ranks, in units of the largest value."""
    gap = ((own - other).abs().max() / other.abs().max()).view(1)
    torch.distributed.all_reduce(gap, torch.distributed.ReduceOp.MAX)
    return float(gap)


def main() -> None:
    tiny = start()
    assert ranks.world_size() == 2
    tiny.finish({f"zero{stage}": one_case(tiny, stage) for stage in (0, 1, 2)})


if __name__ == "__main__":
    main()
