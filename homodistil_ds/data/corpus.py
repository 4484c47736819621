"""Rows of token ids: a prepared folder, mapped where it lies, and the order of visits. Reads no text, sees no ranks.

L length, S rows to train on, E held-out rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from homodistil_ds.errors import HomodistilError

INDEX = "index.json"
FORMAT = 1


class Rows:
    """Rows that lie in several files, indexed like one array: an array of row numbers or a slice gives an array."""

    def __init__(self, shards: Sequence[np.ndarray], length: int, dtype: np.dtype) -> None:
        self._shards = shards
        self._ends = np.cumsum([len(shard) for shard in shards], dtype=np.int64)
        self.shape = (int(self._ends[-1]) if shards else 0, length)
        self.dtype = dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        wanted = np.arange(len(self))[rows]
        found = np.empty((len(wanted), self.shape[1]), self.dtype)
        places = np.searchsorted(self._ends, wanted, "right")
        for place in np.unique(places):
            shard, here = self._shards[place], places == place
            found[here] = shard[wanted[here] - (self._ends[place] - len(shard))]
        return found


@dataclass(frozen=True)
class Corpus:
    """Packed rows; every row is [CLS] + L-2 tokens + [SEP], without padding."""

    train: Rows | np.ndarray
    """[S, L] token ids."""
    held_out: Rows | np.ndarray
    """[E, L] token ids, of documents that no row of `train` shares."""
    fingerprint: str
    """16 hex digits over all rows of the folder; equal on all ranks, or they read different data."""
    documents: int
    """Documents kept, of both parts."""
    tokens: int
    """Their tokens, before incomplete rows are dropped."""


def is_prepared(folder: str | Path) -> bool:
    """Whether a corpus was prepared there; a folder of texts may have some other file of the index's name."""
    index = Path(folder, INDEX)
    if not index.is_file():
        return False
    with index.open("rb") as stream:
        return b'"fingerprint"' in stream.read(80) or Path(folder, "train-00000.npy").exists()


def load(folder: Path, tokenizer: PreTrainedTokenizerBase, sequence_length: int, held_out_sequences: int) -> Corpus:
    """The corpus of a prepared folder, mapped; of its held-out rows at most `held_out_sequences`, evenly spaced.

    Sizes are checked, contents are not (see verify). Raises HomodistilError: DATA-CACHE if the folder is damaged,
    DATA-LENGTH or DATA-VOCABULARY if it was made for another run, DATA-EMPTY without a held-out row to give.
    """
    index = read_index(folder)
    if index["sequence_length"] != sequence_length:
        raise HomodistilError(
            "DATA-LENGTH",
            f"{folder} holds rows of {index['sequence_length']} tokens, the run wants {sequence_length}",
            f"Use --sequence_length {index['sequence_length']}, or prepare the corpus for {sequence_length}.",
        )
    if index["vocabulary"] != vocabulary(tokenizer):
        raise HomodistilError(
            "DATA-VOCABULARY",
            f"{folder} was tokenized with another vocabulary than the teacher's",
            "Prepare the corpus with this teacher (--teacher), or use the teacher it was prepared for.",
        )
    dtype = np.dtype(index["dtype"])
    train, held_out = (
        Rows(
            [_shard(folder, fact, (fact["rows"], sequence_length), dtype) for fact in index[name]],
            sequence_length,
            dtype,
        )
        for name in ("train", "held_out")
    )
    if held_out_sequences > 0 and not len(held_out):
        raise no_rows("hold out", sequence_length, index["counts"])
    shown = held_out if len(held_out) <= held_out_sequences else _evenly_spaced(held_out, held_out_sequences)
    return Corpus(train, shown, index["fingerprint"], index["counts"]["kept"], index["counts"]["tokens"])


