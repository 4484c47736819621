"""Tokens of kept documents joined and cut into rows, one output shard at a time: prefix sums say where each lies.

Every row has the special tokens of its tokenizer in front and behind: [CLS] + L-2 tokens + [SEP], [BOS] + L-1 tokens,
or L tokens of text. L length of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from homodistil_ds.data.copies import Copies
from homodistil_ds.data.corpus import sha256
from homodistil_ds.data.parts import Part
from homodistil_ds.data.progress import Progress
from homodistil_ds.data.tokens import SHORTEST_DOCUMENT, Tokens
from homodistil_ds.data.workers import Workers
from homodistil_ds.runtime.whole_files import written_whole

SHARD_BYTES = 128 << 20
SPLITS = ("train", "held_out")
COUNTS = ("documents", "kept", "copies", "too_short", "bytes", "tokens")


@dataclass(frozen=True)
class Kept:
    """Parts without the copies in them."""

    parts: Sequence[Path]
    copies: Copies
    tokens: Tokens

    def count(self, files: int, workers: Workers) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of each part to train on and held out, [parts, 2]; COUNTS of each file, [files, 6]. For everyone."""
        begin, end = (len(self.parts) * (workers.rank + i) // workers.size for i in (0, 1))
        lengths = np.zeros((end - begin, len(SPLITS)), np.int64)
        counted = np.zeros((files, len(COUNTS)), np.int64)
        for number in range(begin, end):
            part = Part.read(self.parts[number], self.tokens.dtype)
            table, stays, copy = part.documents, *self._stays(number, part)
            for split in range(len(SPLITS)):
                lengths[number - begin, split] = (table["tokens"][stays & (table["held_out"] == split)] + 1).sum()
            values = (1, stays, copy, ~stays & ~copy, table["bytes"], np.where(stays, table["tokens"], 0))
            for column, value in enumerate(values):
                np.add.at(counted[:, column], table["file"], value)
        everyone = workers.everyone((lengths, counted))
        return np.concatenate([one for one, _ in everyone]), sum(one for _, one in everyone)

    def _stays(self, number: int, part: Part) -> tuple[np.ndarray, np.ndarray]:
        """Masks of the documents that stay and of those that are copies, [n] each."""
        copy = np.zeros(len(part.documents), bool)
        copy[self.copies.of(number)] = True
        return (part.documents["tokens"] >= SHORTEST_DOCUMENT) & ~copy, copy

    def stream(self, number: int, split: int) -> np.ndarray:
        """Token ids of one part that go to one split."""
        part = Part.read(self.parts[number], self.tokens.dtype)
        stays, _ = self._stays(number, part)
        long = part.documents["tokens"] >= SHORTEST_DOCUMENT
        wanted = (stays & (part.documents["held_out"] == split))[long]
        return part.ids[np.repeat(wanted, part.documents["tokens"][long] + 1)]


def pack(
    kept: Kept, lengths: np.ndarray, sequence_length: int, folder: Path, workers: Workers, progress: Progress
) -> dict[str, list[dict[str, Any]]]:
    """Write the shards of both splits into `folder`, each by one worker; returns what the index says of them."""
    inner = kept.tokens.inner(sequence_length)
    most = max(1, SHARD_BYTES // (sequence_length * kept.tokens.dtype.itemsize))
    shards = [
        (split, first, min(most, int(total) // inner - first))
        for split, total in enumerate(lengths.sum(axis=0))
        for first in range(0, int(total) // inner, most)
    ]
    facts = []
    for split, first, rows in shards[workers.rank :: workers.size]:
        path = folder / f"{SPLITS[split]}-{first // most:05d}.npy"
        if not path.exists():
            ids = _slice(kept, lengths[:, split], split, first * inner, (first + rows) * inner)
            _write(ids.reshape(rows, inner), kept.tokens, path)
        facts.append({"name": path.name, "rows": rows, "bytes": path.stat().st_size, "sha256": sha256(path)})
        progress.add(path.stat().st_size, name=path.name)
    everyone = sorted((fact for one in workers.everyone(facts) for fact in one), key=lambda fact: fact["name"])
    return {name: [fact for fact in everyone if fact["name"].startswith(f"{name}-")] for name in SPLITS}


def _slice(kept: Kept, lengths: np.ndarray, split: int, begin: int, end: int) -> np.ndarray:
    """Tokens begin .. end - 1 of a split."""
    ends = np.cumsum(lengths)
    found = np.empty(end - begin, kept.tokens.dtype)
    done = 0
    for number in range(int(np.searchsorted(ends, begin, "right")), len(ends)):
        if done == len(found):
            break
        skipped = max(0, begin - int(ends[number] - lengths[number]))
        taken = kept.stream(number, split)[skipped : skipped + len(found) - done]
        found[done : done + len(taken)] = taken
        done += len(taken)
    assert done == len(found)
    return found


def _write(inner: np.ndarray, tokens: Tokens, path: Path) -> None:
    front, back = (np.tile(np.array(ids, tokens.dtype), (len(inner), 1)) for ids in (tokens.front, tokens.back))
    rows = np.concatenate([front, inner, back], axis=1)
    with written_whole(path) as stream:
        np.save(stream, rows)
