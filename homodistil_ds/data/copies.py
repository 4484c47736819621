"""Which documents repeat an earlier one: digests of all parts, compared range by range. No worker sees all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from homodistil_ds.data.parts import Part
from homodistil_ds.data.workers import Workers
from homodistil_ds.runtime.whole_files import written_whole

_DOCUMENTS_AT_ONCE = 4 << 20  # of one worker, 40 bytes each
_HALF = 64  # bits of the half of a digest that ranges are cut from
_PLACE = 32  # bits of a document's number in its part


class Copies:
    """The documents to drop, as the files of a folder: one ascending array of (part << 32 | place) per range."""

    def __init__(self, folder: Path, ranges: int) -> None:
        self._keys = [np.load(folder / _name(number), mmap_mode="r") for number in range(ranges)]

    def of(self, part: int) -> np.ndarray:
        """Numbers of the documents of `part` that repeat an earlier one."""
        edges = np.array([part << _PLACE, (part + 1) << _PLACE], np.uint64)
        found = [keys[slice(*np.searchsorted(keys, edges))] for keys in self._keys]
        return (np.concatenate(found) & np.uint64((1 << _PLACE) - 1)).astype(np.int64)


def find_copies(parts: Sequence[Path], dtype: np.dtype, folder: Path, workers: Workers) -> Copies:
    """Every worker compares its ranges of digests; the first document in the order of the source stays."""
    own = parts[workers.rank :: workers.size]
    documents = sum(workers.everyone(sum(len(Part.read(path, dtype).documents) for path in own)))
    ranges = max(workers.size, -(-documents // _DOCUMENTS_AT_ONCE))
    for number in range(workers.rank, ranges, workers.size):
        keys = _copies_in_range(parts, dtype, number, ranges)
        with written_whole(folder / _name(number)) as stream:
            np.save(stream, keys)
    workers.everyone(None)
    return Copies(folder, ranges)


def _name(number: int) -> str:
    return f"copies-{number:05d}.npy"


def _copies_in_range(parts: Sequence[Path], dtype: np.dtype, number: int, ranges: int) -> np.ndarray:
    begin = np.uint64((number << _HALF) // ranges)
    last = np.uint64(((number + 1 << _HALF) // ranges) - 1)
    columns: tuple[list[np.ndarray], ...] = ([], [], [])
    for place, path in enumerate(parts):
        part = Part.read(path, dtype)
        within = slice(np.searchsorted(part.high, begin, "left"), np.searchsorted(part.high, last, "right"))
        keys = np.uint64(place << _PLACE) | part.place[within].astype(np.uint64)
        for column, values in zip(columns, (part.high[within], part.low[within], keys), strict=True):
            column.append(values)
    if not parts:
        return np.zeros(0, np.uint64)
    high, low, keys = (np.concatenate(column) for column in columns)
    order = np.lexsort((keys, low, high))
    repeats = (np.diff(high[order]) == 0) & (np.diff(low[order]) == 0)
    return np.sort(keys[order][1:][repeats])
