"""Runs on tasks become one table: mean and deviation over seeds, and the predictions of the best."""

import json
from pathlib import Path

import pytest

from homodistil_ds.errors import HomodistilError
from homodistil_ds.evaluation.glue_table import cell_name, cells, markdown, read_reports, spread, write_table


def report(task: str, seed: int, metrics: dict[str, dict[str, float]], primary: float) -> dict[str, object]:
    facts: dict[str, object] = {"learning_rate": 5e-5, "epochs": 3.0, "loop_seconds": 10.0, "train_examples": 90}
    facts |= {"model": "a model", "method": "finetune", "teacher": None}
    return {"kind": "task", "task": task, "seed": seed, "metrics": metrics, "primary": primary, **facts}


def write(folder: Path, task: str, seed: int, metrics: dict[str, dict[str, float]], primary: float) -> Path:
    run = folder / cell_name(task, seed)
    (run / "predictions").mkdir(parents=True)
    (run / "predictions" / f"{task}.tsv").write_text(f"of seed {seed}")
    (run / "report.json").write_text(json.dumps(report(task, seed, metrics, primary)))
    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "RTE", 1, {"dev": {"accuracy": 0.70}}, 0.70)
    write(tmp_path, "RTE", 0, {"dev": {"accuracy": 0.60}}, 0.60)
    write(tmp_path, "CoLA", 0, {"dev": {"matthews": 0.30, "accuracy": 0.75}}, 0.30)
    (tmp_path / "RTE-2").mkdir()  # goes on elsewhere
    trial = tmp_path / "trials"
    write(trial, "RTE", 0, {"held_out": {"accuracy": 0.99}}, 0.99)
    write(tmp_path, "RTE", 3, {"dev": {"accuracy": 0.5}}, 0.5).rename(tmp_path / "a copy")
    return tmp_path


def test_cells_are_in_the_order_of_glue_and_of_the_seeds_and_hold_complete_runs_alone(folder: Path) -> None:
    found = cells(read_reports(folder))
    assert [(cell.task, cell.seeds, cell.scores) for cell in found] == [
        ("CoLA", (0,), (0.30,)),
        ("RTE", (0, 1), (0.60, 0.70)),
    ]
    assert found[0].metrics == {"dev matthews": (0.30,), "dev accuracy": (0.75,)}
    assert found[1].seconds == 20.0


def test_the_deviation_is_that_of_a_sample() -> None:
    assert spread([0.6, 0.7]) == "65.0 ± 7.1"  # sqrt(2 * 0.05^2 / 1) = 0.0707
    assert spread([0.123]) == "12.3"


def test_the_page(folder: Path) -> None:
    page = write_table(folder, "a model")
    assert page == (folder / "glue.md").read_text() == markdown("a model", cells(read_reports(folder)))
    assert "| RTE | 65.0 ± 7.1 | dev accuracy 65.0 ± 7.1 | 2 | 5e-05 | 3 |" in page
    assert "| mean of 2 | 47.5 |" in page
    values = json.loads((folder / "glue.json").read_text())
    assert [(task["task"], task["mean"]) for task in values["tasks"]] == [("CoLA", 0.3), ("RTE", pytest.approx(0.65))]
    assert (folder / "submission" / "RTE.tsv").read_text() == "of seed 1"


def test_no_run_makes_no_table(tmp_path: Path) -> None:
    assert write_table(tmp_path, "a model") is None
    assert not any(tmp_path.iterdir())


def test_two_models_make_no_table(folder: Path) -> None:
    run = write(folder, "MRPC", 0, {"dev": {"f1": 0.8, "accuracy": 0.7}}, 0.75)
    values = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps({**values, "model": "another"}))
    with pytest.raises(HomodistilError, match="has the model another"):
        write_table(folder, "a model")
