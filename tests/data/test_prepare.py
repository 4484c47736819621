"""A prepared folder is a pure function of its text and arguments, however it was made."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from words import CLS, LENGTH, MASK, PAD, SEP, UNK, documents, words_tokenizer

from homodistil_ds.data import copies, packing, tokens, units, workers
from homodistil_ds.data.corpus import INDEX, Corpus, read_index
from homodistil_ds.data.plan import UNFINISHED, Recipe
from homodistil_ds.data.prepare import Outcome, corpus_folder, prepare, prepare_folder
from homodistil_ds.data.progress import Progress
from homodistil_ds.data.workers import Alone
from homodistil_ds.errors import HomodistilError


def write(path: Path, texts: list[str]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def made(folder: Path, *sources: str, said: list[str] | None = None, **arguments: object) -> Outcome:
    recipe = Recipe(sources=sources, sequence_length=LENGTH, **arguments)  # type: ignore[arg-type]
    say = (said if said is not None else []).append
    return prepare_folder(recipe, words_tokenizer(), folder, Alone(), Progress(False), say)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("source") / "corpus.jsonl", documents())


@pytest.fixture(scope="module")
def corpus(source: str, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return prepare([source], words_tokenizer(), LENGTH, 1000, tmp_path_factory.mktemp("run") / "corpus")


def test_rows_are_full_and_framed(corpus: Corpus) -> None:
    for part in (corpus.train[:], corpus.held_out[:]):
        assert part.dtype == np.uint16
        assert part.shape[1] == LENGTH
        assert (part[:, 0] == CLS).all()
        assert (part[:, -1] == SEP).all()
        assert not np.isin(part, (PAD, UNK)).any()


def test_train_keeps_the_text_in_order(corpus: Corpus) -> None:
    words = corpus.train[:, 1:-1].ravel() if isinstance(corpus.train, np.ndarray) else corpus.train[:][:, 1:-1].ravel()
    words = words[words != SEP]
    assert (np.diff(words.astype(int)) > 0).all()


def test_held_out_and_train_share_no_document(corpus: Corpus) -> None:
    ordinary = [{i for i in part[:].ravel().tolist() if i > MASK} for part in (corpus.train, corpus.held_out)]
    assert not ordinary[0] & ordinary[1]
    # a document is ten consecutive ids, so that half a document on each side would show here
    assert not {(i - 5) // 10 for i in ordinary[0]} & {(i - 5) // 10 for i in ordinary[1]}


def test_short_documents_are_dropped_and_the_rest_counted(corpus: Corpus, source: str, tmp_path: Path) -> None:
    assert (corpus.documents, corpus.tokens) == (350, 3500)
    other = write(tmp_path / "other.jsonl", ["w1 w2", documents()[1], "w1 " * 20, "w1 w2"])
    index = made(tmp_path / "out", source, other).index
    counts = {"documents": 4, "kept": 1, "copies": 2, "too_short": 1, "bytes": 70 + len(documents()[1]), "tokens": 20}
    assert index["files"][1] == {"name": other, **counts}
    assert index["counts"]["documents"] == 404
    assert sum(file["tokens"] for file in index["files"]) == index["counts"]["tokens"] == 3520


@pytest.mark.parametrize("unit", [200, 5000])
@pytest.mark.parametrize("size", [1, 3])
def test_neither_units_nor_ranges_nor_shards_change_the_rows(
    unit: int, size: int, corpus: Corpus, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "UNIT_CHARACTERS", unit)
    monkeypatch.setattr(copies, "_DOCUMENTS_AT_ONCE", 1 + unit % 7)
    monkeypatch.setattr(tokens, "_BATCH_CHARACTERS", 1 + unit % 50)
    recipe = Recipe(sources=(source,), sequence_length=LENGTH)
    outcome = workers.in_processes(
        size,
        lambda these: prepare_folder(recipe, words_tokenizer(), tmp_path / "out", these, Progress(False), print),
    )
    assert outcome.index["fingerprint"] == corpus.fingerprint
    assert outcome.made == {200: 97, 5000: 5}[unit]


def test_the_first_copy_stays_over_files_units_and_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = documents()
    once = made(tmp_path / "once", write(tmp_path / "a.jsonl", texts)).index
    monkeypatch.setattr(units, "UNIT_CHARACTERS", 300)
    twice = [write(tmp_path / "b.jsonl", [*texts, texts[5], texts[3]]), write(tmp_path / "c.jsonl", texts[::-1])]
    index = made(tmp_path / "twice", *twice).index
    assert index["fingerprint"] == once["fingerprint"]
    assert index["counts"]["copies"] == 402
    assert [file["copies"] for file in index["files"]] == [2, 400]


def test_copies_are_seen_after_cleaning_unless_it_is_off(tmp_path: Path) -> None:
    texts = documents()
    source = write(tmp_path / "a.jsonl", [*texts, texts[1] + "  \r\n"])
    assert made(tmp_path / "clean", source).index["counts"]["copies"] == 1
    assert made(tmp_path / "raw", source, clean=False).index["counts"]["copies"] == 0


@pytest.mark.parametrize("texts", [[], ["w1 w2"], ["w1 " * 100]])
def test_too_little_text_is_an_error_and_leaves_nothing(texts: list[str], tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", texts)
    with pytest.raises(HomodistilError) as caught:
        prepare([source], words_tokenizer(), LENGTH, 8, tmp_path / "cache")
    assert caught.value.error_id == "DATA-EMPTY"
    assert f"{len(texts)} documents, {sum(map(len, texts))} bytes" in caught.value.what
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_run_takes_a_prepared_folder_where_it_lies(corpus: Corpus, source: str, tmp_path: Path) -> None:
    made(tmp_path / "out", source)
    taken = prepare([str(tmp_path / "out")], words_tokenizer(), LENGTH, 1000, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert taken.fingerprint == corpus.fingerprint
    assert np.array_equal(taken.train[:], corpus.train[:])
    assert np.array_equal(taken.held_out[:], corpus.held_out[:])
    with pytest.raises(HomodistilError, match="not the only source"):
        corpus_folder([str(tmp_path / "out"), source], tmp_path / "run")
    (tmp_path / "half" / UNFINISHED).mkdir(parents=True)
    with pytest.raises(HomodistilError, match="not finished"):
        corpus_folder([str(tmp_path / "half")], tmp_path / "run")


def test_a_finished_folder_is_used_again_only_for_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, folder = write(tmp_path / "a.jsonl", documents()), tmp_path / "out"
    first = made(folder, source)
    with monkeypatch.context() as patched:
        patched.setattr("homodistil_ds.data.prepare.tokenize", None)
        assert made(folder, source).index == first.index
    with pytest.raises(HomodistilError, match="other values of clean"):
        made(folder, source, clean=False)
    before = bytes_of(folder)
    write(Path(source), [*documents(), "more"])
    with pytest.raises(HomodistilError, match="other values of sources") as caught:
        made(folder, source)
    assert caught.value.error_id == "DATA-CACHE"
    assert bytes_of(folder) == before


def interrupted(parts: int, folder: Path, source: str, said: list[str] | None = None, **arguments: object) -> None:
    """A preparation that ends when it has made so many parts."""
    ready, made_part = iter(range(parts)), tokens._part

    def part(*given: object) -> object:
        if next(ready, None) is None:
            raise KeyboardInterrupt
        return made_part(*given)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tokens, "_part", part)
        with pytest.raises(KeyboardInterrupt):
            made(folder, source, said=said, **arguments)
    assert not (folder / INDEX).exists()


def never(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_killed_preparation_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "UNIT_CHARACTERS", 500)
    source = write(tmp_path / "a.jsonl", documents())
    whole = made(tmp_path / "whole", source)
    for parts in (3, 5):
        interrupted(parts, tmp_path / "out", source)
    with monkeypatch.context() as patched:
        patched.setattr("homodistil_ds.data.prepare.write_json", never)
        with pytest.raises(KeyboardInterrupt):
            made(tmp_path / "out", source)
    outcome = made(tmp_path / "out", source)
    assert (outcome.made, outcome.found) == (0, whole.made)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


def test_unfinished_work_of_a_changed_source_or_argument_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "UNIT_CHARACTERS", 500)
    source, said = write(tmp_path / "a.jsonl", documents()), []
    interrupted(3, tmp_path / "out", source, said, clean=False)
    interrupted(3, tmp_path / "out", source, said)
    os.utime(source, (1, 1))
    outcome = made(tmp_path / "out", source, said=said)
    assert outcome.found == 0
    assert [line.split(" has other values of ")[1] for line in said] == [
        "clean: beginning again",
        "sources: beginning again",
    ]


def test_a_source_that_changes_meanwhile_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "a.jsonl", documents())
    packed = packing.pack

    def change(*arguments: object) -> object:
        os.utime(source, (1, 1))
        return packed(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("homodistil_ds.data.prepare.pack", change)
    with pytest.raises(HomodistilError, match="sources changed while"):
        made(tmp_path / "out", source)


@pytest.mark.parametrize(("name", "content"), [("b.txt", b"caf\xe9"), ("b.jsonl", b"{"), ("b.txt.gz", b"no gzip")])
def test_a_bad_file_stops_unless_it_is_to_be_skipped(
    name: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "UNIT_CHARACTERS", 6000)
    good = [write(tmp_path / folder / "a.jsonl", texts) for folder, texts in (("1", documents()), ("3", ["w1 " * 20]))]
    bad = tmp_path / "2" / name
    bad.parent.mkdir()
    bad.write_bytes(content)
    sources = (good[0], str(bad), good[1])
    with pytest.raises(HomodistilError, match=str(bad)):
        made(tmp_path / "out", *sources)
    outcome = made(tmp_path / "out", *sources, skip_bad_files=True)
    assert outcome.found > 0, "a file that is skipped takes no other's work along"
    assert [skipped["name"] for skipped in outcome.index["skipped"]] == [str(bad)]
    assert [file["name"] for file in outcome.index["files"]] == good
    fresh = made(tmp_path / "fresh", *sources, skip_bad_files=True)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "fresh")
    assert fresh.index["fingerprint"] == made(tmp_path / "good", *good).index["fingerprint"]
    assert read_index(tmp_path / "out") == outcome.index
