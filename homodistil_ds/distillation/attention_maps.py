"""Distances of attention maps without the maps: a tile of their rows at a time, made anew for gradients.

B batch, A heads, L length, R rows of a tile, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.utils.checkpoint import checkpoint

from homodistil_ds.models.width import Family

SHORTEST = 256  # tokens of a sequence from which on maps that are kept cost more than products made twice
MOST_ENTRIES = 1 << 23  # of one model's tile, 32 MiB in float32
LEAST_ROWS = 16  # below, products are too narrow for the machine
LEAST_TILES = 4

Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Scored(NamedTuple):
    """What a layer's maps are made of: queries and keys [B, A, L, D] as its matrices put them out, what their products
    are multiplied by, and whether a token attends to itself and earlier ones alone. Rows have no padding."""

    queries: torch.Tensor
    keys: torch.Tensor
    scale: float
    causal: bool = False

    def maps(self, begin: int, end: int) -> torch.Tensor:
        """Probabilities [B, A, R, L] of some rows, in float32 at least; their product has the format of the states."""
        scores = self._scores(begin, end)
        return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))

    def log_maps(self, begin: int, end: int) -> torch.Tensor:
        """Their logarithms, which know how small a small one is."""
        scores = self._scores(begin, end)
        return scores.log_softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))

    def _scores(self, begin: int, end: int) -> torch.Tensor:
        """Queries are scaled before the product, since in fp16 that alone could overflow."""
        scores = (self.queries[:, :, begin:end] * self.scale) @ self.keys.transpose(-1, -2)
        if self.causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(begin + 1)
            scores = scores.masked_fill(later, float("-inf"))
        return scores


Maps = Callable[[Scored, int, int], torch.Tensor]


def in_tiles(family: Family, length: int) -> bool:
    """Whether a run's maps are compared in tiles: queries and keys must say all, and sequences be long enough."""
    return family.plain_scores and length >= SHORTEST


def rows_at_once(batch: int, heads: int, length: int) -> int:
    return min(-(-length // LEAST_TILES), max(LEAST_ROWS, MOST_ENTRIES // (batch * heads * length)))


def over_tiles(distance: Distance, own: Scored, shown: Scored, maps: Maps = Scored.maps) -> torch.Tensor:
    """A distance that is a mean over rows of maps, of all of them: that of each tile by its share of the rows.

    A backward pass makes each tile once more, so that only one is there at a time.
    """
    batch, heads, length, _ = own.queries.shape
    rows = rows_at_once(batch, heads, length)

    def of_tile(begin: int) -> torch.Tensor:
        end = min(begin + rows, length)
        return distance(maps(own, begin, end), maps(shown, begin, end)) * ((end - begin) / length)

    tiles = [
        checkpoint(of_tile, begin, use_reentrant=False, preserve_rng_state=False) for begin in range(0, length, rows)
    ]
    return torch.stack(tiles).sum()
