"""Which tokens of a row are predicted and what is shown in their place: a pure function of (seed, sample index).

B batch, L length, K predicted positions per row.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from homodistil_ds.data.draws import mix, of_rows
from homodistil_ds.data.predicted import Batch, NextTokens, Prediction, named
from homodistil_ds.data.spans import said_of, spans_for
from homodistil_ds.errors import HomodistilError


@dataclass(frozen=True)
class Masking:
    """What the masks are drawn from."""

    mask_id: int
    vocabulary_size: int
    """Ids below this one may replace a token."""
    special_ids: tuple[int, ...]
    """Ids that never replace a token, and are not predicted while others suffice."""
    probability: float
    """Share of a row's inner positions that is predicted."""

    def batch(self, tokens: np.ndarray, indices: np.ndarray, seed: int) -> Batch:
        return masked_batch(tokens, indices, self, seed)

    def share(self, length: int) -> float:
        return self.count(length) / length

    def count(self, length: int) -> int:
        """Predicted positions of a row."""
        return predicted_of(length, self.probability)


def predicted_of(length: int, probability: float) -> int:
    """Predicted positions of a row of so many tokens."""
    return max(1, round(probability * (length - 2)))


def prediction_for(
    kind: str, tokenizer: PreTrainedTokenizerBase, config: Any, probability: float, length: int
) -> Prediction:
    """What a language model of this kind and configuration predicts of rows of so many tokens.

    Raises HomodistilError as masking_for and spans_for do.
    """
    if kind == "causal":
        return NextTokens()
    if kind == "denoising":
        return spans_for(tokenizer, config.decoder_start_token_id, probability, length)
    return masking_for(tokenizer, config.vocab_size, probability)


def share_for(kind: str, probability: float, length: int) -> float:
    """Of the tokens of a row, what such a model predicts."""
    if kind == "causal":
        return NextTokens().share(length)
    return (said_of if kind == "denoising" else predicted_of)(length, probability) / length


def masking_for(tokenizer: PreTrainedTokenizerBase, vocabulary_size: int, probability: float) -> Masking:
    """Raises HomodistilError: DATA-NO-MASK-TOKEN, DATA-VOCABULARY if the model does not embed every id."""
    if tokenizer.mask_token_id is None:
        raise HomodistilError(
            "DATA-NO-MASK-TOKEN",
            f"{named(tokenizer)} has no mask token",
            "Use a teacher trained as a masked language model, with its own tokenizer.",
        )
    # The embedding may be padded beyond the tokenizer; ids without a token are no replacement.
    used = max(tokenizer.get_vocab().values()) + 1
    if used > vocabulary_size:
        raise HomodistilError(
            "DATA-VOCABULARY",
            f"the tokenizer has {used} ids, the model embeds {vocabulary_size}",
            "Use the teacher's own tokenizer.",
        )
    special_ids = tuple(sorted({int(i) for i in tokenizer.all_special_ids}))
    return Masking(int(tokenizer.mask_token_id), used, special_ids, probability)


def masked_batch(tokens: np.ndarray, indices: np.ndarray, masking: Masking, seed: int) -> Batch:
    """Mask rows `tokens` [B, L] whose global sample indices are `indices` [B].

    The draw of a row depends on (seed, its index) alone, so a batch is the same however it is split over ranks and
    micro-batches. Every row predicts exactly K = max(1, round(probability * (L - 2))) positions: with a constant K the
    mean over equal micro-batches of their mean losses is the mean over the global batch, which a random K would break.
    Positions are drawn without replacement from 1 .. L-2, special tokens only after all others. Of those predicted,
    80 % show [MASK], 10 % a random ordinary id, 10 % the token itself (in expectation).
    """
    ids = tokens.astype(np.int64)
    inner = ids.shape[1] - 2
    count = masking.count(ids.shape[1])
    is_special, ordinary = _vocabulary(masking)
    row = of_rows(indices, seed)
    with np.errstate(over="ignore"):
        rank = mix(row + np.arange(inner, dtype=np.uint64)) >> np.uint64(1)
        rank |= is_special[ids[:, 1:-1]].astype(np.uint64) << np.uint64(63)  # specials are drawn last
        chosen = np.argpartition(rank, count - 1, axis=1)[:, :count]
        positions = np.sort(chosen, axis=1) + 1
        draw = mix(mix(row + np.uint64(inner)) + np.arange(2 * count, dtype=np.uint64))
    labels = np.take_along_axis(ids, positions, axis=1)
    action = draw[:, :count] % np.uint64(10)
    replacement = ordinary[draw[:, count:] % np.uint64(len(ordinary))]
    shown = np.where(action < 8, masking.mask_id, np.where(action == 8, replacement, labels))
    np.put_along_axis(ids, positions, shown, axis=1)
    return Batch(torch.from_numpy(ids), torch.from_numpy(positions), torch.from_numpy(labels))


@functools.lru_cache(maxsize=4)
def _vocabulary(masking: Masking) -> tuple[np.ndarray, np.ndarray]:
    """[V] whether an id is special, and the ids that are not."""
    is_special = np.zeros(masking.vocabulary_size, bool)
    is_special[list(masking.special_ids)] = True
    return is_special, np.flatnonzero(~is_special)
