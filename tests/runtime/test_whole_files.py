"""A file is the old one or the new one, and what was begun leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from homodistil_ds.runtime.whole_files import replace_text, written_whole


def test_a_file_is_replaced_in_one_move(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    replace_text(path, "old")
    with written_whole(path) as stream:
        stream.write(b"new")
        stream.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    replace_text(path, "old")
    with pytest.raises(TypeError), written_whole(path) as stream:
        stream.write("no bytes")  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
