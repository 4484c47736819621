"""What every neuron of a trained model is worth to its task: gradients of gates, and the order they make (M3).

A gate is a factor of 1 on a neuron. Its gradient is the sum of w g over the entries that read the neuron. A head has
one gate on all that it gives, whose gradient is the sum of its `vo` neurons' before the absolute value is taken.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from homodistil_ds.models.width import WidthPlan
from homodistil_ds.pruning.importance import add_sums
from homodistil_ds.pruning.masks import sha256_of
from homodistil_ds.runtime import ranks

Values = dict[str, torch.Tensor]
HEADS = "heads"  # with the layer's number behind a dot, as groups have it


class Gates:
    """I_n: the sum over batches of |gradient of the gate|, per group and for heads; the same on every rank."""

    def __init__(self, plan: WidthPlan) -> None:
        self.plan = plan
        self.groups = plan.groups()
        self.total = torch.zeros(sum(self.groups.values()))
        self.heads = {
            f"{HEADS}{group.removeprefix('vo')}": torch.zeros(size // plan.full.head_size)
            for group, size in self.groups.items()
            if group.startswith("vo.")
        }

    def add(self, model: torch.nn.Module) -> None:
        """Take in the gradients of one batch, each rank's mean over as many of its rows. All ranks call it."""
        flat = torch.zeros_like(self.total, device=ranks.device())
        sums = self._split(flat)
        for name, parameter in model.named_parameters():
            if self.plan.scored(name) and parameter.grad is not None:
                add_reading(self.plan, name, (parameter.detach() * parameter.grad).float(), sums)
        mean = ranks.mean(flat).cpu()
        self.total += mean.abs()
        for group, own in self._split(mean).items():
            if group.startswith("vo."):
                heads = own.view(-1, self.plan.full.head_size).sum(1)
                self.heads[f"{HEADS}{group.removeprefix('vo')}"] += heads.abs()

    def values(self) -> Values:
        """Group -> I_n over the length of the group's vector, so that layers compare: [N]; heads.<layer> -> [H]."""
        totals = self._split(self.total) | self.heads
        return {group: values / values.norm().clamp_min(1e-30) for group, values in totals.items()}

    def _split(self, flat: torch.Tensor) -> Values:
        return dict(zip(self.groups, flat.split(list(self.groups.values())), strict=True))


def add_reading(plan: WidthPlan, name: str, product: torch.Tensor, sums: Values) -> None:
    """Add w g of one parameter to the neurons it reads: the columns of a matrix.

    Nothing reads `qk` neurons one by one but the product of queries and keys, so the entries that make the queries
    count for those.
    """
    dims, found = plan.dims(name), plan.find(name)
    assert found is not None
    makes = found[0].part == "embeddings" and found[0].axes[0] != "hidden"  # a table of vectors reads nothing
    if len(dims) == 2 and dims[1] is not None and not makes:
        add_sums(sums, dims[1], 0, product.sum(0))
    if dims[0] is not None and name.endswith(plan.family.query):
        add_sums(sums, dims[0], 0, product if product.dim() == 1 else product.sum(1))


def descending(plan: WidthPlan, values: Mapping[str, torch.Tensor]) -> Values:
    """Group -> its neurons from the most valuable to the least, int64 [N]; equal values keep their order.

    `qk` and `vo` go head by head, the most valuable head first, and inside each head by themselves.
    """
    found = {}
    for group in plan.groups():
        kind, _, layer = group.partition(".")
        if kind not in ("qk", "vo"):
            found[group] = _sorted(values[group])
            continue
        own = values[group].view(-1, plan.full.head_size)
        heads = _sorted(values[f"{HEADS}.{layer}"])
        found[group] = torch.cat([head * plan.full.head_size + _sorted(own[head]) for head in heads])
    return found


def _sorted(values: torch.Tensor) -> torch.Tensor:
    return torch.sort(values, descending=True, stable=True).indices


def digests(order: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Group -> the first 63 bits of the SHA-256 of its order."""
    return {group: sha256_of(neurons)[0] for group, neurons in order.items()}
