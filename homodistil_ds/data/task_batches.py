"""Batches of a task's examples: a pure function of (seed, step, rank), padded, plain and mixed. Knows no model.

Shapes: N examples, R rows of a micro batch, L length of its longest row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from homodistil_ds.data.corpus import Order
from homodistil_ds.data.glue import Examples
from homodistil_ds.distillation import mixup
from homodistil_ds.distillation.losses import Pairs
from homodistil_ds.task_config import MixupConfig

WINDOW = 16  # steps whose examples are sorted by length together, which halves the padding


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Examples as token ids: one array per example; `types` only where a tokenizer tells two texts apart."""

    ids: Sequence[np.ndarray]
    types: Sequence[np.ndarray] | None
    labels: np.ndarray | None
    """[N] int64 classes or float32 values; None for a test split."""
    indices: np.ndarray
    """[N] what a submission calls the examples."""

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.array([len(row) for row in self.ids])

    def take(self, rows: np.ndarray) -> Encoded:
        types = None if self.types is None else [self.types[row] for row in rows]
        labels = None if self.labels is None else self.labels[rows]
        return Encoded(ids=[self.ids[row] for row in rows], types=types, labels=labels, indices=self.indices[rows])


def encode(examples: Examples, tokenizer: PreTrainedTokenizerBase, length: int) -> Encoded:
    """Texts longer than `length` tokens lose their end; of two, the longer one first."""
    second = list(examples.second) if examples.second is not None else None
    out = tokenizer(list(examples.first), second, truncation=True, max_length=length, return_attention_mask=False)
    types = out.get("token_type_ids")
    return Encoded(
        ids=[np.array(row, np.int32) for row in out["input_ids"]],
        types=None if types is None or second is None else [np.array(row, np.int32) for row in types],
        labels=examples.labels,
        indices=examples.indices,
    )


@dataclass(frozen=True)
class TaskBatch:
    """A micro batch: R rows, of which the first `pairs.plain` are examples and the others mixed ones.

    `taught` are the rows that the teacher reads, the last ones of `shown`.
    """

    shown: tuple[torch.Tensor | None, ...]
    taught: tuple[torch.Tensor | None, ...]
    labels: torch.Tensor
    pairs: Pairs

    def to(self, device: torch.device) -> TaskBatch:
        def moved(parts: tuple[torch.Tensor | None, ...]) -> tuple[torch.Tensor | None, ...]:
            return tuple(None if part is None else part.to(device) for part in parts)

        own, mask = self.pairs, self.pairs.mask
        pairs = own._replace(
            other_labels=own.other_labels.to(device),
            share=own.share.to(device),
            mask=None if mask is None else mask.to(device),
        )
        return TaskBatch(moved(self.shown), moved(self.taught), self.labels.to(device), pairs)


