"""Nested students learn a task in real processes: any number of ranks and ZeRO stage, stopped and going on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from learnable_tasks import write_tasks
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from integration.processes import machine, work

STEPS, SCALES = 4, (0.5, 0.25, 0.1)
STAGES, STOPPED = (0, 1, 2, 3), (2, 3)
TRIAL_LOOKS = 1 + STEPS  # for a reason to stop: at the start and after every step
REGRESSION = "STS-B"  # of pairs
Results = dict[str, dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def values(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Teachers with a head for two classes, and for one number; that it knows little does not matter here."""
    folder = tmp_path_factory.mktemp("minidisc")
    for classes in (1, 2):
        teacher = str(folder / f"teacher-{classes}")
        AutoModelForSequenceClassification.from_pretrained(tiny_teacher, num_labels=classes).save_pretrained(teacher)
        AutoTokenizer.from_pretrained(tiny_teacher).save_pretrained(teacher)
    data = write_tasks(folder / "glue")
    return {
        **{
            "method": "minidisc",
            "teacher": str(folder / "teacher-2"),
            "steps": STEPS,
            "learning_rate": 1e-3,
            "assistant": "auto",
        },
        **{"global_batch_size": 16, "sequence_length": 32, "log_interval": 1, "eval_interval": 2},
        **{"family": SCALES, "task": {"name": "SST-2", "data": str(data), "dropout": 0.0}},
        "task_loss": {"task": 0.0, "kd": 0.5, "states": 0.5, "distance": "ce"},
    }


@pytest.fixture(scope="module")
def one(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Results:
    cases = {"bf16": {"machine": machine(2) | {"bf16": {"enabled": True}}}, "zero0": {"machine": machine(0)}}
    return work(1, "tasks", tmp_path_factory.mktemp("one"), config=values, cases=cases)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def two(values: dict[str, Any], folder: Path) -> Results:
    """Stopped in the trial after its step 2, and in what follows after its step 3; and between the two."""
    one_number = str(Path(values["teacher"]).with_name("teacher-1"))
    pairs = {"teacher": one_number, "task": values["task"] | {"name": REGRESSION, "held_out": 0.25}}
    cases: dict[str, Any] = {
        REGRESSION: {"machine": machine(1), "config": pairs},
        "elastic": {"machine": machine(1), "stops": [3], "ends": False},
        "border": {"machine": machine(2), "stops": [TRIAL_LOOKS + 1]},
        "broken": {"machine": machine(2), "broken_rank": 1},
    }
    for stage in STAGES:  # stage 3 comes last: it changes torch's linear for good, by a bit in the last place
        cases[f"zero{stage}"] = {"machine": machine(stage)}
        if stage in STOPPED:
            cases[f"stopped{stage}"] = {"machine": machine(stage), "stops": [3, (1 + STEPS - 2) + 4]}
    return work(2, "tasks", folder, config=values, cases=cases)


@pytest.mark.parametrize("stage", STAGES)
def test_ranks_and_zero_stages_change_neither_losses_nor_scores(one: Results, two: Results, stage: int) -> None:
    straight, found = one["zero0"], two[f"zero{stage}"]
    assert found.keys() == straight.keys() == {"student", "trial"}
    for name, own in found.items():
        assert (own["world_size"], own["zero_stage"]) == (2, stage)
        for row, its in zip(own["history"], straight[name]["history"], strict=True):
            assert row == pytest.approx(its, rel=1e-5, abs=1e-6)
        rows = zip(own["family"], straight[name]["family"], strict=True)
        for row, its in rows:
            assert (row["scale"], row["widths"], row["parameters"]) == (its["scale"], its["widths"], its["parameters"])
            assert row["score"] == pytest.approx(its["score"], abs=1e-4)


def test_the_trial_leaves_all_members_and_the_best_trade_off_teaches(two: Results, folder: Path) -> None:
    trial, student = two["zero2"]["trial"], two["zero2"]["student"]
    assert [row["scale"] for row in trial["family"]] == list(SCALES)
    worth = [row["trade_off"] for row in trial["family"][:-1]]
    place = worth.index(max(worth))
    assert [row["scale"] for row in student["family"]] == list(SCALES[place + 1 :])
    for row in trial["family"]:
        saved = AutoModelForSequenceClassification.from_pretrained(folder / "zero2" / "trial" / row["folder"])
        assert saved.config.hidden_size == row["widths"]["hidden"]
        assert row["trade_off"] == pytest.approx(row["score"] + 0.2 * (1 - row["scale"]), abs=0.02)
    report = json.loads((folder / "zero2" / "report.json").read_text(encoding="utf-8"))
    assert report["teacher"] == str(folder / "zero2" / "trial" / trial["family"][place]["folder"])
    curves = [row for row in trial["history"] if "trade_off/0.5" in row]
    assert [row["step"] for row in curves] == [0, 2, STEPS]
    assert (folder / "zero2" / "trial" / "figures" / "family.png").exists()


@pytest.mark.parametrize("stage", STOPPED)
def test_a_run_that_was_stopped_in_both_parts_is_the_run_that_never_was(two: Results, stage: int) -> None:
    assert two[f"stopped{stage}"] == two[f"zero{stage}"]


def test_a_run_that_was_stopped_between_its_parts_is_the_run_that_never_was(two: Results) -> None:
    assert two["border"] == two["zero2"]


def test_ranks_that_order_neurons_differently_stop_before_any_is_cut(two: Results) -> None:
    assert "DIST-MASKS-DIFFER: the order of the neurons of group" in two["broken"]["error"]
    assert "differs from rank 0's on ranks [1]" in two["broken"]["error"]


def test_a_trial_stopped_on_two_ranks_goes_on_on_one(values: dict[str, Any], two: Results, folder: Path) -> None:
    case = {"machine": machine(0), "begun": True}
    found, straight = work(1, "tasks", folder, config=values, cases={"elastic": case})["elastic"], two["zero1"]
    assert found["student"]["world_size"] == 1
    for name, own in found.items():
        for row, its in zip(own["history"], straight[name]["history"], strict=True):
            assert row == pytest.approx(its, rel=1e-5, abs=1e-6)
        assert [row["scale"] for row in own["family"]] == [row["scale"] for row in straight[name]["family"]]


def test_half_precision_is_near_single_precision(one: Results) -> None:
    straight, found = one["zero0"]["trial"], one["bf16"]["trial"]
    rows = [(row, its) for row, its in zip(found["history"], straight["history"], strict=True) if "total" in row]
    assert len(rows) == STEPS
    for row, its in rows:
        assert row["total"] == pytest.approx(its["total"], rel=0.02)
        assert row["total"] != its["total"]


def test_a_regression_of_pairs_leaves_students_that_answer_with_one_number(two: Results, folder: Path) -> None:
    trial, student = two[REGRESSION]["trial"], two[REGRESSION]["student"]
    assert set(student["metrics"]["dev"]) == {"pearson", "spearman"}
    assert "dev" not in trial["metrics"], "what chooses the assistant does not judge its student"
    assert all(-1 <= row["score"] <= 1 for row in trial["family"])
    for row in trial["family"]:
        saved = AutoModelForSequenceClassification.from_pretrained(folder / REGRESSION / "trial" / row["folder"])
        assert saved.config.num_labels == 1
