"""The same training masked, cut live, rebuilt at the same size, and cut into another ZeRO stage, on one data order."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any

import psutil
import torch
from deepspeed.accelerator import get_accelerator
from tiny import Tiny, start

from homodistil_ds.models.width import Widths
from homodistil_ds.pruning.pruner import Pruner
from homodistil_ds.runtime import carry, ranks
from homodistil_ds.runtime.exit_reason import leave
from homodistil_ds.runtime.shards import full_weights, whole
from homodistil_ds.stage import Stage

PRUNED_FOR, STEPS = 10, 44
# Odd sizes: no parameter splits evenly over two ranks. Half-way some masked neurons stay, as in a snapped shape.
TARGET = Widths(hidden=15, ffn=41, heads=3, head_size=5)
HALF_WAY = Widths(hidden=24, ffn=48, heads=4, head_size=6)
REBUILDS = 20


def trained(
    tiny: Tiny, zero: int, steps: int, milestones: Mapping[int, Widths], later: int | None = None, **machine: Any
) -> Stage:
    """A stage that has run, whose engine changes to ZeRO stage `later` at its first milestone."""
    pruner = Pruner(tiny.plan, tiny.schedule(TARGET, end=PRUNED_FOR), "sensitivity", beta=0.85)
    first = tiny.engine(tiny.student(noise=0.02), zero, **machine)
    stage = tiny.stage(
        first,
        steps,
        pruner=pruner,
        milestones=milestones,
        build=lambda widths: tiny.engine(tiny.blank(widths), zero if later is None else later, **machine),
    )
    del first
    stage.run()
    return stage


def found(stage: Stage) -> dict[str, Any]:
    """What a run shows, and its state, exact; the engine is freed."""
    progress = carry.progress(stage.engine)
    norm = stage.engine.get_global_grad_norm()  # DeepSpeed keeps none at stage 0
    weights = full_weights(stage.engine)
    regrown = 0
    if stage.pruner is not None:
        for name, tensor in weights.items():
            masked = tensor.clone()
            stage.pruner.masks.apply(whole([(name, masked)]))
            regrown += int((masked != tensor).sum())
    result = {
        "losses": {name: [row[name] for row in stage.history if name in row] for name in stage.history[0]},
        "heldout": [row["heldout_loss"] for row in stage.history if "heldout_loss" in row],
        "widths": str(stage.widths()),
        "physical": str(stage.pruner.masks.physical()) if stage.pruner else "",
        "digests": [event["digest"] for event in stage.pruner.events] if stage.pruner else [],
        "grad_norm": None if norm is None else float(norm),
        "adam_step": progress.adam_step,
        "global_steps": progress.global_steps,
        "skipped": progress.skipped_steps,
        "zero": stage.engine.zero_optimization_stage(),
        "regrown": regrown,
        "sum": float(sum(tensor.double().sum() for tensor in weights.values())),
    }
    stage.engine.destroy()
    return result


def memory(tiny: Tiny, zero: int) -> dict[str, list[float]]:
    """Resident memory [MiB] and live parameters after each of many rebuilds of one engine."""
    size = tiny.plan.full
    steps = {step: size for step in range(1, REBUILDS + 1)}
    counts: dict[str, list[float]] = {"rss": [], "parameters": []}
    pruner = Pruner(tiny.plan, tiny.schedule(TARGET, end=10 * REBUILDS), "sensitivity", beta=0.85)
    pruner.prune = lambda engine, step: False  # type: ignore[method-assign]
    stage = tiny.stage(
        tiny.engine(tiny.student(), zero),
        REBUILDS,
        pruner=pruner,
        milestones=steps,
        build=lambda widths: tiny.engine(tiny.blank(widths), zero),
    )
    cut = stage.cut

    def counted(step: int, widths: Widths) -> None:
        cut(step, widths)
        gc.collect()
        counts["rss"].append(psutil.Process().memory_info().rss / 2**20)
        counts["parameters"].append(sum(isinstance(thing, torch.nn.Parameter) for thing in gc.get_objects()))

    stage.cut = counted  # type: ignore[method-assign]
    stage.run()
    stage.engine.destroy()
    return counts


def main() -> None:
    tiny = start()
    cuts = {6: HALF_WAY, PRUNED_FOR: TARGET}
    result: dict[str, Any] = {}
    for zero in (0, 1, 2, 3):
        result[f"zero{zero}"] = {
            "masked": found(trained(tiny, zero, STEPS, {})),
            "cut": found(trained(tiny, zero, STEPS, cuts)),
            "memory": memory(tiny, zero),
        }
    for before, after in ((3, 1), (2, 0)):
        result[f"zero{before}-to-zero{after}"] = found(trained(tiny, before, STEPS, cuts, later=after))
    same = {3: tiny.plan.full}  # before the first neuron leaves physically, and after some were masked
    # Number formats are a matter of the device; the code path of fp16 is DeepSpeed's own, on any.
    type(get_accelerator()).is_fp16_supported = lambda self: True  # type: ignore[method-assign]
    low = [(zero, precision) for precision in ("bf16", "fp16") for zero in (1, 2, 3)]
    for zero, precision in [(0, None), (1, None), (2, None), (3, None), *low]:
        for name, milestones in (("straight", {}), ("rebuilt", same)):
            outcome = found(trained(tiny, zero, 8, milestones, precision=precision))
            result.setdefault(f"zero{zero}-{precision}", {})[name] = outcome
    machines: dict[str, dict[str, Any]] = {f"offload{zero}": {"zero": zero, "offload": True} for zero in (2, 3)}
    machines |= {"accumulated": {"zero": 2, "accumulation": 2}, "bf16": {"zero": 3, "precision": "bf16"}}
    for name, machine in machines.items():
        result[name] = {
            way: found(trained(tiny, steps=STEPS, milestones=milestones, **machine))
            for way, milestones in (("masked", {}), ("cut", cuts))
        }
    ranks.everyone(None)
    tiny.finish(result)


if __name__ == "__main__":
    main()
    leave(0)
