"""Held-out figures are means over rows, however the rows are batched."""

from pathlib import Path

import pytest
import torch
from family_models import save_teacher, tokenizer_for
from tiny_run import WORDS
from tool_modules import tool

from homodistil_ds.data.predicted import Batch
from homodistil_ds.data.prepare import prepare
from homodistil_ds.evaluation.heldout import Forward, evaluate
from homodistil_ds.models.forward import Activations

ROWS, PREDICTED, VOCABULARY = 7, 3, 11


def model(seed: int) -> Forward:
    """Logits [B, K, V] that depend on the token at each predicted position."""
    table = 3 * torch.randn(50, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    return lambda ids, positions: Activations(logits=table[ids.gather(1, positions)])


def rows() -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(
        torch.randint(0, 50, (ROWS, 9), generator=generator),
        torch.arange(PREDICTED).repeat(ROWS, 1),
        torch.randint(0, VOCABULARY, (ROWS, PREDICTED), generator=generator),
    )


def split(whole: Batch, sizes: list[int]) -> list[Batch]:
    parts = (tensor.split(sizes) for tensor in (whole.input_ids, whole.positions, whole.labels))
    return [Batch(*tensors) for tensors in zip(*parts, strict=True)]


def test_figures_are_the_mean_over_predicted_tokens_in_float64() -> None:
    whole = rows()
    result = evaluate(model(1), model(2), [(whole, ROWS)])
    own, shown = (model(seed)(whole.input_ids, whole.positions).logits for seed in (1, 2))
    assert own is not None
    assert shown is not None
    own, shown = own.double().log_softmax(-1), shown.double().log_softmax(-1)
    labels = whole.labels[..., None]
    assert result.loss == pytest.approx(-float(own.gather(2, labels).mean()), rel=1e-6)
    assert result.teacher_loss == pytest.approx(-float(shown.gather(2, labels).mean()), rel=1e-6)
    expected = float((shown.exp() * (shown - own)).sum(-1).mean())
    assert result.discrepancy_kl == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("sizes", [[1] * 7, [3, 4], [4, 2, 1]])
def test_unequal_batches_give_the_figures_of_the_whole(sizes: list[int]) -> None:
    whole = evaluate(model(1), model(2), [(rows(), ROWS)])
    filler = (rows(), 0)  # keeps ranks together, counts for nothing
    parts = evaluate(model(1), model(2), [*zip(split(rows(), sizes), sizes, strict=True), filler])
    for name, value in vars(whole).items():
        assert getattr(parts, name) == pytest.approx(value, rel=1e-6)


def test_a_student_that_is_its_teacher_has_no_discrepancy() -> None:
    result = evaluate(model(1), model(1), [(rows(), ROWS)])
    assert result.discrepancy_kl == 0.0
    assert result.loss == result.teacher_loss


def test_without_a_teacher_its_figures_are_none_and_the_loss_the_same() -> None:
    alone = evaluate(model(1), None, [(rows(), ROWS)])
    assert alone.teacher_loss is None
    assert alone.discrepancy_kl is None
    assert alone.loss == evaluate(model(1), model(2), [(rows(), ROWS)]).loss


@pytest.mark.parametrize(
    ("length", "words", "named"),
    [
        (128, WORDS, "[CFG-LENGTH]"),
        (32, WORDS[::-1], "[DATA-TOKENIZER]"),  # as many words, in another order
        (32, [*WORDS, "more"], "[DATA-TOKENIZER]"),
    ],
)
def test_the_tool_measures_nothing_that_does_not_fit(
    length: int, words: list[str], named: str, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The models know 64 positions; the rows of the corpus are of 128, or the teacher speaks other words."""
    models = save_teacher("gpt2", WORDS, tmp_path / "model"), save_teacher("gpt2", words, tmp_path / "teacher")
    prepare([str(tiny_corpus)], tokenizer_for("gpt2", WORDS), length, 8, tmp_path / "corpus")
    flags = ["--model", str(models[0]), "--teacher", str(models[1]), "--corpus", str(tmp_path / "corpus")]
    assert tool("evaluate_heldout").main(flags) in (2, 4)
    assert named in capsys.readouterr().err
