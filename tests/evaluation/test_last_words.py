"""Last words by hand, and against transformers asked passage by passage."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from family_models import save_teacher, tokenizer_for
from tiny_run import WORDS
from tokenizers import ByteLevelBPETokenizer
from tool_modules import tool
from transformers import AutoModelForCausalLM, GPT2TokenizerFast, PreTrainedTokenizerBase

from homodistil_ds.data.tokens import Tokens
from homodistil_ds.errors import HomodistilError
from homodistil_ds.evaluation.heldout import Forward
from homodistil_ds.evaluation.last_words import (
    NOTHING,
    Passage,
    batches,
    encode,
    judge,
    measure,
    read_passages,
)
from homodistil_ds.models.families import plan_for
from homodistil_ds.models.forward import Activations, Teacher
from homodistil_ds.models.loading import load_teacher

POSITIONS = 64


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    """Byte-level pieces, as GPT-2 has them: a word takes its space along, and a rare one is several tokens."""
    trained = ByteLevelBPETokenizer()
    text = ["the cat sat on the mat and the cat ate"] * 3
    trained.train_from_iterator(text, vocab_size=300, special_tokens=["<end>"], show_progress=False)
    pieces = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in pieces["merges"]]
    return GPT2TokenizerFast(vocab=pieces["vocab"], merges=merges, bos_token="<end>", eos_token="<end>")


def spelled(tokenizer: PreTrainedTokenizerBase, passage: Passage) -> tuple[str, str]:
    """Context and word."""
    at = len(passage.ids) - passage.word
    return tokenizer.decode(passage.ids[:at]), tokenizer.decode(passage.ids[at:])


def test_the_word_takes_its_space_along_and_all_of_its_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ["the cat sat on the mat", "the\ncat  sat \n", " on the xyz"]
    passages = encode(texts, Tokens(tokenizer), POSITIONS)
    assert (len(passages.usable), passages.shortened, passages.skipped) == (3, 0, {})
    assert [spelled(tokenizer, passage) for passage in passages.usable] == [
        ("the cat sat on the", " mat"),
        ("the\ncat", "  sat"),
        (" on the", " xyz"),
    ]
    assert passages.usable[0].word == 1
    assert passages.usable[2].word == len(tokenizer(" xyz")["input_ids"]) > 1


def test_what_cannot_be_asked_is_counted_and_long_contexts_lose_their_beginning(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    texts = ["", " \n", "cat", "the cat sat on the mat", "the " + "x" * 4]
    passages = encode(texts, Tokens(tokenizer), 4)
    assert passages.skipped == {"empty": 2, "one word": 1, "longer than the model's positions": 1}
    assert passages.shortened == 1
    (only,) = passages.usable
    assert len(only.ids) - 1 == 4, "the last token is predicted, not read"
    assert spelled(tokenizer, only) == (" cat sat on the", " mat")


def test_a_shortened_passage_keeps_how_rows_begin() -> None:
    words = tokenizer_for("llama", WORDS)
    passages = encode([" ".join(WORDS[:9]), "ban \u200b"], Tokens(words), 5)
    (only,) = passages.usable
    assert only.ids == [words.cls_token_id, *words.convert_tokens_to_ids(WORDS[4:9])]
    assert passages.skipped == {"no tokens": 1}


def test_words_are_judged_whole() -> None:
    """Of three words of one, two and two tokens the first is right, the second half right, the third right."""
    labels = torch.tensor([[1, NOTHING], [0, 2], [2, 2]])
    chances = torch.tensor(
        [
            [[0.1, 0.8, 0.1], [0.9, 0.05, 0.05]],
            [[0.6, 0.2, 0.2], [0.5, 0.1, 0.4]],
            [[0.1, 0.2, 0.7], [0.3, 0.3, 0.4]],
        ]
    )
    right, says = judge(chances.log(), labels)
    assert right.tolist() == [True, False, True]
    assert says.exp().tolist() == pytest.approx([0.8, 0.6 * 0.4, 0.7 * 0.4])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_figures_are_means_over_passages(size: int) -> None:
    """Each token is followed by the next one with chance 1/2, by any other one of four with 1/8."""
    table = torch.full((5, 5), 1 / 8) + torch.eye(5).roll(1, dims=1) * 3 / 8
    model: Forward = lambda ids, positions: Activations(logits=table.log()[ids.gather(1, positions)])  # noqa: E731
    passages = [Passage([0, 1, 2], 1), Passage([4, 3, 4, 0], 2), Passage([2, 2, 0], 1)]
    found = measure(model, passages, size)
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.perplexity == pytest.approx((2 * 4 * 8) ** (1 / 3))


def test_rows_are_padded_behind_their_end() -> None:
    (batch,) = batches([Passage([7, 8], 1), Passage([1, 2, 3, 4], 2)], 2)
    assert batch.input_ids.tolist() == [[1, 2, 3], [7, 0, 0]]
    assert batch.positions.tolist() == [[1, 2], [0, 0]]
    assert batch.labels.tolist() == [[3, 4], [8, NOTHING]]


@pytest.fixture(scope="module", params=["llama-tied", "gpt2", "opt"])
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teacher(request.param, WORDS, tmp_path_factory.mktemp("decoders") / "model")


def test_a_model_is_what_transformers_says_of_each_passage_alone(decoder: Path) -> None:
    """Words of one to three tokens, of which some are made what the model itself continues with."""
    model, _ = load_teacher(str(decoder))
    plain = AutoModelForCausalLM.from_pretrained(decoder, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    passages, right, chances = [], [], []
    for place in range(12):
        word = 1 + place % 3
        context = torch.randint(5, 185, (1, 3 + 4 * (place % 5)), generator=generator)
        ending = torch.randint(5, 185, (1, word), generator=generator)
        if place % 2:
            ending = plain.generate(context, max_new_tokens=word, min_new_tokens=word, do_sample=False)[:, -word:]
        whole = torch.cat([context, ending], 1)
        with torch.no_grad():
            says = plain(whole).logits[0, -word - 1 : -1].log_softmax(-1)
        right.append(bool((says.argmax(-1) == ending[0]).all()))
        chances.append(float(says.gather(1, ending.T).sum()))
        passages.append(Passage(whole[0].tolist(), word))
    assert 5 < sum(right) < 12
    own = Teacher(model, plan_for(model.config).family, {"logits"})
    for size in (1, 5, 12):
        found = measure(lambda *shown: own(*shown, reads={"logits"}), passages, size)
        assert found.accuracy == sum(right) / 12
        assert found.perplexity == pytest.approx(math.exp(-sum(chances) / 12), rel=1e-4)


def test_passages_are_read_by_text_or_by_line(tmp_path: Path) -> None:
    lines, plain, packed = (tmp_path / name for name in ("a.jsonl", "b.txt", "c.txt.jsonl"))
    for path in (lines, packed):
        path.write_text('{"text": "one\\ntwo"}\n{"text": ""}\n', encoding="utf-8")
        assert read_passages(path) == ["one\ntwo", ""]
    plain.write_text("one two\nthree four\n\nfive six\n", encoding="utf-8")
    assert read_passages(plain) == ["one two", "three four", "five six"]
    with pytest.raises(HomodistilError) as raised:
        read_passages(tmp_path / "d.jsonl")
    assert raised.value.error_id == "DATA-NOT-FOUND"


def test_the_tool_asks_both_models_the_same(decoder: Path, tmp_path: Path) -> None:
    teacher = save_teacher("llama", WORDS, tmp_path / "teacher")
    (tmp_path / "passages.txt").write_text("ban bas bat\n\nban\nfot bas\n", encoding="utf-8")
    figures = {}
    for name, models in {"both": [decoder, "--teacher", teacher], "teacher": [teacher]}.items():
        out = tmp_path / f"{name}.json"
        arguments = ["--model", *models, "--last_words", tmp_path / "passages.txt", "--output", out]
        assert tool("evaluate_heldout").main([str(argument) for argument in arguments]) == 0
        figures[name] = json.loads(out.read_text(encoding="utf-8"))
        assert figures[name].keys() == {"model", "last_words"}
    both, alone = (figures[name]["last_words"] for name in ("both", "teacher"))
    assert (both["passages"], both["skipped"]) == (2, {"one word": 1})
    assert (both["teacher_accuracy"], both["teacher_perplexity"]) == (alone["accuracy"], alone["perplexity"])
    assert both["perplexity"] != alone["perplexity"]
    assert alone["teacher_accuracy"] is None


def test_bad_input_is_refused_in_one_block(
    tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_teacher("llama-tied", WORDS, tmp_path / "model")
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    good.write_text("ban bas\n", encoding="utf-8")
    bad.write_text("ban\n", encoding="utf-8")
    for arguments, code, said in (
        (["--model", model, "--last_words", bad], 4, "error[DATA-LAST-WORDS]"),
        (["--model", model, "--last_words", tmp_path / "none.jsonl"], 4, "error[DATA-NOT-FOUND]"),
        (["--model", model, "--last_words", good, "--teacher", tiny_teacher], 2, "error[CFG-FAMILY]"),
        (["--model", tiny_teacher, "--last_words", good], 2, "error[CFG-FAMILY]"),
        (["--model", model], 2, "error[CFG-FLAG]"),
    ):
        assert tool("evaluate_heldout").main([str(argument) for argument in arguments]) == code
        told = capsys.readouterr()
        first, *remedy = told.err.splitlines()
        assert (said in first, told.out) == (True, "")
        assert len(remedy) == 2, "what to do next, and what happened to earlier work"
