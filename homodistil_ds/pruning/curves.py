"""What is drawn of a pruning event."""

from __future__ import annotations

import torch

from homodistil_ds.pruning.pruner import Pruner
from homodistil_ds.runtime.monitor import Monitor

QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9}


def draw(monitor: Monitor, step: int, pruner: Pruner) -> None:
    """Kept fractions, quantiles of the importance and the digest that the ranks agreed on."""
    masks, local = pruner.masks, pruner.masks.local()
    monitor.line(f"pruned at step {step}: {masks.widths()}, masks {masks.digest()} on every rank")
    monitor.text(step, "masks/digest", masks.digest())
    monitor.scalars(step, {f"kept/{name}": value for name, value in masks.fractions().items()})
    for group, values in pruner.importance.values().items():
        kept = values[local[group]]
        found = torch.quantile(kept, torch.tensor(list(QUANTILES.values()))).tolist()
        monitor.scalars(step, {f"scores_{name}/{group}": value for name, value in zip(QUANTILES, found, strict=True)})
        if group == "hidden":
            monitor.histogram(step, "scores/hidden", kept)
    monitor.scalars(step, {"pruning/agreements": len(pruner.events)})