@dataclass(frozen=True, kw_only=True)
class TaskBatches:
    """Batches of one rank. Sizes are in examples; `mixing` is None where no loss reads mixed ones.

    `teacher_reads_plain`: the teacher is shown the examples too, not their mixtures alone.
    """

    examples: Encoded
    order: Order
    seed: int
    global_batch: int
    micro_batch: int
    rank: int
    world_size: int
    pad_id: int
    mixing: MixupConfig | None = None
    teacher_reads_plain: bool = True

    @property
    def tokens_per_step(self) -> float:
        """Real tokens, on average; a mixed example counts as one of its two."""
        shown = 1.0 + (self.mixing.ratio if self.mixing else 0.0)
        return self.global_batch * float(self.examples.lengths.mean()) * shown

    def split_by(self, micro_batch: int) -> TaskBatches:
        return replace(self, micro_batch=micro_batch)

    def micro_batches(self, step: int) -> Iterator[TaskBatch]:
        """The micro batches of optimizer step `step`, which counts from 1."""
        rows = self.rows(step)
        partner, share = np.arange(self.global_batch), np.ones(self.global_batch, np.float32)
        copied = np.zeros(0, np.int64)
        if self.mixing is not None:
            partner, share = mixup.draw(self.seed, step, self.global_batch, self.mixing.alpha)
            copied = mixup.with_copy(self.global_batch, self.mixing.ratio)
        own = self.global_batch // self.world_size
        for start in range(self.rank * own, (self.rank + 1) * own, self.micro_batch):
            plain = np.arange(start, start + self.micro_batch)
            mixed = copied[(copied >= start) & (copied < start + self.micro_batch)]
            yield self._batch(rows, plain, mixed, partner, share, len(copied))

    def rows(self, step: int) -> np.ndarray:
        """[global batch] examples of a step, of like length: those of up to WINDOW steps are sorted and dealt anew.

        Windows begin anew with each epoch, so that a run of whole epochs ends with one and leaves no example out.
        """
        size, batch = self.order.size, self.global_batch
        epoch = (step - 1) * batch // size
        begin, end = -(-epoch * size // batch), -(-(epoch + 1) * size // batch)
        begin += (step - 1 - begin) // WINDOW * WINDOW
        count = min(WINDOW, end - begin)
        rows = self.order.rows(begin * batch, count * batch)
        rows = rows[np.argsort(self.examples.lengths[rows], kind="stable")].reshape(count, batch)
        key = np.array([(self.seed + 1) % 2**64, begin], np.uint64)
        return rows[np.random.Generator(np.random.Philox(key=key)).permutation(count)[step - 1 - begin]]

    def _batch(
        self,
        rows: np.ndarray,
        plain: np.ndarray,
        mixed: np.ndarray,
        partner: np.ndarray,
        share: np.ndarray,
        copies: int,
    ) -> TaskBatch:
        """Of the step's examples `rows`: those at the places `plain`, then those at `mixed` with their partners."""
        first = self.examples.take(rows[np.concatenate([plain, mixed])])
        assert first.labels is not None
        labels = torch.from_numpy(first.labels)
        if self.mixing is None:
            shown = padded(first, self.pad_id)
            ones = torch.ones(len(labels))
            pairs = Pairs(other_labels=labels, share=ones, plain=len(plain), weight=0.0, mask=shown[1])
            return TaskBatch(shown, shown, labels, pairs)
        second = self.examples.take(rows[np.concatenate([plain, partner[mixed]])])
        assert second.labels is not None
        own = torch.from_numpy(np.concatenate([np.ones(len(plain), np.float32), share[mixed]]))
        whole = (*padded_pair(first, second, own, self.pad_id), own)
        pairs = Pairs(
            other_labels=torch.from_numpy(second.labels),
            share=own,
            plain=len(plain),
            weight=self.global_batch / (len(plain) * max(copies, 1)),
            mask=whole[1],
        )
        begin = 0 if self.teacher_reads_plain or not len(mixed) else len(plain)
        taught = tuple(None if part is None else part[begin:] for part in whole)
        return TaskBatch(whole, taught, labels, pairs)


def padded(examples: Encoded, pad_id: int, length: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """ids, mask and types [R, L]; L is that of the longest row, at least `length`."""
    lengths = examples.lengths
    places = np.arange(max(length, lengths.max()))
    mask = places[None] < lengths[:, None]
    ids = np.full(mask.shape, pad_id, np.int64)
    ids[mask] = np.concatenate(examples.ids)
    types = None
    if examples.types is not None:
        types = np.zeros(mask.shape, np.int64)
        types[mask] = np.concatenate(examples.types)
    return (
        torch.from_numpy(ids),
        torch.from_numpy(mask.astype(np.int64)),
        None if types is None else torch.from_numpy(types),
    )


def padded_pair(first: Encoded, second: Encoded, share: torch.Tensor, pad_id: int) -> tuple[torch.Tensor | None, ...]:
    """ids, the mask of both, types, the partners' ids and types, all [R, L] of the longest of both.

    A text whose share [R] of the mixture is 0 is not attended to: a mixture that is wholly one example is that example.
    """
    length = int(max(first.lengths.max(), second.lengths.max()))
    ids, mask, types = padded(first, pad_id, length)
    other_ids, other_mask, other_types = padded(second, pad_id, length)
    both = (mask * (share > 0)[:, None]) | (other_mask * (share < 1)[:, None])
    return ids, both, types, other_ids, other_types
