"""Learning a task in real processes: the command, any number of ranks and ZeRO stage, stopping and going on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from learnable_tasks import DEV, TEST, write_tasks

from homodistil_ds.errors import EXIT_CODES
from integration.conftest import succeeded
from integration.processes import TRAIN, background, machine, run, work

STEPS = 10
STAGES = (0, 1, 2, 3)
Results = dict[str, dict[str, dict[str, Any]]]
PREDICT = """
import csv, json, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
folder, path = sys.argv[1:]
model, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"], info
assert not model.training
tokenizer = AutoTokenizer.from_pretrained(folder)
with open(path) as lines:
    rows = list(csv.reader(lines, delimiter="\\t", quoting=csv.QUOTE_NONE))[1:]
with torch.no_grad():
    said = [int(model(**tokenizer(text, return_tensors="pt")).logits.argmax()) for _, text in rows]
print(json.dumps({"said": said, "names": model.config.id2label, "dropout": model.config.hidden_dropout_prob}))
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("glue"))


def mixing(teacher: Path, tasks: Path, dropout: float) -> dict[str, Any]:
    """A teacher that learns first. At a ratio of a half micro batches differ in what they mix."""
    return {
        **{"method": "mixkd", "teacher": str(teacher), "model": str(teacher), "steps": STEPS, "learning_rate": 1e-3},
        **{"global_batch_size": 16, "sequence_length": 32, "log_interval": 1, "eval_interval": 5},
        **{"task": {"name": "SST-2", "data": str(tasks), "dropout": dropout}, "mixup": {"ratio": 0.5}},
        "task_loss": {"mixed_task": 1.0, "mixed_kd": 1.0, "patience": 1.0},
    }


