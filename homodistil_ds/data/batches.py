"""Which rows a rank sees at a step, as tensors: a pure function of (seed, step, rank). No iterator state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from homodistil_ds.data.corpus import Corpus, Order
from homodistil_ds.data.predicted import Batch, Prediction

HELD_OUT_SEED = 1_234_567  # the same masks in every run, so that held-out losses compare


class TrainBatch(Protocol):
    """One micro batch: what the student and the teacher are shown, and what the losses compare."""

    @property
    def shown(self) -> tuple[Any, ...]: ...
    @property
    def taught(self) -> tuple[Any, ...]: ...
    @property
    def labels(self) -> torch.Tensor: ...
    @property
    def pairs(self) -> Any: ...
    def to(self, device: torch.device) -> TrainBatch: ...


class Source(Protocol):
    """Where the loop gets its micro batches; a pure function of the step."""

    @property
    def tokens_per_step(self) -> float: ...
    def micro_batches(self, step: int) -> Iterator[TrainBatch]: ...
    def split_by(self, micro_batch: int) -> Source: ...


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Batches of one rank; global sample i of step t is number (t - 1) * global_batch + i of the order.

    A rank takes a contiguous run of each step's samples, so neither world size nor micro batch changes what a step
    sees. All sizes are in sequences. Where they are `numbered`, batches name their rows to the teacher: sample i is
    number i whatever step it falls into, held-out row r of E is number r - E.
    """

    corpus: Corpus
    prediction: Prediction
    order: Order
    seed: int
    global_batch: int
    micro_batch: int
    rank: int
    world_size: int
    numbered: bool = False

    def micro_batches(self, step: int) -> Iterator[Batch]:
        """The micro batches of optimizer step `step`, which counts from 1."""
        share = self.global_batch // self.world_size
        first = (step - 1) * self.global_batch + self.rank * share
        for start in range(first, first + share, self.micro_batch):
            rows, samples = self.order.rows(start, self.micro_batch), np.arange(start, start + self.micro_batch)
            yield self._named(self.prediction.batch(self.corpus.train[rows], samples, self.seed), samples)

    @property
    def tokens_per_step(self) -> float:
        return self.global_batch * self.corpus.train.shape[1]

    def split_by(self, micro_batch: int) -> Batches:
        """The same data in other micro batches."""
        return replace(self, micro_batch=micro_batch)

    def held_out(self) -> Iterator[tuple[Batch, int]]:
        """This rank's held-out batches and how many rows of each count; every row counts on exactly one rank.

        All ranks get as many batches, because models in pieces need every rank in every forward pass.
        """
        own = np.arange(self.rank, len(self.corpus.held_out), self.world_size)
        most = -(-len(self.corpus.held_out) // self.world_size)
        for start in range(0, most, self.micro_batch):
            rows = own[start : start + self.micro_batch]
            shown = rows if len(rows) else np.zeros(1, np.int64)
            batch = self.prediction.batch(self.corpus.held_out[shown], shown, HELD_OUT_SEED)
            yield self._named(batch, shown - len(self.corpus.held_out)), len(rows)

    def _named(self, batch: Batch, samples: np.ndarray) -> Batch:
        return replace(batch, samples=torch.from_numpy(samples)) if self.numbered else batch
