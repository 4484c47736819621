"""Files that are there under their name only when all of them is on the disk."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write that replaces `path` in one move at the end, whoever else writes the same one. Raises OSError."""
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with unfinished.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(path)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write a file by rename; whoever reads or writes it at the same time has a whole one. Raises OSError."""
    with written_whole(path) as stream:
        stream.write(text.encode())


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's names, survive a power loss as far as the file system lets them."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
