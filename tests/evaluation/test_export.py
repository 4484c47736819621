"""What decides about an export: which folders are taken, what a comparison sees, that nothing is left half done."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from family_models import MASKED, tiny_config, tiny_model
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, BertConfig, BertForMaskedLM

from homodistil_ds.errors import HomodistilError
from homodistil_ds.evaluation import onnx_export, plain, proof
from homodistil_ds.evaluation.card import export_section
from homodistil_ds.evaluation.export import staged, student_of
from homodistil_ds.evaluation.inputs import sample_inputs
from homodistil_ds.models.families import plan_for


@pytest.fixture
def run(tiny_teacher: Path, tmp_path: Path) -> Path:
    """A finished run directory, as far as an export looks at it."""
    shutil.copytree(tiny_teacher, tmp_path / "run" / "student")
    for name in ("run_config.json", "report.json"):
        (tmp_path / "run" / name).write_text("{}")
    return tmp_path / "run"


def test_a_run_and_a_model_folder_are_the_same_source(run: Path) -> None:
    first, second = student_of(run), student_of(run / "student")
    assert (first.name, second.name, first.stored) == ("run", "student", torch.float32)
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name])


def refused(run: Path) -> HomodistilError:
    with pytest.raises(HomodistilError) as raised:
        student_of(run)
    return raised.value


def test_a_run_that_has_not_finished_is_refused(run: Path) -> None:
    (run / "report.json").unlink()
    assert "no finished student" in refused(run).what


def test_pickles_are_refused_beside_safetensors_too(run: Path) -> None:
    (run / "student" / "pytorch_model.bin").write_bytes(b"")
    error = refused(run)
    assert (error.error_id, "pytorch_model.bin" in error.what) == ("DATA-PICKLE", True)
    (run / "student" / "model.safetensors").unlink()
    assert refused(run).error_id == "DATA-PICKLE"


def test_cut_off_weights_are_refused(run: Path) -> None:
    weights = run / "student" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    assert refused(run).error_id == "DATA-CORRUPT"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"architectures": ["BertForSequenceClassification"]}, "weights are missing"),
        ({"architectures": ["BertModel"]}, "its architecture is BertModel"),
        ({"architectures": None}, "not named"),
        ({"intermediate_size": 65}, "cannot be loaded"),
    ],
)
def test_a_configuration_of_other_weights_is_refused(changed: dict[str, object], words: str, run: Path) -> None:
    path = run / "student" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    assert words in refused(run).what


def test_the_difference_is_in_units_of_each_batch() -> None:
    small, large = torch.tensor([[1.0, -2.0]]), torch.tensor([[1000.0]])
    assert proof.difference([small, large], [small, large]) == 0
    assert proof.difference([small, large], [small + 0.1, large]) == pytest.approx(0.05)
    assert proof.difference([torch.zeros(2)], [torch.zeros(2)]) == 0
    assert not proof.difference([small, large], [small, large * float("nan")]) <= proof.PARITY
    assert not proof.difference([torch.zeros(2)], [torch.ones(2)]) <= proof.PARITY


def fill(out: Path, then: Callable[[], object]) -> None:
    with staged(out) as staging:
        (staging / "mine").write_text("half")
        then()


def test_nothing_is_left_of_an_export_that_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        fill(tmp_path / "out", lambda: 1 / 0)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_whole_and_only_where_nothing_was(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with staged(out) as staging:
        (staging / "weights").write_text("whole")
        assert not out.exists()
    assert (out / "weights").read_text() == "whole"
    with pytest.raises(HomodistilError, match="already holds something"), staged(out):
        pytest.fail("not begun")
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_what_comes_in_between_is_not_written_over(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(HomodistilError, match="cannot be written"):
        fill(out, lambda: (out.mkdir(), (out / "theirs").write_text("")))
    assert [path.name for path in out.rglob("*")] == ["theirs"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_without_the_onnx_packages_the_remedy_is_a_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "NEEDED", ("onnx", "onnx_runtime_that_is_not_there"))
    with pytest.raises(HomodistilError, match="onnx_runtime_that_is_not_there") as raised:
        onnx_export.check_installed()
    assert raised.value.exit_code == 3
    assert "pip install '.[onnx]'" in raised.value.remedy


def test_no_other_module_imports_an_onnx_package() -> None:
    modules = Path(onnx_export.__file__).parents[1].rglob("*.py")
    importing = {path.name for path in modules if re.search(r"^\s*(import|from) onnx", path.read_text(), re.MULTILINE)}
    assert importing == {onnx_export.SCRIPT.name}


@pytest.mark.parametrize("family", MASKED)
def test_inputs_fit_every_family(family: str) -> None:
    model = tiny_model(family)
    longest = plain.positions(model)
    inputs = sample_inputs(model, 3, 10_000)
    assert inputs["input_ids"].shape == (3, longest)
    assert inputs["attention_mask"].sum(1).tolist() == [longest, longest, longest // 2]
    assert torch.isfinite(model(**inputs).logits).all()
    if not any("position" in row.axes for row in plan_for(model.config).family.rows):
        return  # relative positions have no end
    longer = {name: torch.cat([tensor, tensor[:, :1]], dim=1) for name, tensor in inputs.items()}
    with pytest.raises((IndexError, RuntimeError)):  # so `longest` is the longest
        model(**longer)


def test_latencies_have_a_figure_for_every_model_and_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "LATENCY_ROUNDS", {1: 2, 4: 1})
    sizes = {"vocab_size": 50, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8}
    models = [
        BertForMaskedLM(BertConfig(**sizes, intermediate_size=8, max_position_embeddings=positions)).eval()
        for positions in (40, 24)
    ]
    measured = plain.latencies(models)
    assert (measured["length"], measured["threads"]) == (24, torch.get_num_threads())
    assert list(measured["seconds"]) == [1, 4]
    assert all(len(row) == 2 and min(row) > 0 for row in measured["seconds"].values())


def test_the_card_says_what_rounding_did_and_how_to_run_onnx() -> None:
    text = export_section("float16", 9.3e-4, ["input_ids", "attention_mask"])
    assert "float16" in text
    assert "9.3e-04" in text
    assert '{"input_ids": input_ids, "attention_mask": attention_mask}' in text
    assert "onnx" not in export_section("float32", 0.0, [])


@pytest.mark.parametrize(
    ("variant", "named", "loader"),
    [
        ("llama", None, AutoModelForCausalLM),
        ("gpt2", ["GPT2Model"], AutoModelForCausalLM),
        ("bert", ["BertModel"], AutoModelForMaskedLM),
    ],
)
def test_a_folder_that_names_no_language_model_is_one_of_its_kind(
    variant: str, named: list[str] | None, loader: type
) -> None:
    config = tiny_config(variant)
    config.architectures = named
    assert plain.auto_class(config) is loader


@pytest.mark.parametrize("named", [["T5WithLMHeadModel"], None])
def test_an_encoder_with_a_decoder_is_loaded_as_one_whatever_its_folder_calls_it(named: list[str] | None) -> None:
    config = tiny_config("t5")
    config.architectures = named
    assert plain.auto_class(config) is AutoModelForSeq2SeqLM
