"""Rows that were written are found by their numbers, whoever wrote them in whatever order, and to the bit."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from homodistil_ds.distillation import state_files
from homodistil_ds.distillation.state_files import StateFiles, disjoint, runs_of
from homodistil_ds.errors import HomodistilError

SHAPE = (3, 4)
FORMATS = (torch.float32, torch.bfloat16, torch.float16)


def files(folder: Path, dtype: torch.dtype = torch.float32, key: str = "key") -> StateFiles:
    """As another process sees the folder."""
    opened = StateFiles(folder, key, SHAPE, dtype)
    names = opened.names()
    opened.take_up(names, [opened.runs_in(name) for name in names])
    return opened


def states(samples: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Rows [n, K, H] that tell their numbers."""
    drawn = torch.randn(1000, *SHAPE, generator=torch.Generator().manual_seed(0))
    return drawn[torch.from_numpy(samples)].to(dtype)


def write(folder: Path, *runs: range, dtype: torch.dtype = torch.float32) -> StateFiles:
    writer = files(folder, dtype)
    for run in runs:
        writer.add(np.array(run), states(np.array(run), dtype))
    writer.flush()
    return writer


@pytest.mark.parametrize("dtype", FORMATS)
def test_what_was_written_is_read_to_the_bit_in_any_order(tmp_path: Path, dtype: torch.dtype) -> None:
    writer = write(tmp_path, range(8, 12), range(2), range(-3, 0), dtype=dtype)
    write(tmp_path, range(2, 8), dtype=dtype)
    wanted = np.array([3, 11, 0, 1, 2, -3, 8, 9])
    reader = files(tmp_path, dtype)
    assert not reader.lacks(wanted)
    assert torch.equal(reader.read(wanted), states(wanted, dtype))
    assert writer.lacks(wanted), "it does not know of the other file"
    assert torch.equal(writer.read(wanted[1:4]), states(wanted[1:4], dtype))
    assert [reader.held(0, 12), reader.held(-5, 0), reader.held(5, 9), reader.held(12, 99)] == [12, 3, 4, 0]


def test_a_row_that_was_added_is_there_before_it_is_written_and_is_written_once(tmp_path: Path) -> None:
    writer = write(tmp_path, range(4))
    rows = np.arange(2, 6)
    assert writer.lacks(rows)
    writer.add(rows, states(rows))
    writer.add(rows, states(rows) + 1)
    assert not writer.lacks(rows)
    assert torch.equal(writer.read(rows), states(rows))
    assert files(tmp_path).lacks(rows)
    writer.flush()
    writer.flush()
    names = writer.names()
    assert sorted(runs.tolist() for runs in map(writer.runs_in, names)) == [[[0, 4, 0]], [[4, 2, 0]]]
    assert torch.equal(writer.read(rows), states(rows))


def test_rows_of_two_writers_may_overlap(tmp_path: Path) -> None:
    first, second = files(tmp_path), files(tmp_path)
    for writer, rows in ((first, np.arange(0, 10)), (second, np.arange(4, 14)), (files(tmp_path), np.arange(5, 7))):
        writer.add(rows, states(rows))
        writer.flush()
    reader, rows = files(tmp_path), np.arange(14)
    assert reader.held(0, 14) == 14
    assert torch.equal(reader.read(rows), states(rows))


def test_runs_are_what_follows_each_other() -> None:
    assert runs_of(np.array([-2, -1, 0, 5, 6, 9, 8])).tolist() == [[-2, 3, 0], [5, 2, 3], [9, 1, 5], [8, 1, 6]]
    assert runs_of(np.zeros(0, np.int64)).shape == (0, 3)
    overlapping = np.array([[4, 3, 0, 1], [0, 10, 0, 0], [0, 2, 5, 2], [8, 4, 7, 3]])
    assert disjoint(overlapping).tolist() == [[0, 10, 0, 0], [10, 2, 9, 3]]


def test_another_key_has_other_rows(tmp_path: Path) -> None:
    write(tmp_path, range(4))
    assert files(tmp_path, key="other").lacks(np.arange(1))


def test_an_unfinished_file_is_no_file_and_goes_when_it_is_old(tmp_path: Path) -> None:
    """A writer that was killed leaves one; one that still writes has its own."""
    write(tmp_path, range(4))
    left, young = tmp_path / ".states-key-a.safetensors.b", tmp_path / ".states-key-c.safetensors.d"
    for path in (left, young):
        path.write_bytes(b"half")
    os.utime(left, (0, 0))
    assert torch.equal(files(tmp_path).read(np.arange(4)), states(np.arange(4)))
    assert (left.exists(), young.exists()) == (False, True)


@pytest.mark.parametrize("how", ["cut off", "changed", "of another shape"])
def test_damage_is_named(tmp_path: Path, how: str) -> None:
    (name,) = write(tmp_path, range(4)).names()
    path, shape = tmp_path / name, SHAPE
    data = bytearray(path.read_bytes())
    if how == "cut off":
        del data[-1:]
    elif how == "changed":
        data[-1] ^= 1  # of the last row
    else:
        shape = (4, 3)
    path.write_bytes(data)
    with pytest.raises(HomodistilError, match=name) as raised:  # noqa: PT012 - it may be seen early or late
        opened = StateFiles(tmp_path, "key", shape, torch.float32)
        opened.take_up([name], [opened.runs_in(name)])
        opened.read(np.arange(3))
        assert how == "changed", "only the row that is read is looked at"
        opened.read(np.arange(4))
    assert raised.value.error_id == ("CKPT-CACHE-ROW" if how == "changed" else "CKPT-CACHE")


def test_a_failed_write_leaves_nothing_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = files(tmp_path)
    writer.add(np.arange(4), states(np.arange(4)))
    with monkeypatch.context() as patched:
        patched.setattr(state_files, "save", lambda tensors: (_ for _ in ()).throw(OSError("no space left")))
        with pytest.raises(OSError, match="no space"):
            writer.flush()
    assert list(tmp_path.iterdir()) == []
    writer.flush()
    assert torch.equal(files(tmp_path).read(np.arange(4)), states(np.arange(4)))
