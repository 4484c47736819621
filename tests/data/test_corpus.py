"""Reading a prepared corpus, and the order of visits."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import BertTokenizerFast
from words import LENGTH, documents, words_tokenizer

from homodistil_ds.data import packing
from homodistil_ds.data.corpus import INDEX, Corpus, Order, Rows, is_prepared, load, read_index, verify
from homodistil_ds.data.prepare import prepare
from homodistil_ds.errors import HomodistilError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A prepared folder with several shards of each part."""
    monkeypatch.setattr(packing, "SHARD_BYTES", 1000)
    source = tmp_path / "corpus.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents()))
    prepare([str(source)], words_tokenizer(), LENGTH, 1000, tmp_path / "prepared")
    return tmp_path / "prepared"


def read(folder: Path, length: int = LENGTH, held_out: int = 1000) -> Corpus:
    return load(folder, words_tokenizer(), length, held_out)


def test_rows_of_several_files_are_indexed_like_one_array() -> None:
    whole = np.arange(60).reshape(20, 3)
    rows = Rows([whole[:7], whole[7:8], whole[8:]], 3, whole.dtype)
    assert (len(rows), rows.shape, rows.dtype) == (20, (20, 3), whole.dtype)
    for index in (np.array([19, 0, 7, 7, 6, 8]), slice(5, 12), slice(None), np.zeros(0, np.int64)):
        assert np.array_equal(rows[index], whole[index])
    assert len(Rows([], 3, whole.dtype)) == 0


def test_shards_are_mapped_and_make_one_corpus(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {path.name for path in folder.iterdir()}
    assert {"train-00001.npy", "held_out-00000.npy", INDEX} <= names
    monkeypatch.undo()
    one = prepare([str(folder.parent / "corpus.jsonl")], words_tokenizer(), LENGTH, 1000, folder.parent / "one")
    several = read(folder)
    assert np.array_equal(several.train[:], one.train[:])
    assert np.array_equal(several.held_out[:], one.held_out[:])
    assert isinstance(several.train._shards[0], np.memmap)


def test_held_out_rows_are_spread_over_the_stream(folder: Path) -> None:
    whole = read(folder)
    fewer = read(folder, held_out=2)
    assert np.array_equal(fewer.held_out[:], whole.held_out[np.array([0, len(whole.held_out) // 2])])
    assert np.array_equal(fewer.train[:], whole.train[:])
    assert fewer.fingerprint == whole.fingerprint
    assert len(read(folder, held_out=0).held_out) == 0


def test_another_length_or_vocabulary_is_refused_with_the_remedy(folder: Path) -> None:
    with pytest.raises(HomodistilError, match="rows of 16 tokens, the run wants 32") as caught:
        read(folder, length=32)
    assert caught.value.error_id == "DATA-LENGTH"
    assert "--sequence_length 16" in caught.value.remedy
    other = BertTokenizerFast(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "w": 5})
    with pytest.raises(HomodistilError) as caught:
        load(folder, other, LENGTH, 8)
    assert caught.value.error_id == "DATA-VOCABULARY"


def damage_size(folder: Path) -> None:
    with (folder / "train-00000.npy").open("r+b") as stream:
        stream.truncate(200)


def remove_shard(folder: Path) -> None:
    (folder / "train-00001.npy").unlink()


def garble_index(folder: Path) -> None:
    (folder / INDEX).write_text("{")


def future_format(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(index | {"format": 99}))


@pytest.mark.parametrize("damage", [damage_size, remove_shard, garble_index, future_format])
def test_damage_is_seen_at_once(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder)
    assert is_prepared(folder)
    with pytest.raises(HomodistilError, match="damaged") as caught:
        read(folder)
    assert caught.value.error_id == "DATA-CACHE"


def test_a_folder_of_texts_is_not_called_damaged(tmp_path: Path) -> None:
    """Whose remedy would be to remove it."""
    (tmp_path / "mine.txt").write_text("A text.")
    with pytest.raises(HomodistilError, match="is not a prepared corpus") as caught:
        read_index(tmp_path)
    assert "emove" not in caught.value.remedy


def test_verify_sees_one_changed_byte(folder: Path) -> None:
    assert verify(folder)["fingerprint"] == read(folder).fingerprint
    with (folder / "train-00001.npy").open("r+b") as stream:
        stream.seek(300)
        stream.write(b"\xff")
    read(folder)
    with pytest.raises(HomodistilError, match=r"train-00001\.npy: SHA-256"):
        verify(folder)


def test_a_folder_of_texts_with_some_other_index_is_not_taken_for_a_corpus(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text('{"pages": []}')
    assert not is_prepared(tmp_path)
    assert not is_prepared(tmp_path / "nothing")


def test_order_visits_each_row_once_per_epoch() -> None:
    visits = Order(37, seed=3).rows(0, 3 * 37).reshape(3, 37)
    assert all(np.array_equal(np.sort(epoch), np.arange(37)) for epoch in visits)
    assert not np.array_equal(visits[0], visits[1])
    assert not np.array_equal(visits[0], Order(37, seed=4).rows(0, 37))


def test_order_is_a_pure_function_of_seed_and_index() -> None:
    whole = Order(7, seed=-1).rows(0, 50)
    order = Order(7, seed=-1)
    for first in (48, 0, 13, 20):
        assert np.array_equal(order.rows(first, 2), whole[first : first + 2])
    assert np.array_equal(order.rows(5, 30), whole[5:35])
    assert order.rows(3, 0).shape == (0,)
