"""The report of a run on a task: nothing is lost on the way to disk, and it stays JSON whatever was measured."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from homodistil_ds.evaluation.finished import TaskRun, read_runs
from homodistil_ds.evaluation.report import versions
from homodistil_ds.evaluation.task_report import TaskReport, score_table, task_card, write_task_report

REPORT = TaskReport(
    name="mixed",
    method="mixkd",
    task="MRPC",
    data="tasks/glue",
    model="owner/student",
    teacher="owner/teacher",
    parameters=1_234_567,
    metrics={"dev": {"f1": 0.875, "accuracy": 0.8125}},
    primary=0.84375,
    teacher_metrics={"dev": {"f1": 0.9, "accuracy": 0.85}},
    steps=345,
    epochs=3.0,
    train_examples=3668,
    seed=4,
    learning_rate=5e-5,
    wall_seconds=100.0,
    loop_seconds=80.0,
    loop_cpu_seconds=75.0,
    measured_cpu_seconds=2.5,
    ranked_cpu_seconds=0.0,
    world_size=2,
    zero_stage=2,
    precision="bf16",
    versions=versions(),
    history=[{"step": 1, "total": 2.0}, {"step": 345, "total": 0.5}],
)


def written(report: TaskReport, folder: Path) -> TaskReport:
    write_task_report(report, folder)

    def refuse(value: str) -> None:
        raise AssertionError(f"{value} is no JSON")

    text = (folder / "report.json").read_text(encoding="utf-8")
    return TaskReport(**json.loads(text, parse_constant=refuse))


@pytest.mark.parametrize("report", [REPORT, replace(REPORT, teacher=None, teacher_metrics=None, history=[])])
def test_the_report_on_disk_is_the_report(report: TaskReport, tmp_path: Path) -> None:
    assert written(report, tmp_path) == report
    assert report.kind == "task"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.md"]


def test_the_page_of_several_runs_reads_it(tmp_path: Path) -> None:
    write_task_report(REPORT, tmp_path)
    (run,) = read_runs([tmp_path])
    assert isinstance(run, TaskRun)
    assert (run.task, run.primary, run.metrics) == (REPORT.task, REPORT.primary, REPORT.metrics)


def test_what_is_not_a_finite_number_becomes_none(tmp_path: Path) -> None:
    broken = replace(REPORT, primary=float("nan"), history=[{"step": 1, "total": float("inf")}])
    found = written(broken, tmp_path)
    assert found.primary is None
    assert found.history == [{"step": 1, "total": None}]
    assert asdict(replace(found, primary=0.0, history=[])) == asdict(replace(broken, primary=0.0, history=[]))


def test_the_table_has_a_line_per_split_and_metric_with_the_teachers_beside_it() -> None:
    assert score_table(REPORT.metrics, REPORT.teacher_metrics).splitlines()[2:] == [
        "| dev | f1 | 0.8750 | 0.9000 |",
        "| dev | accuracy | 0.8125 | 0.8500 |",
    ]
    both = {"dev_matched": {"accuracy": 0.5}, "dev_mismatched": {"accuracy": 0.25}}
    assert score_table(both, None).splitlines()[2:] == [
        "| dev_matched | accuracy | 0.5000 | - |",
        "| dev_mismatched | accuracy | 0.2500 | - |",
    ]


@pytest.mark.parametrize(("model", "based"), [("owner/student", "owner/student"), ("/some/folder", None)])
def test_the_card_begins_with_what_the_hub_reads(model: str, based: str | None) -> None:
    card = task_card(replace(REPORT, model=model), "deepspeed train.py --task.name MRPC")
    _, front, text = card.split("---\n", 2)
    facts = yaml.safe_load(front)
    assert facts["pipeline_tag"] == "text-classification"
    assert facts.get("base_model") == based
    assert facts["tags"] == ["homodistil", "mrpc"]
    assert "taught by `owner/teacher`" in text
    assert "deepspeed train.py --task.name MRPC" in text
    alone = task_card(replace(REPORT, model=model, teacher=None, teacher_metrics=None), "train.py")
    assert "taught by" not in alone