def test_a_model_learns_a_task_and_predicts_its_test_set(tiny_teacher: Path, tasks: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    (tmp_path / "machine.json").write_text(json.dumps(machine(2)), encoding="utf-8")
    flags = ["--preset", "finetune", "--deepspeed_config", str(tmp_path / "machine.json"), "--model", str(tiny_teacher)]
    flags += ["--task.name", "sst2", "--task.data", str(tasks), "--task.epochs", "12", "--learning_rate", "2e-3"]
    flags += ["--sequence_length", "32", "--global_batch_size", "16", "--output_dir", str(run_dir)]
    succeeded(run([sys.executable, str(TRAIN), *flags]), run_dir)

    report = json.loads((run_dir / "report.json").read_text(encoding="utf-8"))
    assert (report["kind"], report["task"], report["teacher"], report["steps"]) == ("task", "SST-2", None, 150)
    lines = (tasks / "SST-2" / "dev.tsv").read_text(encoding="utf-8").splitlines()[1:]
    positive = sum(line.endswith("\t1") for line in lines) / DEV
    majority = max(positive, 1 - positive)
    assert report["metrics"]["dev"]["accuracy"] == report["primary"] > majority + 0.2
    evaluated = [row for row in report["history"] if "accuracy" in row]
    assert evaluated[-1]["accuracy"] == pytest.approx(report["primary"], abs=2 / DEV)
    totals = [row["total"] for row in report["history"] if "total" in row]
    assert totals[-1] < 0.5 * totals[0]

    header, *rows = (run_dir / "predictions" / "SST-2.tsv").read_text(encoding="utf-8").splitlines()
    assert header == "index\tprediction"
    assert [row.split("\t")[0] for row in rows] == [str(place) for place in range(TEST)]
    arguments = [str(run_dir / "student"), str(tasks / "SST-2" / "test.tsv")]
    finished = run([sys.executable, "-I", "-c", PREDICT, *arguments])
    assert finished.code == 0, finished.shown
    found = json.loads(finished.out)
    assert [int(row.split("\t")[1]) for row in rows] == found["said"]
    assert set(found["said"]) == {0, 1}
    assert found["names"] == {"0": "negative", "1": "positive"}
    assert found["dropout"] == 0.1, "the model's own, whatever it was trained with"


@pytest.fixture(scope="module")
def one(tiny_teacher: Path, tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    return on_ranks(1, (0,), tiny_teacher, tasks, tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def two(tiny_teacher: Path, tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    return on_ranks(2, STAGES, tiny_teacher, tasks, tmp_path_factory.mktemp("two"))


def on_ranks(count: int, stages: tuple[int, ...], teacher: Path, tasks: Path, folder: Path) -> Results:
    cases: dict[str, Any] = {f"zero{stage}": {"machine": machine(stage)} for stage in stages}
    values = {"task": {"name": "STS-B", "data": str(tasks), "dropout": 0.0}}
    cases["regression"] = {"machine": machine(2), "config": values}
    return work(count, "tasks", folder, config=mixing(teacher, tasks, 0.0), cases=cases)


@pytest.mark.parametrize("case", [*(f"zero{stage}" for stage in STAGES), "regression"])
def test_ranks_and_zero_stages_change_neither_losses_nor_scores(one: Results, two: Results, case: str) -> None:
    straight, found = one["regression" if case == "regression" else "zero0"], two[case]
    assert found.keys() == straight.keys() == {"student", "teacher"}
    for name, own in found.items():
        expected = straight[name]
        assert (expected["world_size"], own["world_size"]) == (1, 2)
        assert len(own["history"]) == STEPS + 3, "a row per step and three evaluations"
        assert [row["step"] for row in own["history"] if "score" in row] == [0, 5, STEPS]
        for row, its in zip(own["history"], expected["history"], strict=True):
            assert row == pytest.approx(its, rel=1e-5, abs=1e-6)
        for split, metrics in own["metrics"].items():
            assert metrics == pytest.approx(expected["metrics"][split], abs=1e-4)
    assert found["student"]["teacher_metrics"] == found["teacher"]["metrics"]
    assert found["teacher"]["teacher_metrics"] is None
    read = {
        name: set(own["history"][1]) & {"task", "mixed_task", "mixed_kd", "patience"} for name, own in found.items()
    }
    assert read == {"student": {"task", "mixed_task", "mixed_kd", "patience"}, "teacher": {"task"}}


def test_a_run_that_was_stopped_in_both_stages_is_the_run_that_never_was(
    tiny_teacher: Path, tasks: Path, tmp_path: Path
) -> None:
    """After the teacher's step 5, before the student's first step, after the student's step 4; with dropout."""
    stops = [6, (1 + STEPS - 5) + 1, 5]
    cases = {"straight": {"machine": machine(2)}, "stopped": {"machine": machine(2), "stops": stops}}
    found = work(2, "tasks", tmp_path, config=mixing(tiny_teacher, tasks, 0.1), cases=cases)
    assert found["stopped"] == found["straight"]
    starts = json.loads((tmp_path / "stopped" / "teacher" / "run.json").read_text(encoding="utf-8"))["starts"]
    assert [start["after_step"] for start in starts] == [0, 5]
    starts = json.loads((tmp_path / "stopped" / "run.json").read_text(encoding="utf-8"))["starts"]
    assert [start["after_step"] for start in starts] == [0, 4]


def test_a_run_that_is_stopped_while_its_teacher_learns_says_so_itself(
    tiny_teacher: Path, tasks: Path, tmp_path: Path
) -> None:
    """A job script reads the reason in the folder that it named, and asks for a stop there."""
    run_dir = tmp_path / "run"
    (tmp_path / "machine.json").write_text(json.dumps(machine(2)), encoding="utf-8")
    config = mixing(tiny_teacher, tasks, 0.1) | {"steps": 5000, "eval_interval": 0, "output_dir": str(run_dir)}
    (tmp_path / "run.json").write_text(json.dumps(config), encoding="utf-8")
    flags = ["--deepspeed_config", str(tmp_path / "machine.json"), "--config", str(tmp_path / "run.json")]
    with background([sys.executable, str(TRAIN), *flags], tmp_path) as job:
        job.wait_until(lambda: (run_dir / "teacher" / "run.json").exists(), "the teacher learns")
        (run_dir / "stop").touch()
        job.wait_for_end()
        assert job.process.returncode == EXIT_CODES["STOP"], job.err.read_text(encoding="utf-8")
    reason = json.loads((run_dir / "exit_reason.json").read_text(encoding="utf-8"))
    assert (reason["code"], reason["id"]) == (EXIT_CODES["STOP"], "STOP-SIGNAL")
    assert (run_dir / "teacher" / "checkpoints" / "latest").exists()
    assert not (run_dir / "run.json").exists()
