"""Spans are a pure function of (seed, index of the row); what encoder and decoder read makes up the row again."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from homodistil_ds.data.spans import Spans, counts, said_of, spans_for
from homodistil_ds.errors import HomodistilError

START, END, FIRST = 0, 1, 500
SPANS = Spans(tuple(range(FIRST, FIRST - 100, -1)), END, START, 0.15)


def rows(count: int, length: int = 128) -> np.ndarray:
    return np.random.default_rng(0).integers(2, 400, (count, length)).astype("<u2")


def put_back(shown: list[int], said: list[int]) -> list[int]:
    """The row behind what an encoder was shown and a decoder says."""
    assert (shown[-1], said[-1]) == (END, END)
    spans: dict[int, list[int]] = {}
    for token in said[:-1]:
        if token in SPANS.sentinels:
            own = spans.setdefault(token, [])
        else:
            own.append(token)
    assert all(spans.values())
    return [part for token in shown[:-1] for part in spans.get(token, [token])]


@pytest.mark.parametrize("length", [2, 5, 7, 32, 128, 511])
def test_encoder_and_decoder_together_hold_the_row(length: int) -> None:
    tokens = rows(20, length)
    batch = SPANS.batch(tokens, np.arange(20), 0)
    hidden, spans = counts(length, 0.15)
    assert batch.input_ids.shape == (20, length - hidden + spans + 1)
    assert batch.labels.shape == batch.decoder_ids.shape == batch.positions.shape == (20, hidden + spans + 1)
    assert batch.labels.shape[1] == said_of(length, 0.15) == round(SPANS.share(length) * length)
    assert torch.equal(batch.decoder_ids[:, 1:], batch.labels[:, :-1])
    assert bool((batch.decoder_ids[:, 0] == START).all())
    assert torch.equal(batch.positions[0], torch.arange(hidden + spans + 1))
    sentinels = torch.tensor(SPANS.sentinels[:spans])
    for row, shown, said in zip(tokens, batch.input_ids, batch.labels, strict=True):
        for ids in (shown, said):
            assert torch.equal(ids[torch.isin(ids, sentinels)], sentinels), "each once, in order"
        assert put_back(shown.tolist(), said.tolist()) == row.tolist()


def test_the_published_share_makes_spans_of_three() -> None:
    assert counts(512, 0.15) == (77, 26)


def test_split_batch_equals_the_whole_and_draws_differ() -> None:
    tokens, indices = rows(8), np.array([3, 0, 7, 1 << 40, 12, 5, 6, 11])
    whole = SPANS.batch(tokens, indices, 5)
    parts = [SPANS.batch(tokens[half], indices[half], 5) for half in (slice(0, 3), slice(3, 8))]
    for name in ("input_ids", "labels", "decoder_ids"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    others = [SPANS.batch(tokens, indices, 6), SPANS.batch(tokens, indices + 1, 5)]
    for other in others:
        assert not bool((other.input_ids == whole.input_ids).all(1).any())


def test_every_place_is_as_often_in_a_span_but_the_ends() -> None:
    """A row begins with what is shown and ends with a span, so both ends differ."""
    tokens = np.tile(np.arange(64, dtype="<u2") + 2, (4000, 1))
    said = SPANS.batch(tokens, np.arange(4000), 0).labels
    often = np.bincount(said[said < 100].numpy(), minlength=66)[2:66] / 4000
    assert often[0] == 0
    assert often[-1] == 1
    assert often[10:50].min() > 0.10
    assert often[10:50].max() < 0.20


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    names = ["<pad>", "</s>", "<unk>", "word", "<extra_id_10>", "<extra_id_1>", "<extra_id_0>"]
    model = WordLevel({name: place for place, name in enumerate(names)}, unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **special)


def test_sentinels_are_found_by_their_numbers() -> None:
    assert spans_for(tokenizer(eos_token="</s>"), 3, 0.2, 20) == Spans((6, 5, 4), 1, 3, 0.2)


@pytest.mark.parametrize(
    ("special", "start", "length", "words"),
    [
        ({}, 0, 20, "lacks a token for the end"),
        ({"eos_token": "</s>"}, None, 20, "no decoder_start_token_id"),
        ({"eos_token": "</s>", "cls_token": "word", "sep_token": "</s>"}, 0, 20, "tokens of its own"),
        ({"eos_token": "</s>"}, 0, 80, "4 spans, the tokenizer .* names 3"),
    ],
)
def test_what_would_not_be_t5s_objective_is_refused(
    special: dict[str, str], start: int | None, length: int, words: str
) -> None:
    with pytest.raises(HomodistilError, match=words) as caught:
        spans_for(tokenizer(**special), start, 0.15, length)
    assert caught.value.error_id == "DATA-SENTINELS"


def test_words_alone_hold_no_sentinels() -> None:
    plain = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"</s>": 0}, unk_token="</s>")), eos_token="</s>"
    )
    with pytest.raises(HomodistilError, match="lacks <extra_id_0>"):
        spans_for(plain, 0, 0.15, 20)
