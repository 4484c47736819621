"""Exports as users make and use them: real folders, real fresh processes, real ONNX under onnxruntime."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from family_models import save_teacher
from safetensors.torch import load_file
from tiny_run import WORDS
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from homodistil_ds.errors import HomodistilError
from homodistil_ds.evaluation import export, from_checkpoint, onnx_script, proof
from homodistil_ds.evaluation.inputs import SHAPES, sample_inputs
from homodistil_ds.runtime.checkpoint import Checkpoint
from integration.processes import TRAIN, run

TOOL = TRAIN.parent.parent / "tools" / "export_student.py"
ENCODERS = ("bert", "roberta", "distilbert", "electra", "deberta-v2", "modernbert")


@pytest.fixture(scope="module")
def finished(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a student in float32."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    shutil.copytree(tiny_teacher, folder / "student")
    (folder / "student" / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# The card\n", encoding="utf-8")
    (folder / "report.json").write_text("{}", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command with everything it can write; nothing but its own lines reaches the console."""
    out = tmp_path_factory.mktemp("exports") / "out"
    arguments = ["--run", str(finished), "--output_dir", str(out), "--dtype", "float16", "--onnx"]
    done = run([sys.executable, str(TOOL), *arguments])
    assert (done.code, done.err) == (0, ""), done.shown
    first, *others = done.out.splitlines()
    assert first.startswith(f"{out}: ")
    assert len(others) == 3, done.out
    assert "rounding to float16 itself moves them by" in others[1]
    return out


