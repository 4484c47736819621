"""Last words of passages, as in LAMBADA (ACL 2016): is one what a decoder finds likeliest? Trains nothing.

Shapes: B passages of a batch, L tokens of its longest one, K of its longest word, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from homodistil_ds.data.predicted import Batch
from homodistil_ds.data.readers import COMPRESSIONS
from homodistil_ds.data.text import documents, local_files
from homodistil_ds.data.tokens import Tokens
from homodistil_ds.errors import HomodistilError
from homodistil_ds.evaluation.heldout import Forward
from homodistil_ds.evaluation.report import perplexity
from homodistil_ds.models.width import WidthPlan
from homodistil_ds.runtime import ranks

NOTHING = -100  # the label of a padded place of a word


@dataclass(frozen=True)
class Passage:
    """Token ids, of which the last `word` are those of the last word."""

    ids: list[int]
    word: int


@dataclass(frozen=True, kw_only=True)
class Passages:
    usable: list[Passage]
    shortened: int
    """Of the usable ones, those whose context lost its beginning to fit the model's positions."""
    skipped: dict[str, int]
    """Why -> how many."""


@dataclass(frozen=True, kw_only=True)
class LastWords:
    accuracy: float
    """Share of passages whose word is, token by token, what the model finds likeliest."""
    perplexity: float
    """exp of the mean over passages of -log p(word), a word being all of its tokens."""


def check_decoder(plan: WidthPlan, model: str, flag: str) -> None:
    """Raises HomodistilError for a model that sees what comes after a word."""
    kind = plan.family.language_model
    if kind != "causal":
        raise HomodistilError(
            "CFG-FAMILY",
            f"--last_words: {flag} {model} is a {kind} language model ({plan.family.model_type}), "
            "which continues no text",
            "Give a decoder, or leave out --last_words and measure on a --corpus.",
        )


def read_passages(source: Path) -> list[str]:
    """The texts of a .jsonl or .parquet file, the lines of a .txt file, or those of a folder of such files.

    Raises HomodistilError for a file that is not there or cannot be read.
    """
    if not source.exists():
        raise HomodistilError(
            "DATA-NOT-FOUND",
            f"--last_words {source}: no such file or folder",
            'Give JSON lines that read {"text": "..."}, or a .txt file with one passage per line.',
        )
    passages: list[str] = []
    for file in local_files(str(source)):
        by_line = file.path.endswith(tuple(f".txt{packed}" for packed in ("", *COMPRESSIONS)))
        for text in documents(file):
            passages.extend(text.split("\n") if by_line else [text])
    return passages


def encode(texts: Sequence[str], tokens: Tokens, positions: int) -> Passages:
    """What a model with so many positions reads of each passage: as rows begin in training, then the text.

    The word is every token of the whole passage from the first on in which it differs from its context alone; so a
    space before the word belongs to it, and no token is ever split.
    """
    skipped: Counter[str] = Counter()
    pairs: list[tuple[str, str]] = []
    for text in texts:
        words = text.rsplit(None, 1)
        if len(words) == 2:
            pairs.append((words[0], text.rstrip()))
        else:
            skipped["one word" if words else "empty"] += 1
    usable, shortened = [], 0
    contexts, wholes = (tokens.ids([pair[place] for pair in pairs]) for place in (0, 1))
    room = positions + 1 - len(tokens.front)  # the last token is predicted, never read
    for context, whole in zip(contexts, wholes, strict=True):
        begin = _alike(context, whole)
        word = len(whole) - begin
        if word == 0 or not (begin or tokens.front):
            skipped["no tokens"] += 1
        elif word >= room:
            skipped["longer than the model's positions"] += 1
        else:
            usable.append(Passage([*tokens.front, *whole[-room:]], word))
            shortened += len(whole) > room
    return Passages(usable=usable, shortened=shortened, skipped=dict(skipped))


def _alike(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return sum(1 for _ in same)


def batches(passages: Sequence[Passage], size: int) -> Iterator[Batch]:
    """The passages, longest first: little padding, and what does not fit a GPU shows at once.

    Rows are padded at their end, where no token of a decoder looks: neither a mask nor other positions are needed.
    """
    ordered = sorted(passages, key=lambda passage: -len(passage.ids))
    for start in range(0, len(ordered), size):
        rows = ordered[start : start + size]
        shown = [torch.tensor(row.ids[:-1]) for row in rows]
        places = [torch.arange(len(row.ids) - 1 - row.word, len(row.ids) - 1) for row in rows]
        words = [torch.tensor(row.ids[-row.word :]) for row in rows]
        yield Batch(
            input_ids=pad_sequence(shown, batch_first=True),
            positions=pad_sequence(places, batch_first=True),
            labels=pad_sequence(words, batch_first=True, padding_value=NOTHING),
        )


def judge(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of logits [B, K, V] and labels [B, K]: whether each word is the likeliest, bool [B]; its log p, float64 [B]."""
    padding = labels == NOTHING
    likeliest = (logits.argmax(-1) == labels) | padding
    chances = logits.float().log_softmax(-1).gather(2, labels.masked_fill(padding, 0)[..., None])[..., 0]
    return likeliest.all(1), chances.double().masked_fill(padding, 0.0).sum(1)


@torch.no_grad()
def measure(model: Forward, passages: Sequence[Passage], size: int) -> LastWords:
    """Of at least one passage; `model` returns logits [B, K, V] at the positions that a batch names.

    `size` passages are read at a time, by this process alone.
    """
    right, chance = 0, 0.0
    for batch in batches(passages, size):
        batch = batch.to(ranks.device())
        logits = model(*batch.shown).logits
        assert logits is not None
        likeliest, chances = judge(logits, batch.labels)
        right += int(likeliest.sum())
        chance += float(chances.sum())
    return LastWords(
        accuracy=right / len(passages),
        perplexity=perplexity(-chance / len(passages)),
    )
