"""Reading documents: from files, folders, the hub or the Python installation, to one stream of text. Not tokens."""

from __future__ import annotations

import ast
import gzip
import io
import json
import lzma
import os
import shutil
import sysconfig
import tempfile
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from pydoc_data import topics
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from homodistil_ds.config import BUILTIN
from homodistil_ds.errors import HomodistilError

COMPRESSIONS = (".gz", ".xz", ".zst")
SUFFIXES = tuple(kind + packed for kind in (".txt", ".jsonl", ".parquet") for packed in ("", *COMPRESSIONS))
COLUMN = "text"
_NOT_DOCUMENTATION = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages"}
_FETCH_AGAIN = "Copy or download the file again; it ends early or was damaged on the way."


def read_documents(sources: Sequence[str]) -> Iterator[str]:
    """The documents of all sources, in order: 'builtin', files, folders (recursive, sorted) or hub data set names.

    Streams: at most one document, or one batch of parquet rows, is held. A blank line ends a document of a .txt file;
    without blank lines between its lines, each line is one. Raises HomodistilError: DATA-NOT-FOUND, DATA-NO-FILES,
    DATA-SUFFIX, DATA-UNREADABLE, DATA-NOT-UTF8, DATA-CORRUPT, DATA-JSONL, DATA-COLUMN.
    """
    for source in sources:
        if source == BUILTIN:
            yield from _builtin()
        elif os.path.exists(source):
            for path in _files(Path(source)):
                yield from _file(path)
        elif _looks_like_path(source):
            raise HomodistilError(
                "DATA-NOT-FOUND", f"corpus {source}: no such file or folder", "Check the path, or use --corpus builtin."
            )
        else:
            yield from _hub(source)


def _builtin() -> Iterator[str]:
    """The language reference that help() prints, then one document of docstrings per module of the standard library."""
    yield from (text for _, text in sorted(topics.topics.items()))
    root = Path(sysconfig.get_path("stdlib"))
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - _NOT_DOCUMENTATION)
        for name in sorted(names):
            if name.endswith(".py") and (text := "\n".join(_docstrings(_parse(Path(folder, name))))):
                yield text


def _parse(path: Path) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in the sources of others
        try:
            return ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):  # templates and unreadable files are not documentation
            return ast.Module([], [])


def _docstrings(node: ast.AST) -> Iterator[str]:
    documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    if documented and (text := ast.get_docstring(node)):  # type: ignore[arg-type]
        yield text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.ExceptHandler):  # expressions hold no docstring, and are most of the tree
            yield from _docstrings(child)


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


def _file(path: Path) -> Iterator[str]:
    read = next(
        read for kind, read in _READERS.items() if path.name.endswith((kind, *(kind + c for c in COMPRESSIONS)))
    )
    try:
        yield from read(path)
    except PermissionError as error:
        raise HomodistilError("DATA-UNREADABLE", f"{path}: {error.strerror}", "Grant read permission.") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
        raise HomodistilError("DATA-CORRUPT", f"{path}: {error}", _FETCH_AGAIN) from error


def _open(path: Path) -> IO[bytes]:
    """The decompressed bytes, buffered. The first read of damaged data raises one of the kinds that _file knows."""
    if path.suffix in COMPRESSIONS and path.stat().st_size == 0:
        raise EOFError("the compressed file is empty")  # gzip and zstd would read it as an empty text
    if path.suffix == ".gz":
        return io.BufferedReader(gzip.open(path, "rb"))
    if path.suffix == ".xz":
        return lzma.open(path, "rb")
    if path.suffix == ".zst":
        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"), 1 << 20)
    return path.open("rb")