def read_index(folder: Path) -> dict[str, Any]:
    """Raises HomodistilError: DATA-CORPUS for what was never prepared, DATA-CACHE for what is damaged."""
    if not (folder / INDEX).exists():
        raise HomodistilError(
            "DATA-CORPUS",
            f"{folder} is not a prepared corpus: it has no {INDEX}",
            f"Prepare one from it: python tools/prepare_corpus.py --corpus {folder} --output_dir corpora/mine\n"
            "or name the folder `corpus` of a run.",
        )
    try:
        index: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        known = index["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, f"{INDEX}: {error}") from error
    if not known:
        raise _damaged(folder, f"{INDEX} has format {index['format']}, this version reads {FORMAT}")
    return index


def _shard(folder: Path, fact: dict[str, Any], shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    path = folder / fact["name"]
    try:
        if path.stat().st_size != fact["bytes"]:
            raise ValueError(f"{path.stat().st_size} bytes instead of {fact['bytes']}")
        array: np.ndarray = np.load(path, mmap_mode="r")
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(f"{array.shape} {array.dtype} instead of {shape} {dtype}")
    except (OSError, EOFError, ValueError) as error:
        raise _damaged(folder, f"{path.name}: {error}") from error
    return array


def _damaged(folder: Path, how: str) -> HomodistilError:
    remedy = f"Remove {folder} and prepare it again from the documents."
    return HomodistilError("DATA-CACHE", f"{folder}: damaged corpus ({how})", remedy)


def no_rows(purpose: str, sequence_length: int, counts: dict[str, int]) -> HomodistilError:
    """A corpus that is too small to train on, or to hold out."""
    return HomodistilError(
        "DATA-EMPTY",
        f"the corpus holds no full row of {sequence_length} tokens to {purpose}: {counts['documents']} documents, "
        f"{counts['bytes']} bytes, {counts['tokens']} tokens, dropped {counts['too_short']} documents as too short and "
        f"{counts['copies']} as copies",
        "Give more text (one document in 20 is held out; a blank line ends a document of a .txt file), lower "
        "--sequence_length, or use --corpus builtin.",
    )


def _evenly_spaced(rows: Rows, count: int) -> np.ndarray:
    return rows[np.arange(count) * len(rows) // max(count, 1)]


def vocabulary(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits over the token of every id."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()[:16]


def fingerprint(
    dtype: str, sequence_length: int, train: Sequence[dict[str, Any]], held_out: Sequence[dict[str, Any]]
) -> str:
    hashes = [[fact["sha256"] for fact in shards] for shards in (train, held_out)]
    return hashlib.sha256(json.dumps([dtype, sequence_length, *hashes]).encode()).hexdigest()[:16]


def verify(folder: Path) -> dict[str, Any]:
    """Read every shard and compare it with the index, which is returned. Raises HomodistilError DATA-CACHE."""
    index = read_index(folder)
    for fact in (*index["train"], *index["held_out"]):
        try:
            found = sha256(folder / fact["name"])
        except OSError as error:
            raise _damaged(folder, f"{fact['name']}: {error.strerror}") from error
        if found != fact["sha256"]:
            raise _damaged(folder, f"{fact['name']}: SHA-256 {found[:16]} instead of {fact['sha256'][:16]}")
    expected = fingerprint(index["dtype"], index["sequence_length"], index["train"], index["held_out"])
    if expected != index["fingerprint"]:
        raise _damaged(folder, f"{INDEX}: fingerprint {index['fingerprint']} instead of {expected}")
    return index


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Order:
    """Which row sample i reads: a fresh permutation of all rows per epoch, a pure function of (seed, i)."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self._epoch = -1
        self._permutation = np.zeros(0, np.int64)

    def rows(self, first: int, count: int) -> np.ndarray:
        """[count] row indices of the samples first .. first + count - 1, over epoch edges if need be."""
        rows = np.empty(count, np.int64)
        done = 0
        while done < count:
            epoch, start = divmod(first + done, self.size)
            taken = self._of_epoch(epoch)[start : start + count - done]
            rows[done : done + len(taken)] = taken
            done += len(taken)
        return rows

    def _of_epoch(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            key = np.array([self.seed % 2**64, epoch], np.uint64)
            self._permutation = np.random.Generator(np.random.Philox(key=key)).permutation(self.size)
            self._epoch = epoch
        return self._permutation
