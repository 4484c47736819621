"""What a denoising language model (T5) predicts of a row: spans that its encoder is not shown. Pure, as masking is.

B batch, L length of a row, N tokens in spans, S spans, E = L - N + S + 1 ids of the encoder, K = N + S + 1 of the
decoder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from homodistil_ds.data.draws import mix, of_rows
from homodistil_ds.data.predicted import Batch, named
from homodistil_ds.errors import HomodistilError

MEAN_SPAN = 3  # tokens; T5, arXiv 1910.10683, section 3.3.4
_SENTINEL = re.compile(r"<extra_id_(\d+)>")


@dataclass(frozen=True)
class Spans:
    """What spans are drawn and written with."""

    sentinels: tuple[int, ...]
    """Ids that stand for the first, second, ... span of a row."""
    end: int
    """Id after what the encoder reads and after what the decoder says."""
    start: int
    """Id that the decoder reads first."""
    probability: float
    """Share of a row's tokens that is in spans."""

    def batch(self, tokens: np.ndarray, indices: np.ndarray, seed: int) -> Batch:
        """Of rows `tokens` [B, L] whose global sample indices are `indices` [B].

        All rows have as many spans and tokens in them, so that nothing is padded; where they are, and how long each,
        depends on (seed, index of the row) alone. A row begins with a token that is shown, and its last one is not.
        """
        hidden, spans = counts(tokens.shape[1], self.probability)
        ids = tokens.astype(np.int64)
        is_hidden = drawn(ids.shape, hidden, spans, of_rows(indices, seed))
        begins = is_hidden & ~np.pad(is_hidden, ((0, 0), (1, 0)))[:, :-1]
        sentinels = np.array(self.sentinels)[begins.cumsum(1) - 1]
        end = np.full((len(ids), 1), self.end)
        shown = np.where(begins, sentinels, ids)[~is_hidden | begins].reshape(len(ids), -1)
        # A span of the answer is its sentinel, then its tokens.
        pairs = np.stack([sentinels, ids], axis=2)[np.stack([begins, is_hidden], axis=2)].reshape(len(ids), -1)
        labels = np.concatenate([pairs, end], axis=1)
        read = np.concatenate([np.full_like(end, self.start), pairs], axis=1)
        return Batch(
            input_ids=torch.from_numpy(np.concatenate([shown, end], axis=1)),
            positions=torch.arange(labels.shape[1]).expand(len(ids), -1),
            labels=torch.from_numpy(labels),
            decoder_ids=torch.from_numpy(read),
        )

    def share(self, length: int) -> float:
        return said_of(length, self.probability) / length


def counts(length: int, probability: float) -> tuple[int, int]:
    """Tokens of a row that are in spans, and spans."""
    hidden = min(max(1, round(probability * length)), length - 1)
    return hidden, min(max(1, round(hidden / MEAN_SPAN)), length - hidden)


def said_of(length: int, probability: float) -> int:
    """Ids that the decoder says of a row."""
    return sum(counts(length, probability)) + 1


def drawn(shape: tuple[int, int], hidden: int, spans: int, rows: np.ndarray) -> np.ndarray:
    """Which tokens are in spans, bool [B, L]; `rows` [B, 1] are where their draws begin.

    Shown and hidden tokens are each cut into as many stretches of one token or more, all ways alike, and take turns.
    """
    lengths = np.empty((shape[0], 2 * spans), np.int64)
    lengths[:, 0::2] = _stretches(shape[1] - hidden, spans, rows)
    lengths[:, 1::2] = _stretches(hidden, spans, mix(rows))
    is_hidden = np.tile(np.array([False, True]), spans)
    return np.repeat(np.tile(is_hidden, shape[0]), lengths.ravel()).reshape(shape)


def _stretches(total: int, count: int, rows: np.ndarray) -> np.ndarray:
    """Lengths [B, count] of 1 or more that add up to `total`."""
    with np.errstate(over="ignore"):
        rank = mix(rows + np.arange(total - 1, dtype=np.uint64))
    cuts = np.sort(np.argsort(rank, axis=1, kind="stable")[:, : count - 1], axis=1) + 1
    edge = np.zeros((len(cuts), 1), np.int64)
    return np.diff(np.concatenate([edge, cuts, edge + total], axis=1), axis=1)


def spans_for(tokenizer: PreTrainedTokenizerBase, start: int | None, probability: float, length: int) -> Spans:
    """For rows of so many tokens and a decoder that begins with the id `start`.

    Raises HomodistilError: DATA-SENTINELS for a tokenizer without an end or without as many of <extra_id_0>, ... as a
    row has spans, and for one that puts tokens of its own around texts, which would be taken for text.
    """
    matches = ((_SENTINEL.fullmatch(name), id) for name, id in tokenizer.get_vocab().items())
    found = {int(match[1]): int(id) for match, id in matches if match}
    lacking = "<extra_id_0>" if not found else "a token for the end of a text" if tokenizer.eos_token_id is None else ""
    if lacking or start is None:
        what = f"{named(tokenizer)} lacks {lacking}" if lacking else "config.json has no decoder_start_token_id"
        raise HomodistilError("DATA-SENTINELS", what, "Use a T5 with its own tokenizer and configuration.")
    if tokenizer.cls_token_id is not None and tokenizer.sep_token_id is not None:
        raise HomodistilError(
            "DATA-SENTINELS",
            f"{named(tokenizer)} begins and ends texts with tokens of its own, which T5's objective does not know",
            "Use a T5 with T5's own tokenizer.",
        )
    _, spans = counts(length, probability)
    if spans > len(found):
        raise HomodistilError(
            "DATA-SENTINELS",
            f"rows of {length} tokens have {spans} spans, {named(tokenizer)} names {len(found)}",
            "Use a shorter --sequence_length or a lower --mask_probability.",
        )
    return Spans(tuple(found[number] for number in sorted(found)), int(tokenizer.eos_token_id), start, probability)
