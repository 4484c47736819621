"""A micro batch of language modelling, and what a decoder predicts of a row: every next token.

B batch, L length, K predicted positions per row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Batch:
    input_ids: torch.Tensor
    """int64 [B, L], as the models read them."""
    positions: torch.Tensor
    """int64 [B, K], ascending per row."""
    labels: torch.Tensor
    """int64 [B, K], what is to be predicted from `positions`."""
    samples: torch.Tensor | None = None
    """int64 [B] on the host: numbers of the rows, of held-out ones below 0, where the teacher is told them."""
    decoder_ids: torch.Tensor | None = None
    """int64 [B, K], as a decoder behind an encoder reads them; `positions` are then its own."""

    pairs = None  # nothing is mixed

    @property
    def shown(self) -> tuple[torch.Tensor, ...]:
        """What the student reads, and the teacher too."""
        read = self.input_ids, self.positions
        return read if self.decoder_ids is None else (*read, self.decoder_ids)

    @property
    def taught(self) -> tuple[torch.Tensor, ...]:
        return self.shown if self.samples is None else (*self.shown, self.samples)

    def to(self, device: torch.device) -> Batch:
        decoder_ids = None if self.decoder_ids is None else self.decoder_ids.to(device)
        ids, positions, labels = (part.to(device) for part in (self.input_ids, self.positions, self.labels))
        return Batch(ids, positions, labels, self.samples, decoder_ids)


class Prediction(Protocol):
    """What is predicted of rows of tokens."""

    def batch(self, tokens: np.ndarray, indices: np.ndarray, seed: int) -> Batch:
        """Of rows `tokens` [B, L] whose global sample indices are `indices` [B]."""

    def share(self, length: int) -> float:
        """Of the tokens of a row, that which is predicted."""


@dataclass(frozen=True)
class NextTokens:
    """Every token but a row's first, from those before it, over the ends of documents too."""

    def batch(self, tokens: np.ndarray, indices: np.ndarray, seed: int) -> Batch:
        ids = torch.from_numpy(tokens.astype(np.int64))
        positions = torch.arange(ids.shape[1] - 1).expand(len(ids), -1)
        return Batch(ids, positions, ids[:, 1:])

    def share(self, length: int) -> float:
        return (length - 1) / length


def named(tokenizer: PreTrainedTokenizerBase) -> str:
    """What errors call it: where it comes from, else its class."""
    return f"the tokenizer {tokenizer.name_or_path or type(tokenizer).__name__}"
