"""Accumulated value of every neuron: sums over the local shards, one all-reduce, a moving average. No choosing here."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from homodistil_ds.models.width import WidthPlan
from homodistil_ds.pruning.criteria import CRITERIA
from homodistil_ds.runtime import ranks
from homodistil_ds.runtime.shards import Shard

UNCERTAINTY_BETA = 0.95  # PLATON's beta2


class Importance:
    """E_n of every neuron of every group, as one flat float32 vector in the order of `plan.groups()`."""

    def __init__(self, plan: WidthPlan, criterion: str, beta: float) -> None:
        self.plan = plan
        self.criterion = CRITERIA[criterion]
        self.beta = beta
        self.groups = plan.groups()
        self.mean = torch.zeros(sum(self.groups.values()), dtype=torch.float32, device=ranks.device())
        self.uncertainty = torch.zeros_like(self.mean)

    def update(self, shards: Iterable[Shard]) -> None:
        """One scoring step: value the local entries, add them up per neuron, all-reduce once, average (H2, H3)."""
        total = torch.zeros_like(self.mean)
        views = self.split(total)
        for shard in shards:
            if self.plan.scored(shard.name):
                assert shard.gradient is not None
                values = self.criterion.entry(shard.weight.float(), shard.gradient.float())
                add_per_neuron(values, shard.offset, tuple(shard.shape), self.plan.dims(shard.name), views)
        score = self.criterion.finish(ranks.add_up(total))
        if not self.criterion.smoothed:
            self.mean = score
            return
        self.mean = self.beta * self.mean + (1 - self.beta) * score
        gap = (score - self.mean).abs()
        self.uncertainty = UNCERTAINTY_BETA * self.uncertainty + (1 - UNCERTAINTY_BETA) * gap

    def values(self) -> dict[str, torch.Tensor]:
        """Group -> importance of its neurons [N], on the CPU."""
        value = self.mean * self.uncertainty if self.criterion.uncertain else self.mean
        return self.split(value.cpu())

    def split(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Views of a flat vector, one per group."""
        return dict(zip(self.groups, flat.split(list(self.groups.values())), strict=True))

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"mean": self.mean, "uncertainty": self.uncertainty}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.mean, self.uncertainty = (state[name].to(ranks.device()) for name in ("mean", "uncertainty"))


def add_per_neuron(
    values: torch.Tensor,
    offset: int,
    shape: tuple[int, ...],
    dims: tuple[str | None, ...],
    sums: dict[str, torch.Tensor],
) -> None:
    """Add a run of entry values [count], which starts at `offset` of the flattened parameter, to its neurons' sums.

    An entry on the diagonal of a matrix whose two dimensions are the same group belongs to one neuron and counts once.
    """
    if len(shape) == 1:
        if dims[0] is not None:
            sums[dims[0]][offset : offset + len(values)] += values
        return
    (row_group, column_group), columns = dims, shape[1]
    row, column = divmod(offset, columns)
    while len(values):
        # A part of one row at either end of the run, whole rows in between.
        whole = len(values) // columns if column == 0 else 0
        width = columns if whole else min(columns - column, len(values))
        block = values[: max(whole, 1) * width].view(max(whole, 1), width)
        values = values[block.numel() :]
        if row_group is not None:
            sums[row_group][row : row + len(block)] += block.sum(1)
        if column_group is not None:
            sums[column_group][column : column + width] += block.sum(0)
        if row_group is not None and row_group == column_group:
            diagonal = block.diagonal(row - column)
            first = max(row, column)
            sums[row_group][first : first + len(diagonal)] -= diagonal
        row, column = row + len(block), 0
