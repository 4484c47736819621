"""Documents come out the same whatever they were packed in, and bad input is named with its place."""

import gzip
import json
import lzma
from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from homodistil_ds.data.text import documents, files_of, read_documents
from homodistil_ds.errors import HomodistilError

DOCUMENTS = ["one line\nand another", "grüße, 世界", 'quotes " and \\ backslash']


def write(path: Path, content: bytes) -> Path:
    """Compress as the suffix of `path` says."""
    if path.suffix == ".zst":
        with pa.output_stream(str(path), compression="zstd") as stream:
            stream.write(content)
    else:
        path.write_bytes({".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)(content))
    return path


def content(kind: str, documents: list[str]) -> bytes:
    if kind == ".txt":
        return "\n\n".join(documents).encode()
    if kind == ".jsonl":
        return "".join(json.dumps({"text": text, "id": 1}) + "\n" for text in documents).encode()
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": range(len(documents)), "text": documents}), sink)
    return sink.getvalue().to_pybytes()


def fault(*sources: Path | str) -> HomodistilError:
    with pytest.raises(HomodistilError) as caught:
        list(read_documents([str(source) for source in sources]))
    return caught.value


@pytest.mark.parametrize("packed", ["", ".gz", ".xz", ".zst"])
@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".parquet"])
def test_every_format_reads_the_same_documents(tmp_path: Path, kind: str, packed: str) -> None:
    path = write(tmp_path / f"corpus{kind}{packed}", content(kind, DOCUMENTS))
    assert list(read_documents([str(path)])) == DOCUMENTS


@pytest.mark.parametrize("packed", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("kept", [0.5, 0.0])
@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".parquet"])
def test_truncated_compressed_file_is_named(tmp_path: Path, kind: str, packed: str, kept: float) -> None:
    path = write(tmp_path / f"corpus{kind}{packed}", content(kind, [str(n**9) for n in range(999)]))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    error = fault(path)
    assert error.error_id == "DATA-CORRUPT"
    assert str(path) in error.what


@pytest.mark.parametrize("suffix", [".parquet", ".txt.gz", ".txt.xz", ".txt.zst"])
def test_garbage_is_corrupt(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"corpus{suffix}"
    path.write_bytes(b"this is neither compressed nor parquet")
    error = fault(path)
    assert error.error_id == "DATA-CORRUPT"
    assert str(path) in error.what


def test_lines_are_documents_only_without_blank_lines_between_them(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\n")
    assert list(read_documents([str(path)])) == ["one", "two"]
    path.write_bytes(b"\none\ntwo\n \n\nthree\n")
    assert list(read_documents([str(path)])) == ["one\ntwo", "three"]


def test_folder_is_read_recursively_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "c.txt").write_text("third")
    (tmp_path / "b" / ".txt").write_text("first")
    (tmp_path / "b" / "a.jsonl").write_text('{"text": "second"}')
    (tmp_path / "a.md").write_text("not read")
    assert list(read_documents([str(tmp_path)])) == ["first", "second", "third"]


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_not_utf8_gives_offset_and_line(tmp_path: Path, packed: str) -> None:
    path = write(tmp_path / f"latin.txt{packed}", b"plain\n\ncaf\xe9\n")
    error = fault(path)
    assert error.error_id == "DATA-NOT-UTF8"
    assert error.what == f"{path}: byte 0xe9 at offset 10 (line 3) is not UTF-8"


@pytest.mark.parametrize("line", ['{"text": ', '{"body": "x"}', '{"text": 5}', "[1]", '{"text": "\\ud800"}'])
def test_bad_jsonl_gives_file_and_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line + "\n")
    error = fault(path)
    assert error.error_id == "DATA-JSONL"
    assert f"{path}:3:" in error.what


@pytest.mark.parametrize("columns", [{"body": ["x"], "n": [1]}, {"text": [1], "n": [1]}])
def test_missing_column_lists_the_others(tmp_path: Path, columns: dict[str, list[object]]) -> None:
    path = tmp_path / "corpus.parquet"
    pq.write_table(pa.table(columns), path)
    error = fault(path)
    assert error.error_id == "DATA-COLUMN"
    assert str(path) in error.what
    assert "n (int64)" in error.what


def test_parquet_nulls_and_dictionaries(tmp_path: Path) -> None:
    path = tmp_path / "corpus.parquet"
    pq.write_table(pa.table({"text": pa.array(["a", None, "b"]).dictionary_encode()}), path)
    assert list(read_documents([str(path)])) == ["a", "b"]


def test_parquet_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "corpus.parquet"
    bad = pa.Array.from_buffers(pa.string(), 1, pa.array([b"caf\xe9"]).buffers())
    pq.write_table(pa.table({"text": bad}), path)
    error = fault(path)
    assert error.error_id == "DATA-NOT-UTF8"
    assert f"{path}: byte 0xe9 at offset 3" in error.what


@pytest.mark.parametrize("source", ["./nothing", "/no/such", "a/b/c", "missing.txt", "missing.jsonl.zst"])
def test_missing_path_is_not_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    error = fault(source)
    assert error.error_id == "DATA-NOT-FOUND"
    assert source in error.what


def test_folder_without_documents_and_unknown_suffix(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("x")
    assert fault(tmp_path).error_id == "DATA-NO-FILES"
    assert fault(tmp_path / "notes.md").error_id == "DATA-SUFFIX"


def test_hub_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str, part: str | None, **_: object) -> None:
        raise ConnectionError(f"Couldn't reach {name}")

    monkeypatch.setattr(datasets, "load_dataset", lambda name, part, **_: [{"text": f"{name} {part}"}])
    assert list(read_documents(["owner/name", "owner/name:part"])) == ["owner/name None", "owner/name part"]
    monkeypatch.setattr(datasets, "load_dataset", lambda name, part, **_: [{"body": name}])
    assert "body" in fault("owner/name").what
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    error = fault("owner/name")
    assert error.error_id == "DATA-NOT-FOUND"
    assert "Couldn't reach owner/name" in error.what


def test_pieces_of_a_hub_data_set_are_read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(pieces: list[int]) -> Iterator[dict[str, str]]:
        yield from ({"text": f"{piece}.{row}"} for piece in pieces for row in range(2))

    data = datasets.IterableDataset.from_generator(rows, gen_kwargs={"pieces": [0, 1, 2]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: data)
    files = files_of("owner/name")
    assert [list(documents(file)) for file in files] == [["0.0", "0.1"], ["1.0", "1.1"], ["2.0", "2.1"]]
    assert {file.label for file in files} == {"owner/name"}


def test_reading_is_lazy(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("first")
    texts = read_documents([str(tmp_path / "a.txt"), "/no/such/file"])
    assert next(texts) == "first"


def test_builtin_is_more_than_a_megabyte_of_documents() -> None:
    documents = list(read_documents(["builtin"]))
    assert sum(map(len, documents)) > 1e6
    assert len(documents) > 300
    assert all(text.strip() for text in documents)
