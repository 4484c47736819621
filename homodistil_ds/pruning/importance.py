"""Accumulated value of every neuron: sums over the local shards, one all-reduce, a moving average. No choosing here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from homodistil_ds.models.width import Dim, WidthPlan
from homodistil_ds.pruning.criteria import CRITERIA
from homodistil_ds.runtime import ranks
from homodistil_ds.runtime.shards import Shard, runs

UNCERTAINTY_BETA = 0.95  # PLATON's beta2


class Importance:
    """E_n of every present neuron of every group, as one flat float32 vector in the order of `plan.groups()`."""

    def __init__(self, plan: WidthPlan, criterion: str, beta: float) -> None:
        self.plan = plan
        self.criterion = CRITERIA[criterion]
        self.beta = beta
        self.groups = plan.groups()
        self.mean = torch.zeros(sum(self.groups.values()), dtype=torch.float32, device=ranks.device())
        self.uncertainty = torch.zeros_like(self.mean)

    def measure(self, shards: Iterable[Shard]) -> torch.Tensor:
        """S_n of one step: value the local entries, add them up per neuron, all-reduce once (H1, H2)."""
        total = torch.zeros_like(self.mean)
        views = self.split(total)
        for shard in shards:
            if self.plan.scored(shard.name):
                assert shard.gradient is not None
                # Offloaded masters, and their gradients at some stages, lie in host memory.
                weight, gradient = (part.to(total.device).float() for part in (shard.weight, shard.gradient))
                values = self.criterion.entry(weight, gradient)
                add_per_neuron(values, shard.offset, tuple(shard.shape), self.plan.dims(shard.name), views)
        return self.criterion.finish(ranks.add_up(total))

    def update(self, score: torch.Tensor) -> None:
        """Take the scores of a step into the moving average (H3)."""
        if not self.criterion.smoothed:
            self.mean = score
            return
        self.mean = self.beta * self.mean + (1 - self.beta) * score
        gap = (score - self.mean).abs()
        self.uncertainty = UNCERTAINTY_BETA * self.uncertainty + (1 - UNCERTAINTY_BETA) * gap

    def keep(self, stay: Mapping[str, torch.Tensor]) -> None:
        """Forget the neurons that a cut removes; `stay` maps a group to indices among the present ones."""
        self.mean, self.uncertainty = (
            torch.cat([view[stay[group].to(view.device)] for group, view in self.split(flat).items()])
            for flat in (self.mean, self.uncertainty)
        )
        self.groups = {group: len(indices) for group, indices in stay.items()}

    def values(self) -> dict[str, torch.Tensor]:
        """Group -> importance of its neurons [N], on the CPU."""
        value = self.mean * self.uncertainty if self.criterion.uncertain else self.mean
        return self.split(value.cpu())

    def split(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Views of a flat vector, one per group."""
        return dict(zip(self.groups, flat.split(list(self.groups.values())), strict=True))

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"mean": self.mean, "uncertainty": self.uncertainty}

    def load_state_dict(self, state: Mapping[str, torch.Tensor], sizes: Mapping[str, int]) -> None:
        """`sizes` maps every group to the neurons that were present when the state was saved."""
        self.groups = dict(sizes)
        self.mean, self.uncertainty = (state[name].to(ranks.device()) for name in ("mean", "uncertainty"))


def add_per_neuron(
    values: torch.Tensor,
    offset: int,
    shape: tuple[int, ...],
    dims: tuple[Dim | None, ...],
    sums: dict[str, torch.Tensor],
) -> None:
    """Add a run of entry values [count], which starts at `offset` of the flattened parameter, to its neurons' sums.

    An entry on the diagonal of a matrix whose two dimensions are the same group belongs to one neuron and counts once.
    """
    if len(shape) == 1:
        add_sums(sums, dims[0], offset, values)
        return
    rows, columns = dims
    for row, column, block in runs(values, offset, shape[1]):
        add_sums(sums, rows, row, block.sum(1))
        add_sums(sums, columns, column, block.sum(0))
        if rows is not None and rows == columns:
            add_sums(sums, rows, max(row, column), -block.diagonal(row - column))


def add_sums(sums: dict[str, torch.Tensor], dim: Dim | None, first: int, values: torch.Tensor) -> None:
    """Add the sums of entries first, first + 1, ... along a dimension to those of their neurons."""
    if dim is None:
        return
    if dim.block == 1:
        sums[dim.group][first : first + len(values)] += values
    else:
        places = torch.arange(first, first + len(values), device=values.device) // dim.block
        sums[dim.group].index_add_(0, places, values)
