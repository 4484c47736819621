"""The documents of one file, whatever it is packed in. Bad input is named with its place."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from homodistil_ds.errors import HomodistilError

COMPRESSIONS = (".gz", ".xz", ".zst")
SUFFIXES = tuple(kind + packed for kind in (".txt", ".jsonl", ".parquet") for packed in ("", *COMPRESSIONS))
COLUMN = "text"
DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException)
"""What opening or reading a file raises that ends early or was damaged."""
_FETCH_AGAIN = "Copy or download the file again; it ends early or was damaged on the way."


def read_file(path: Path) -> Iterator[str]:
    read = next(
        read for kind, read in _READERS.items() if path.name.endswith((kind, *(kind + c for c in COMPRESSIONS)))
    )
    try:
        yield from read(path)
    except PermissionError as error:
        raise HomodistilError("DATA-UNREADABLE", f"{path}: {error.strerror}", "Grant read permission.") from error
    except DAMAGE as error:
        raise HomodistilError("DATA-CORRUPT", f"{path}: {error}", _FETCH_AGAIN) from error


def _open(path: Path) -> IO[bytes]:
    """The decompressed bytes, buffered. The first read of damaged data raises one of the kinds that read_file knows."""
    if path.suffix in COMPRESSIONS and path.stat().st_size == 0:
        raise EOFError("the compressed file is empty")  # gzip and zstd would read it as an empty text
    if path.suffix == ".gz":
        return io.BufferedReader(gzip.open(path, "rb"))
    if path.suffix == ".xz":
        return lzma.open(path, "rb")
    if path.suffix == ".zst":
        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"), 1 << 20)
    return path.open("rb")


def lines(path: Path) -> Iterator[str]:
    """The lines of a text file with their ends; only a line feed ends one. Raises DATA-NOT-UTF8, or one of DAMAGE."""
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
    for line in lines(path):
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
    for number, line in enumerate(lines(path), 1):
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
    if COLUMN not in schema.names or not is_text(schema.field(COLUMN).type):
        raise no_column(str(path), [f"{name} ({schema.field(name).type})" for name in schema.names])
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


def is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def no_column(where: str, columns: Sequence[str]) -> HomodistilError:
    return HomodistilError(
        "DATA-COLUMN",
        f"{where}: no column '{COLUMN}' of strings; its columns: {', '.join(columns)}",
        f"Rename the column that holds the documents to '{COLUMN}'.",
    )


_READERS = {".txt": _txt, ".jsonl": _jsonl, ".parquet": _parquet}
