"""Which rows a rank sees at a step, as masked tensors: a pure function of (seed, step, rank). No iterator state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from homodistil_ds.data.corpus import Corpus, Order
from homodistil_ds.data.masking import Batch, Masking, masked_batch

HELD_OUT_SEED = 1_234_567  # the same masks in every run, so that held-out losses compare


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Batches of one rank; global sample i of step t is number (t - 1) * global_batch + i of the order.

    A rank takes a contiguous run of each step's samples, so neither world size nor micro batch changes what a step
    sees. All sizes are in sequences.
    """

    corpus: Corpus
    masking: Masking
    order: Order
    seed: int
    global_batch: int
    micro_batch: int
    rank: int
    world_size: int

    def micro_batches(self, step: int) -> Iterator[Batch]:
        """The micro batches of optimizer step `step`, which counts from 1."""
        share = self.global_batch // self.world_size
        first = (step - 1) * self.global_batch + self.rank * share
        for start in range(first, first + share, self.micro_batch):
            rows = self.order.rows(start, self.micro_batch)
            yield self._masked(self.corpus.train[rows], np.arange(start, start + self.micro_batch), self.seed)

    def held_out(self) -> Iterator[Batch]:
        """This rank's share of the held-out rows; every row belongs to exactly one rank."""
        own = np.arange(self.rank, len(self.corpus.held_out), self.world_size)
        for start in range(0, len(own), self.micro_batch):
            rows = own[start : start + self.micro_batch]
            yield self._masked(self.corpus.held_out[rows], rows, HELD_OUT_SEED)

    def _masked(self, tokens: np.ndarray, indices: np.ndarray, seed: int) -> Batch:
        return masked_batch(tokens, indices, self.masking, seed)
