"""The file of a finished unit: its documents' digests, sizes and tokens. Written once, by rename; then only mapped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from homodistil_ds.runtime.whole_files import written_whole

HELD_OUT_ONE_IN = 20  # documents
DOCUMENT = np.dtype([("file", "<u4"), ("tokens", "<u4"), ("bytes", "<u8"), ("held_out", "?")], align=True)
_HEADER = np.dtype("<i8")


@dataclass(frozen=True)
class Part:
    """n documents of a unit, of which the arrays but `ids` speak one by one."""

    high: np.ndarray
    """[n] upper halves of the digests, ascending."""
    low: np.ndarray
    """[n] their lower halves, in the order of `high`."""
    documents: np.ndarray
    """[n] DOCUMENT, in the order of the source."""
    place: np.ndarray
    """[n] numbers of the documents in this part, in the order of `high`."""
    ids: np.ndarray
    """Token ids of the documents that are long enough, each with a [SEP]."""

    @classmethod
    def of(
        cls,
        files: Sequence[int],
        sizes: Sequence[int],
        digests: Sequence[bytes],
        tokens: Sequence[int],
        ids: np.ndarray,
    ) -> Part:
        halves = np.frombuffer(b"".join(digests), ">u8").reshape(-1, 2).astype("<u8")
        documents = np.zeros(len(files), DOCUMENT)
        documents["file"], documents["bytes"], documents["tokens"] = files, sizes, tokens
        documents["held_out"] = halves[:, 1] % HELD_OUT_ONE_IN == 0
        order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: of equal documents the first comes first
        return cls(halves[order, 0], halves[order, 1], documents, order.astype("<u4"), ids)

    def write(self, path: Path) -> None:
        arrays = (self.high, self.low, self.documents, self.place, self.ids)
        with written_whole(path) as stream:
            stream.write(np.array([len(self.documents), len(self.ids)], _HEADER).tobytes())
            for array in arrays:
                stream.write(np.ascontiguousarray(array).data)

    @classmethod
    def read(cls, path: Path, dtype: np.dtype) -> Part:
        held = np.memmap(path, np.uint8, "r")
        place = 2 * _HEADER.itemsize
        count, tokens = (int(number) for number in held[:place].view(_HEADER))
        arrays = []
        for length, kind in ((count, "<u8"), (count, "<u8"), (count, DOCUMENT), (count, "<u4"), (tokens, dtype)):
            end = place + length * np.dtype(kind).itemsize
            arrays.append(np.asarray(held[place:end]).view(kind))
            place = end
        return cls(*arrays)
