"""Every baseline trains, starts where its paper starts, and leaves a plain student of its own depth and width."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from homodistil_ds.presets import PRESETS
from integration.processes import TRAIN, run

QUICK = {"steps": 4, "global_batch_size": 8, "sequence_length": 32, "held_out_sequences": 8, "log_interval": 1}
HALF = {"student.hidden_size": 16, "student.intermediate_size": 24, "student.num_attention_heads": 4}
SHALLOW = {"student.num_hidden_layers": 1}
# Preset -> what makes its recipe small enough for a teacher of 2 layers x 32.
SMALL: dict[str, dict[str, object]] = {
    "distilbert": SHALLOW,
    "plain_kd": SHALLOW,
    "tinybert": {**HALF, **SHALLOW},
    "minilm": {**HALF, "student.num_hidden_layers": 2},
    "minilmv2": {**HALF, "student.num_hidden_layers": 2, "loss.relation_heads": 8},
    "magnitude": {**HALF, "pruning.interval": 1},
    "random_start": HALF,
    "one_shot": {**HALF, "pruning.interval": 1, "pruning.start": 0.25, "pruning.end": 0.25},
    "masks_at_the_end": {**HALF, "pruning.interval": 1, "pruning.start": 0.25, "pruning.end": 0.25},
}


def command(preset: str, out: Path, teacher: Path, corpus: Path, changes: Mapping[str, object]) -> list[str]:
    values = {**QUICK, "teacher": teacher, "corpus": corpus, "output_dir": out, "student.dtype": "float32", **changes}
    machine = out.parent / f"{out.name}.json"
    machine.write_text(json.dumps({"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": 1}}))
    flags = [part for name, value in values.items() for part in (f"--{name}", str(value))]
    return [sys.executable, str(TRAIN), "--deepspeed_config", str(machine), "--preset", preset, *flags]


@pytest.mark.parametrize("preset", SMALL)
def test_a_baseline_runs(preset: str, tiny_teacher: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    finished = run(command(preset, tmp_path / "run", tiny_teacher, tiny_corpus, SMALL[preset]))
    assert finished.code == 0, finished.shown
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert report["student"]["widths"]["num_hidden_layers"] == SMALL[preset].get("student.num_hidden_layers", 2)
    assert report["student"]["widths"]["hidden_size"] == SMALL[preset].get("student.hidden_size", 32)
    losses = [row for row in report["history"] if "total" in row]
    weights = vars(PRESETS[preset]().loss)
    assert {name for name in losses[0] if name in weights} == {
        name for name, value in weights.items() if name not in ("temperature", "relation_heads") and value > 0
    }
    assert report["train_flops"] > 0


def test_a_shallow_student_starts_as_the_teachers_layers(tiny_teacher: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    """A step of no size leaves what it started from: the last of two layers for DistilBERT, the first where asked."""
    teacher = load_file(tiny_teacher / "model.safetensors")
    for layer, which in ((1, "uniform"), (0, "first")):
        still = {**SHALLOW, "student.layers": which, "steps": 1, "learning_rate": 1e-12}
        out = tmp_path / which
        finished = run(command("distilbert", out, tiny_teacher, tiny_corpus, still))
        assert finished.code == 0, finished.shown
        student = load_file(out / "student" / "model.safetensors")
        assert all(f".layer.{number}." not in name for name in student for number in (1, 2))
        for name, weights in student.items():
            torch.testing.assert_close(
                weights, teacher[name.replace(".layer.0.", f".layer.{layer}.")], atol=1e-7, rtol=0
            )


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({**HALF, "loss.cosine": 1}, "--loss.cosine"),
        ({**HALF, "loss.relation": 1}, "--loss.relation"),
        ({**HALF, "loss.relation": 1, "student.init": "random", "loss.relation_heads": 3}, "relation_heads"),
        ({**HALF, "student.num_hidden_layers": 3}, "a student of 3 layers"),
    ],
)
def test_what_makes_no_sense_is_refused(
    changes: Mapping[str, object], what: str, tiny_teacher: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    finished = run(command("demo", tmp_path / "run", tiny_teacher, tiny_corpus, {**changes, "pruning.interval": 1}))
    assert finished.code == 2, finished.shown
    assert what in finished.shown
    assert finished.shown.count("error[") == 1
    assert not (tmp_path / "run").exists()
