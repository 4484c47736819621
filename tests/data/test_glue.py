"""The table of GLUE tasks is whole, names are found however they are spelt, and submissions look as GLUE wants them."""

from pathlib import Path

import numpy as np
import pytest

from homodistil_ds.data.glue import TASKS, Task, task_named, write_predictions
from homodistil_ds.errors import HomodistilError

METRICS = {"accuracy", "f1", "matthews", "pearson", "spearman"}


def test_nine_tasks_and_one_regression() -> None:
    assert list(TASKS) == ["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI", "QNLI", "RTE", "WNLI"]
    assert [name for name, task in TASKS.items() if not task.classes] == ["STS-B"]
    assert [name for name, task in TASKS.items() if task.named] == ["MNLI", "QNLI", "RTE"]


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_row_of_the_table_fits_together(task: Task) -> None:
    assert TASKS[task.name] is task
    assert len(task.texts) == len(task.hub_texts) in (1, 2)
    assert set(task.primary) <= set(task.metrics) <= METRICS
    assert {task.label, *task.texts} <= set(task.no_header or {task.label, *task.texts})
    assert "f1" not in task.metrics or len(task.classes) == 2
    assert len(set(task.splits)) == 1 + len(task.evaluation) + len(task.submissions)
    assert isinstance(hash(task), int)


def test_submission_files_are_the_ten_that_glue_asks_for() -> None:
    names = "CoLA SST-2 MRPC STS-B QQP MNLI-m MNLI-mm QNLI RTE WNLI"
    found = [file for task in TASKS.values() for file in task.submissions.values()]
    assert found == [f"{name}.tsv" for name in names.split()]


@pytest.mark.parametrize("name", ["SST-2", "sst2", "SST2", "sst-2", "Sst-2"])
def test_a_task_is_found_in_any_spelling(name: str) -> None:
    assert task_named(name) is TASKS["SST-2"]
    assert task_named(name).hub_name == "sst2"


def test_a_misspelt_task_is_named_with_the_nearest() -> None:
    with pytest.raises(HomodistilError) as caught:
        task_named("MLNI")
    assert caught.value.error_id == "CFG-TASK"
    assert caught.value.exit_code == 2
    assert "'MLNI'" in caught.value.what
    assert "Did you mean 'MNLI'?" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "predictions", "texts"),
    [
        ("CoLA", np.array([1, 0]), ["1", "0"]),
        ("WNLI", np.array([0, 1]), ["0", "1"]),
        ("RTE", np.array([1, 0]), ["not_entailment", "entailment"]),
        ("QNLI", np.array([0, 1]), ["entailment", "not_entailment"]),
        ("MNLI", np.array([2, 1]), ["contradiction", "neutral"]),
        ("STS-B", np.array([-0.4, 5.2], np.float32), ["0.000", "5.000"]),
        ("STS-B", np.array([2.0004, 3.1416], np.float32), ["2.000", "3.142"]),
    ],
)
def test_predictions_are_written_as_glue_takes_them(
    tmp_path: Path, name: str, predictions: np.ndarray, texts: list[str]
) -> None:
    path = tmp_path / "answers.tsv"
    path.write_text("an older file")
    write_predictions(path, TASKS[name], np.array([7, 3]), predictions)
    assert path.read_bytes().decode() == f"index\tprediction\n7\t{texts[0]}\n3\t{texts[1]}\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_prediction_too_few_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "answers.tsv"
    path.write_text("an older file")
    with pytest.raises(ValueError, match="argument"):
        write_predictions(path, TASKS["RTE"], np.arange(3), np.array([0, 1]))
    assert path.read_text() == "an older file"
