"""Rows of token ids: packing, their cache and the order of visits. Reads no files of text, sees no ranks.

B batch, L length, S rows to train on, E held-out rows.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from homodistil_ds.data.text import read_documents
from homodistil_ds.errors import HomodistilError

SHORTEST_DOCUMENT = 8  # tokens
HELD_OUT_ONE_IN = 20  # documents
_BATCH_CHARACTERS = 1 << 20
_ARRAYS = ("train", "held_out")


@dataclass(frozen=True)
class Corpus:
    """Packed rows; every row is [CLS] + L-2 tokens + [SEP], without padding."""

    train: np.ndarray
    """[S, L] token ids."""
    held_out: np.ndarray
    """[E, L] token ids, of documents that no row of `train` shares."""
    fingerprint: str
    """16 hex digits over both arrays; equal on all ranks, or they read different data."""
    documents: int
    """Documents kept, of both parts."""
    tokens: int
    """Their tokens, before incomplete and surplus rows are dropped."""


def pack(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, sequence_length: int, held_out_sequences: int
) -> Corpus:
    """Tokenize, join and cut documents into full rows of `sequence_length`.

    A document is held out by a hash of its content, so copies fall on the same side and no other document moves it.
    Of the held-out rows at most `held_out_sequences` are kept, evenly spaced; the surplus is not trained on either.
    Raises HomodistilError: DATA-EMPTY without a full row, DATA-NO-SPECIAL-TOKENS without [CLS] and [SEP].
    """
    if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
        raise HomodistilError(
            "DATA-NO-SPECIAL-TOKENS", "the tokenizer has no [CLS] or no [SEP] token", "Use the teacher's own tokenizer."
        )
    cls_id, sep_id = int(tokenizer.cls_token_id), int(tokenizer.sep_token_id)
    dtype = np.uint16 if len(tokenizer) <= 1 << 16 else np.int32
    train: list[np.ndarray] = []
    held_out: list[np.ndarray] = []
    read = characters = kept = 0
    for batch in _batches(documents):
        encoded = tokenizer(
            batch, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
        )["input_ids"]
        read += len(batch)
        for text, ids in zip(batch, encoded, strict=True):
            characters += len(text)
            if len(ids) >= SHORTEST_DOCUMENT:
                kept += 1
                part = held_out if zlib.crc32(text.encode("utf-8")) % HELD_OUT_ONE_IN == 0 else train
                part.append(np.array([*ids, sep_id], dtype=dtype))
    tokens = sum(map(len, train)) + sum(map(len, held_out)) - kept
    train_rows = _rows(train, sequence_length, cls_id, sep_id, dtype)
    held_out_rows = _evenly_spaced(_rows(held_out, sequence_length, cls_id, sep_id, dtype), held_out_sequences)
    for name, rows, wanted in (("train on", train_rows, True), ("hold out", held_out_rows, held_out_sequences > 0)):
        if wanted and not len(rows):
            raise HomodistilError(
                "DATA-EMPTY",
                f"the corpus holds no full row of {sequence_length} tokens to {name}: {read} documents, {characters} "
                f"characters, {tokens} tokens, {read - kept} documents dropped (under {SHORTEST_DOCUMENT} tokens)",
                f"Give more text (one document in {HELD_OUT_ONE_IN} is held out; a blank line ends a document of a "
                ".txt file), lower --sequence_length, or use --corpus builtin.",
            )
    return Corpus(train_rows, held_out_rows, _fingerprint(train_rows, held_out_rows), kept, tokens)


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in documents:
        batch.append(text)
        characters += len(text) + 1
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _rows(parts: list[np.ndarray], length: int, cls_id: int, sep_id: int, dtype: type) -> np.ndarray:
    """[*, L] of the joined parts; empties `parts`, so that the tokens are not held twice for long."""
    stream = np.concatenate(parts) if parts else np.zeros(0, dtype)
    parts.clear()
    inner = length - 2
    rows: np.ndarray = np.empty((len(stream) // inner, length), dtype)
    rows[:, 0], rows[:, -1] = cls_id, sep_id
    rows[:, 1:-1] = stream[: len(rows) * inner].reshape(-1, inner)
    return rows


def _evenly_spaced(rows: np.ndarray, count: int) -> np.ndarray:
    return rows if len(rows) <= count else rows[np.arange(count) * len(rows) // max(count, 1)]


def _fingerprint(train: np.ndarray, held_out: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in (train, held_out):
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def prepare(
    sources: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    sequence_length: int,
    held_out_sequences: int,
    cache: Path,
) -> Corpus:
    """The corpus of the folder `cache`, mapped rather than read; packed and written there, in one piece, if absent.

    The fingerprint is that of the writing. Raises HomodistilError: DATA-CACHE if the folder is damaged or was made
    with other arguments, and what read_documents and pack raise.
    """
    vocabulary = hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()[:16]
    made_with = {
        "sources": [[source, *_stamp(Path(source))] for source in sources],
        "sequence_length": sequence_length,
        "held_out_sequences": held_out_sequences,
        "vocabulary": vocabulary,
    }
    if not cache.exists():
        corpus = pack(read_documents(sources), tokenizer, sequence_length, held_out_sequences)
        _write(corpus, made_with, cache)
    return _load(made_with, cache)


def _stamp(source: Path) -> list[int]:
    """Total bytes and latest change of a file or folder, so that an edited source is packed again; else nothing."""
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    stats = [path.stat() for path in files]
    return [sum(s.st_size for s in stats), max(s.st_mtime_ns for s in stats)] if stats else []


def _write(corpus: Corpus, made_with: dict[str, Any], cache: Path) -> None:
    unfinished = cache.with_name(f".{cache.name}.{uuid.uuid4().hex}")
    unfinished.mkdir(parents=True)
    try:
        for name in _ARRAYS:
            np.save(unfinished / f"{name}.npy", getattr(corpus, name))
        facts = {"fingerprint": corpus.fingerprint, "documents": corpus.documents, "tokens": corpus.tokens}
        (unfinished / "corpus.json").write_text(json.dumps({**facts, "made_with": made_with}, indent=2) + "\n")
        unfinished.rename(cache)
    except OSError:
        if not cache.exists():  # else another process finished first, with the same content
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _load(made_with: dict[str, Any], cache: Path) -> Corpus:
    remedy = f"Remove {cache}; it is made again from the documents."
    try:
        facts = json.loads((cache / "corpus.json").read_text())
        train, held_out = (np.load(cache / f"{name}.npy", mmap_mode="r") for name in _ARRAYS)
        corpus = Corpus(train, held_out, facts["fingerprint"], facts["documents"], facts["tokens"])
        differing = [name for name, value in made_with.items() if facts["made_with"].get(name) != value]
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise HomodistilError("DATA-CACHE", f"{cache}: damaged corpus cache ({error})", remedy) from error
    if differing:
        raise HomodistilError("DATA-CACHE", f"{cache}: made with another {', '.join(differing)}", remedy)
    return corpus


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
