"""Rules that value a weight entry, additive over entries and so over shards. They know nothing of groups or ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

Tensor = torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """`entry(weight, gradient)` values each entry; the values of a neuron add up to S_n; `finish(S_n)` ends the sum.

    `smoothed` scores enter a moving average (H3); `uncertain` ones are also weighted by how much they move.
    """

    entry: Callable[[Tensor, Tensor], Tensor]
    finish: Callable[[Tensor], Tensor]
    smoothed: bool = True
    uncertain: bool = False


def _sensitivity(weight: Tensor, gradient: Tensor) -> Tensor:
    """(H1): |w g|, the first-order size of the loss change when the entry is set to 0."""
    return (weight * gradient).abs_()


def _product(weight: Tensor, gradient: Tensor) -> Tensor:
    return weight * gradient


def _magnitude(weight: Tensor, gradient: Tensor) -> Tensor:
    return weight.abs()


def _as_is(total: Tensor) -> Tensor:
    return total


CRITERIA: dict[str, Criterion] = {
    "sensitivity": Criterion(entry=_sensitivity, finish=_as_is),
    "magnitude": Criterion(entry=_magnitude, finish=_as_is, smoothed=False),
    "taylor": Criterion(entry=_product, finish=torch.abs),
    "platon": Criterion(entry=_sensitivity, finish=_as_is, uncertain=True),
}