def test_the_folder_is_whole_and_in_the_asked_format(exported: Path, finished: Path) -> None:
    names = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "onnx/model.onnx"} <= names
    assert [path.name for path in exported.parent.iterdir()] == ["out"], "no staging folder stays"
    stored = load_file(exported / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    source = load_file(finished / "student" / "model.safetensors")
    assert all(torch.equal(stored[name], tensor.half()) for name, tensor in source.items())
    card = (exported / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: apache-2.0\n---\n\n# The card\n\n## Export")
    mine, theirs = (AutoTokenizer.from_pretrained(folder).get_vocab() for folder in (exported, finished / "student"))
    assert mine == theirs


def test_onnx_takes_any_shape_and_computes_what_the_folder_does(exported: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(exported).float().eval()
    session = onnxruntime.InferenceSession(str(exported / "onnx" / "model.onnx"), providers=["CPUExecutionProvider"])
    assert {one.name for one in session.get_inputs()} == {"input_ids", "attention_mask", "token_type_ids"}
    for shape in ((1, 7), (3, 64), (5, 2), (1, 1)):
        inputs = sample_inputs(model, *shape)
        expected = model(**inputs).logits.detach()
        (logits,) = session.run(["logits"], {name: tensor.numpy() for name, tensor in inputs.items()})
        assert np.abs(logits - expected.numpy()).max() <= 1e-5 * float(expected.abs().max()), shape
    assert str(Path.cwd()).encode() not in (exported / "onnx" / "model.onnx").read_bytes()


def test_other_logits_than_those_of_the_onnx_model_are_found(exported: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(exported).float().eval()
    inputs = [sample_inputs(model, *shape) for shape in SHAPES]
    with torch.no_grad():
        model.get_parameter("bert.encoder.layer.1.output.dense.weight")[0, 0] += 0.01
        expected = [model(**batch).logits for batch in inputs]
    saved = exported / "onnx" / "model.onnx"
    with pytest.raises(HomodistilError, match="logits differ"):
        proof.compare(Path(onnx_script.__file__), saved, inputs, expected, "kept", "--run")


def test_a_folder_in_use_is_refused(exported: Path, finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in exported.rglob("*")}
    done = run([sys.executable, str(TOOL), "--run", str(finished), "--output_dir", str(exported)])
    assert (done.code, done.out) == (2, ""), done.shown
    assert "error[CFG-USED-DIR]" in done.err
    assert {path: path.stat().st_mtime_ns for path in exported.rglob("*")} == before


def test_a_weight_that_changes_on_the_way_is_found(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving = export.save_folder

    def careless(model: PreTrainedModel, *others: object) -> None:
        with torch.no_grad():
            model.get_parameter("bert.encoder.layer.1.output.dense.weight")[0, 0] += 0.01
        saving(model, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(export, "save_folder", careless)
    with pytest.raises(HomodistilError, match="logits differ") as raised:
        export.export(export.student_of(finished), tmp_path / "out")
    assert raised.value.error_id == "NUM-EXPORT"
    assert list(tmp_path.iterdir()) == []


def test_weights_that_a_format_cannot_hold_are_refused(finished: Path, tmp_path: Path) -> None:
    source = export.student_of(finished)
    with torch.no_grad():
        source.model.get_parameter("bert.encoder.layer.0.output.dense.weight")[0, 0] = 1e6
    with pytest.raises(HomodistilError, match="not finite in") as raised:
        export.export(source, tmp_path / "out", torch.float16)
    assert "bfloat16" in raised.value.remedy


def save_classifier(variant: str, folder: Path) -> Path:
    """A classifier of three classes around the encoder of a tiny model of the family."""
    save_teacher(variant, WORDS, folder / "encoder")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(folder / "encoder", num_labels=3)
    model.save_pretrained(folder / "classifier")
    AutoTokenizer.from_pretrained(folder / "encoder").save_pretrained(folder / "classifier")
    return folder / "classifier"


def test_a_classifier_is_exported_as_one(tmp_path: Path) -> None:
    source = export.student_of(save_classifier("bert", tmp_path))
    done = export.export(source, tmp_path / "out", torch.bfloat16)
    assert done.off <= proof.PARITY < done.rounding
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert (model.dtype, model.config.num_labels) == (torch.bfloat16, 3)
    inputs = sample_inputs(model, 3, 9)
    with torch.no_grad():
        rounded = source.model.to(torch.bfloat16).float()(**inputs).logits
        torch.testing.assert_close(model.float().eval()(**inputs).logits, rounded, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("variant", [*ENCODERS, "bert classifier", "gpt2", "gemma", "opt", "mistral", "qwen3"])
def test_every_family_becomes_onnx(variant: str, tmp_path: Path) -> None:
    family, _, head = variant.partition(" ")
    folder = save_classifier(family, tmp_path) if head else save_teacher(family, WORDS, tmp_path / "model")
    model = export.student_of(folder).model
    inputs = [sample_inputs(model, *shape) for shape in SHAPES]
    onnx_script.write(str(folder), sample_inputs(model, 2, 16), str(tmp_path / "model.onnx"))
    with torch.no_grad():
        expected = [model(**batch).logits for batch in inputs]
    assert proof.difference(expected, onnx_script.run(str(tmp_path / "model.onnx"), inputs)) <= proof.PARITY


def test_the_last_checkpoint_is_the_student(one_rank: Path) -> None:
    source = from_checkpoint.student_at(one_rank, "step-60")
    student = export.student_of(one_rank)
    mine, theirs = source.model.state_dict(), student.model.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items())
    inputs = sample_inputs(source.model, 3, 20)
    with torch.no_grad():
        expected, got = ([model(**inputs).logits] for model in (student.model, source.model))
    assert proof.difference(expected, got) <= proof.PARITY
    assert source.stored == student.stored
    assert "after step 60 of 60" in source.card


def test_a_checkpoint_of_a_shape_on_the_way_is_refused(one_rank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = from_checkpoint.checkpoint.find(str(one_rank), one_rank / "checkpoints", print)
    odd = {"hidden": 21, "ffn": 36, "heads": 3, "head_size": 8}
    changed = Checkpoint(folder=found.folder, state=found.state | {"widths": odd})
    monkeypatch.setattr(from_checkpoint.checkpoint, "find", lambda *_: changed)
    with pytest.raises(HomodistilError, match="cannot hold 21/36/3x8"):
        from_checkpoint.student_at(one_rank, "step-60")
