"""Packing and order are pure functions of their arguments."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from transformers import BertTokenizerFast

from homodistil_ds.data.corpus import Corpus, Order, pack, prepare
from homodistil_ds.errors import HomodistilError

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD, UNK, CLS, SEP, MASK = range(5)
LENGTH = 16


@pytest.fixture(scope="module")
def tokenizer() -> BertTokenizerFast:
    words = SPECIAL + [f"w{n}" for n in range(4000)]
    return BertTokenizerFast(vocab={word: n for n, word in enumerate(words)})


@pytest.fixture(scope="module")
def documents() -> list[str]:
    """400 documents, no word of which occurs in two; every eighth is too short."""
    return [" ".join(f"w{10 * n + k}" for k in range(10 if n % 8 else 7)) for n in range(400)]


@pytest.fixture(scope="module")
def corpus(tokenizer: BertTokenizerFast, documents: list[str]) -> Corpus:
    return pack(documents, tokenizer, LENGTH, 1000)


def test_rows_are_full_and_framed(corpus: Corpus) -> None:
    for part in (corpus.train, corpus.held_out):
        assert part.dtype == np.uint16
        assert part.shape[1] == LENGTH
        assert (part[:, 0] == CLS).all()
        assert (part[:, -1] == SEP).all()
        assert not np.isin(part, (PAD, UNK)).any()


def test_short_documents_are_dropped_and_the_rest_counted(corpus: Corpus) -> None:
    assert corpus.documents == 350
    assert corpus.tokens == 3500


def test_train_keeps_the_text_in_order(corpus: Corpus) -> None:
    words = corpus.train[:, 1:-1].ravel()
    words = words[words != SEP]
    assert (np.diff(words.astype(int)) > 0).all()


def test_held_out_and_train_share_no_document(
    corpus: Corpus, tokenizer: BertTokenizerFast, documents: list[str]
) -> None:
    fewer = pack(documents, tokenizer, LENGTH, 3)
    for one in (corpus, fewer):
        ordinary = [{i for i in part.ravel().tolist() if i > MASK} for part in (one.train, one.held_out)]
        assert not ordinary[0] & ordinary[1]
        # a document is ten consecutive ids, so that half a document on each side would show here
        assert not {(i - 5) // 10 for i in ordinary[0]} & {(i - 5) // 10 for i in ordinary[1]}
    assert len(fewer.held_out) == 3
    assert np.array_equal(fewer.train, corpus.train)


def test_held_out_rows_are_spread_over_the_stream(
    corpus: Corpus, tokenizer: BertTokenizerFast, documents: list[str]
) -> None:
    two = pack(documents, tokenizer, LENGTH, 2).held_out
    assert np.array_equal(two, corpus.held_out[[0, len(corpus.held_out) // 2]])


def test_packing_is_deterministic_and_the_fingerprint_tells_data_apart(
    corpus: Corpus, tokenizer: BertTokenizerFast, documents: list[str]
) -> None:
    assert pack(iter(documents), tokenizer, LENGTH, 1000).fingerprint == corpus.fingerprint
    assert pack(documents[::-1], tokenizer, LENGTH, 1000).fingerprint != corpus.fingerprint
    assert len(corpus.fingerprint) == 16


def test_batches_of_documents_join_without_a_seam(
    corpus: Corpus, tokenizer: BertTokenizerFast, documents: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("homodistil_ds.data.corpus._BATCH_CHARACTERS", 100)
    assert pack(documents, tokenizer, LENGTH, 1000).fingerprint == corpus.fingerprint


@pytest.mark.parametrize("texts", [[], ["w1 w2"], ["w1 " * 100]])
def test_too_little_text_is_an_error(tokenizer: BertTokenizerFast, texts: list[str]) -> None:
    with pytest.raises(HomodistilError) as caught:
        pack(texts, tokenizer, LENGTH, 8)
    assert caught.value.error_id == "DATA-EMPTY"
    assert f"{len(texts)} documents, {sum(map(len, texts))} characters" in caught.value.what


def test_cache_gives_back_what_was_packed(
    corpus: Corpus,
    tokenizer: BertTokenizerFast,
    documents: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = tmp_path / "corpus.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    cache = tmp_path / "new" / "cache"
    first = prepare([str(source)], tokenizer, LENGTH, 1000, cache)
    with monkeypatch.context() as patched:
        patched.setattr("homodistil_ds.data.corpus.pack", None)
        second = prepare([str(source)], tokenizer, LENGTH, 1000, cache)
    for one in (first, second):
        assert dataclasses.replace(one, train=None, held_out=None) == dataclasses.replace(
            corpus, train=None, held_out=None
        )
        assert np.array_equal(one.train, corpus.train)
        assert np.array_equal(one.held_out, corpus.held_out)
    assert isinstance(second.train, np.memmap)
    assert [path.name for path in cache.parent.iterdir()] == ["cache"]
    with pytest.raises(HomodistilError, match="another sequence_length"):
        prepare([str(source)], tokenizer, LENGTH * 2, 1000, cache)
    text = source.read_text()
    source.write_text(text + text)
    with pytest.raises(HomodistilError, match="another sources"):
        prepare([str(source)], tokenizer, LENGTH, 1000, cache)
    shutil.rmtree(cache)
    prepare([str(source)], tokenizer, LENGTH, 1000, cache)
    with (cache / "train.npy").open("r+b") as stream:
        stream.truncate(200)
    with pytest.raises(HomodistilError, match="damaged") as caught:
        prepare([str(source)], tokenizer, LENGTH, 1000, cache)
    assert caught.value.error_id == "DATA-CACHE"


def test_failed_packing_leaves_no_cache(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("w1")
    with pytest.raises(HomodistilError):
        prepare([str(tmp_path / "a.txt")], tokenizer, LENGTH, 8, tmp_path / "cache")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


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
