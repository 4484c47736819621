"""Where documents come from: files, folders, the hub or the Python installation. Opens no file itself."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homodistil_ds.config import BUILTIN
from homodistil_ds.data import builtin
from homodistil_ds.data.readers import COLUMN, SUFFIXES, no_column, read_file
from homodistil_ds.errors import HomodistilError


@dataclass(frozen=True)
class File:
    """What is read in one go: a file, a module of the Python installation, or one of the pieces of a hub data set."""

    source: str
    """What the user named."""
    path: str
    """Empty for the language reference and the hub."""
    size: int
    """Bytes on disk; 0 where there is no file."""
    piece: int = 0
    pieces: int = 1

    @property
    def label(self) -> str:
        """What counts and messages call it."""
        return self.path if self.path and self.source != BUILTIN else self.source


def read_documents(sources: Sequence[str]) -> Iterator[str]:
    """The documents of all sources, in order: 'builtin', files, folders (recursive, sorted) or hub data set names.

    Streams: at most one document, or one batch of parquet rows, is held. Raises HomodistilError as files_of and
    documents do.
    """
    for source in sources:
        for file in files_of(source):
            yield from documents(file)


def files_of(source: str) -> list[File]:
    """What `source` stands for. Raises HomodistilError: DATA-NOT-FOUND, DATA-NO-FILES, DATA-SUFFIX."""
    if is_local(source):
        return local_files(source)
    pieces = int(getattr(_hub_data(source), "num_shards", 1))
    return [File(source, "", 0, piece, pieces) for piece in range(pieces)]


def is_local(source: str) -> bool:
    return source == BUILTIN or os.path.exists(source) or _looks_like_path(source)


def local_files(source: str) -> list[File]:
    if source == BUILTIN:
        modules = [File(source, str(path), path.stat().st_size) for path in builtin.modules() if path.is_file()]
        return [File(source, "", 0), *modules]
    if not os.path.exists(source):
        raise HomodistilError(
            "DATA-NOT-FOUND", f"corpus {source}: no such file or folder", "Check the path, or use --corpus builtin."
        )
    return [File(source, str(path), path.stat().st_size) for path in _files(Path(source))]


def documents(file: File) -> Iterator[str]:
    """The documents of one file. A blank line ends a document of a .txt file; without blank lines between its lines,
    each line is one.

    Raises HomodistilError: DATA-UNREADABLE, DATA-NOT-UTF8, DATA-CORRUPT, DATA-JSONL, DATA-COLUMN, DATA-NOT-FOUND.
    """
    if file.source == BUILTIN:
        return builtin.documentation(Path(file.path)) if file.path else builtin.language_reference()
    return read_file(Path(file.path)) if file.path else _hub(file)


def _looks_like_path(source: str) -> bool:
    return source.count(os.sep) > 1 or source.startswith(("/", ".", "~")) or source.endswith((*SUFFIXES, "/"))


def _files(source: Path) -> list[Path]:
    known = " ".join(SUFFIXES)
    if not source.is_dir():
        if not source.name.endswith(SUFFIXES):
            raise HomodistilError(
                "DATA-SUFFIX", f"{source}: unknown kind of file", f"Rename or convert it. Known suffixes: {known}."
            )
        return [source]
    found = sorted(path for path in source.rglob("*") if path.name.endswith(SUFFIXES) and path.is_file())
    if not found:
        raise HomodistilError(
            "DATA-NO-FILES", f"{source}: no readable file in this folder", f"Known suffixes: {known}."
        )
    return found


def _hub_data(name: str) -> Any:
    """The training split of `name`, or of one of its configurations as `name:configuration`, as a stream."""
    try:
        from datasets import load_dataset  # noqa: PLC0415  seconds of import that only a hub name is worth

        path, _, configuration = name.partition(":")
        return load_dataset(path, configuration or None, split="train", streaming=True)
    except Exception as error:  # the hub client raises what each of its layers raises
        raise _not_readable(name, error) from error


def _hub(file: File) -> Iterator[str]:
    data = _hub_data(file.source)
    try:
        if file.pieces > 1:
            data = data.shard(num_shards=file.pieces, index=file.piece)
        for row in data:
            yield _hub_text(file.source, row)
    except HomodistilError:
        raise
    except Exception as error:  # as above
        raise _not_readable(file.source, error) from error


def _not_readable(name: str, error: Exception) -> HomodistilError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return HomodistilError(
        "DATA-NOT-FOUND",
        f"corpus {name}: no such file or folder, and not readable as a data set of the hub ({reason})",
        "Check the name and the network (HF_HUB_OFFLINE, HF_ENDPOINT), or give files, or use --corpus builtin.",
    )


def _hub_text(name: str, row: dict[str, Any]) -> str:
    if not isinstance(row.get(COLUMN), str):
        raise no_column(name, list(row))
    return str(row[COLUMN])
