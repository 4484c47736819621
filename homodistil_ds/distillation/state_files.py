"""Files of a teacher's final hidden states, found by the numbers of rows. Written once, by rename, then only read.

A file holds any rows: `samples` [n] are their numbers, `states` [n, K, H], `checks` [n] the CRC-32 of each row's bytes.
No name of a file is used twice, so that what a reader knows of a file stays true whoever else writes into the folder.

n rows, K predicted positions per row, H hidden; r runs: rows of consecutive numbers that follow each other in a file.
"""

from __future__ import annotations

import math
import time
import uuid
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from homodistil_ds.errors import HomodistilError
from homodistil_ds.models.pieces import Read, header, reader
from homodistil_ds.runtime.whole_files import written_whole

FILE_BYTES = 1 << 26  # of states that a rank gathers for one file
ABANDONED_SECONDS = 3600.0  # a file is written in seconds
MEND, UNTOUCHED = "Remove that file: the next start computes its rows again.", "Checkpoints are untouched."


class StateFiles:
    """Rows of one cache: those of whole files, and those added since, which the next file will hold."""

    def __init__(self, folder: Path, key: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
        """`key` is that of what the states are made of, `shape` (K, H) and `dtype` those of a row."""
        self.folder, self.key, self.shape, self.dtype = folder, key, shape, dtype
        self._paths: list[Path] = []
        self._runs = np.zeros((0, 4), np.int64)
        self._readers: dict[int, Read] = {}
        self._added: dict[int, torch.Tensor] = {}

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def names(self) -> list[str]:
        """The files in the folder; those that a killed writer left unfinished are removed."""
        for unfinished in self.folder.glob(f".states-{self.key}-*"):
            with suppress(OSError):
                if time.time() - unfinished.stat().st_mtime > ABANDONED_SECONDS:
                    unfinished.unlink()
        return sorted(path.name for path in self.folder.glob(f"states-{self.key}-*.safetensors"))

    def runs_in(self, name: str) -> np.ndarray:
        """[r, 3] of a file. Raises HomodistilError if it is not whole or holds other rows than these."""
        path = self.folder / name
        try:
            pieces = header(path)
            states, samples = pieces["states"], pieces["samples"]
            if states.dtype != self.dtype or states.shape != (*samples.shape, *self.shape):
                raise ValueError(f"its rows are {list(states.shape[1:])} in {states.dtype}")
        except (KeyError, ValueError, HomodistilError) as error:
            raise HomodistilError("CKPT-CACHE", _damage(path, str(error)), MEND, UNTOUCHED) from error
        return runs_of(reader(pieces)("samples", 0, states.shape[0]).numpy())

    def take_up(self, names: Sequence[str], runs: Sequence[np.ndarray]) -> None:
        """Read these files from now on; `runs` [r, 3] of each."""
        place = len(self._paths)
        self._paths += [self.folder / name for name in names]
        new = [np.insert(each, 3, number, axis=1) for number, each in enumerate(runs, start=place)]
        self._runs = disjoint(np.concatenate([self._runs, *new]))

    def held(self, first: int, end: int) -> int:
        """How many of the rows first .. end - 1 the files hold."""
        begins, ends = self._runs[:, 0], self._runs[:, 0] + self._runs[:, 1]
        return int(np.clip(np.minimum(ends, end) - np.maximum(begins, first), 0, None).sum())

    def lacks(self, samples: np.ndarray) -> bool:
        """Whether one of these rows [n] is in no file and was not added."""
        absent = samples[self._places(samples)[0] < 0]
        return any(int(sample) not in self._added for sample in absent)

    def read(self, samples: np.ndarray) -> torch.Tensor:
        """States [n, K, H] of rows [n], none of which is lacking. Raises HomodistilError for damaged bytes."""
        found = torch.empty(len(samples), *self.shape, dtype=self.dtype)
        files, places = self._places(samples)
        begins = np.flatnonzero((np.diff(files, prepend=-2) != 0) | (np.diff(places, prepend=-2) != 1))
        for begin, end in zip(begins, [*begins[1:], len(samples)], strict=True):
            if files[begin] < 0:
                found[begin:end] = torch.stack([self._added[int(sample)] for sample in samples[begin:end]])
            else:
                found[begin:end] = self._read(int(files[begin]), int(places[begin]), int(end - begin))
        return found

    def add(self, samples: np.ndarray, states: torch.Tensor) -> None:
        """Keep rows [n, K, H] for the next file; those that are there already stay as they are."""
        held = self._places(samples)[0] >= 0
        for sample, row in zip(samples[~held], states[torch.from_numpy(~held)].cpu(), strict=True):
            self._added.setdefault(int(sample), row.to(self.dtype, copy=True))

    def flush(self) -> None:
        """Write what was added to a file of its own, on the disk when this returns."""
        if not self._added:
            return
        samples = np.array(sorted(self._added), np.int64)
        states = torch.stack([self._added[sample] for sample in samples.tolist()])
        checks = torch.tensor([_check(row) for row in states])
        name = f"states-{self.key}-{uuid.uuid4().hex}.safetensors"
        with written_whole(self.folder / name) as stream:
            stream.write(save({"samples": torch.from_numpy(samples), "checks": checks, "states": states}))
        self._added.clear()
        self.take_up([name], [runs_of(samples)])

    def _places(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[n] the file of each row, -1 where none has it, and [n] its place there."""
        if not len(self._runs):
            return np.full(len(samples), -1), np.zeros(len(samples), np.int64)
        runs = self._runs[np.maximum(np.searchsorted(self._runs[:, 0], samples, "right") - 1, 0)]
        along = samples - runs[:, 0]
        inside = (along >= 0) & (along < runs[:, 1])
        return np.where(inside, runs[:, 3], -1), np.where(inside, runs[:, 2] + along, 0)

    def _read(self, file: int, place: int, count: int) -> torch.Tensor:
        path, entries = self._paths[file], math.prod(self.shape)
        try:
            read = self._reader(file)
            states = read("states", place * entries, count * entries).view(count, *self.shape)
            checks = read("checks", place, count).tolist()
        except (OSError, HomodistilError) as error:
            raise HomodistilError("CKPT-CACHE-ROW", _damage(path, str(error)), MEND, UNTOUCHED) from error
        if [_check(row) for row in states] != checks:
            raise HomodistilError("CKPT-CACHE-ROW", _damage(path, "a row was changed since"), MEND, UNTOUCHED)
        return states

    def _reader(self, file: int) -> Read:
        if file not in self._readers:
            self._readers[file] = reader(header(self._paths[file]))
        return self._readers[file]


def _damage(path: Path, how: str) -> str:
    return f"{path}: damaged teacher cache ({how})"


def runs_of(samples: np.ndarray) -> np.ndarray:
    """[r, 3] of rows numbered `samples` [n], in a file's order: first number, how many, place of the first."""
    begins = np.flatnonzero(np.diff(samples, prepend=samples[:1] - 2) != 1)
    return np.stack([samples[begins], np.diff(begins, append=len(samples)), begins], axis=1)


def disjoint(runs: np.ndarray) -> np.ndarray:
    """[r, 4] (first number, how many, place, file) by ascending numbers, each row in one run only."""
    runs = runs[np.lexsort((-runs[:, 1], runs[:, 0]))]
    ends = np.maximum.accumulate(runs[:, 0] + runs[:, 1])
    covered = np.concatenate([runs[:1, 0], ends[:-1]])
    skipped = np.maximum(covered - runs[:, 0], 0)
    runs = runs + np.outer(skipped, [1, -1, 1, 0])
    return runs[runs[:, 1] > 0]


def _check(row: torch.Tensor) -> int:
    return zlib.crc32(row.contiguous().view(torch.uint8).numpy().data)