def _lines(path: Path) -> Iterator[str]:
    offset = 0
    with _open(path) as stream:
        for number, line in enumerate(stream, 1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                at = f"byte 0x{line[error.start]:02x} at offset {offset + error.start} (line {number})"
                raise HomodistilError(
                    "DATA-NOT-UTF8",
                    f"{path}: {at} is not UTF-8",
                    "Convert the text, for example: iconv -f LATIN1 -t UTF-8 old.txt > new.txt",
                ) from error
            offset += len(line)
            yield text.removeprefix("\ufeff") if number == 1 else text


def _txt(path: Path) -> Iterator[str]:
    line_each = not _has_blank_line(path)
    document: list[str] = []
    for line in _lines(path):
        if line.strip():
            document.append(line.rstrip("\r\n"))
        if document and (line_each or not line.strip()):
            yield "\n".join(document)
            document = []
    if document:
        yield "\n".join(document)


def _has_blank_line(path: Path) -> bool:
    """Whether a blank line separates text; those at either end do not. Stops reading at the first."""
    text_seen = blank_seen = False
    with _open(path) as stream:  # bytes: a fault of encoding is for the reading proper to report, in its place
        for line in stream:
            blank = not line.strip()
            if blank_seen and not blank:
                return True
            text_seen = text_seen or not blank
            blank_seen = text_seen and blank
    return False


def _jsonl(path: Path) -> Iterator[str]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            text = row[COLUMN]
            text.encode("utf-8")  # an escaped lone surrogate parses, and only the tokenizer would trip over it
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"no key {error}" if isinstance(error, KeyError) else str(error)
            raise HomodistilError(
                "DATA-JSONL",
                f"{path}:{number}: not a JSON object with a text ({reason})",
                'Each line must read {"text": "..."}.',
            ) from error
        yield text


def _parquet(path: Path) -> Iterator[str]:
    if path.suffix not in COMPRESSIONS:
        with path.open("rb") as stream:
            yield from _parquet_rows(path, stream)
        return
    with _open(path) as packed, tempfile.TemporaryFile() as stream:  # parquet needs to seek
        shutil.copyfileobj(packed, stream)
        yield from _parquet_rows(path, stream)


def _parquet_rows(path: Path, stream: IO[bytes]) -> Iterator[str]:
    table = pq.ParquetFile(stream)
    schema = table.schema_arrow
    if COLUMN not in schema.names or not _is_text(schema.field(COLUMN).type):
        raise _no_column(str(path), [f"{name} ({schema.field(name).type})" for name in schema.names])
    first = 0
    for batch in table.iter_batches(batch_size=1024, columns=[COLUMN]):
        try:
            texts = batch.column(0).to_pylist()
        except UnicodeDecodeError as error:
            raise HomodistilError(
                "DATA-NOT-UTF8",
                f"{path}: byte 0x{error.object[error.start]:02x} at offset {error.start} of a text "
                f"in rows {first} to {first + batch.num_rows - 1} is not UTF-8",
                "Write the file again with its texts as UTF-8.",
            ) from error
        first += batch.num_rows
        yield from (text for text in texts if text is not None)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _no_column(where: str, columns: Sequence[str]) -> HomodistilError:
    return HomodistilError(
        "DATA-COLUMN",
        f"{where}: no column '{COLUMN}' of strings; its columns: {', '.join(columns)}",
        f"Rename the column that holds the documents to '{COLUMN}'.",
    )


def _hub(name: str) -> Iterator[str]:
    """The training split of `name`, or of one of its configurations as `name:configuration`."""
    try:
        from datasets import load_dataset  # noqa: PLC0415  seconds of import that only a hub name is worth

        path, _, configuration = name.partition(":")
        for row in load_dataset(path, configuration or None, split="train", streaming=True):
            yield _hub_text(name, row)
    except HomodistilError:
        raise
    except Exception as error:  # the hub client raises what each of its layers raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise HomodistilError(
            "DATA-NOT-FOUND",
            f"corpus {name}: no such file or folder, and not readable as a data set of the hub ({reason})",
            "Check the name and the network (HF_HUB_OFFLINE, HF_ENDPOINT), or give files, or use --corpus builtin.",
        ) from error


def _hub_text(name: str, row: dict[str, Any]) -> str:
    if not isinstance(row.get(COLUMN), str):
        raise _no_column(name, list(row))
    return str(row[COLUMN])


_READERS = {".txt": _txt, ".jsonl": _jsonl, ".parquet": _parquet}
