"""GLUE's metrics against values worked out by hand, and what they say of a student that says one thing always."""

import warnings

import pytest
import torch

from homodistil_ds.data.glue import TASKS, Task
from homodistil_ds.evaluation.glue_metrics import primary_score, scores

# Of ten examples 3 are true positives, 2 false positives, 1 a false negative, 4 true negatives.
LABELS = torch.tensor([1, 1, 1, 0, 0, 1, 0, 0, 0, 0])
CHOSEN = torch.tensor([1, 1, 1, 1, 1, 0, 0, 0, 0, 0])


def logits(chosen: torch.Tensor, classes: int = 2) -> torch.Tensor:
    """[N, C] whose largest is the chosen class."""
    return torch.nn.functional.one_hot(chosen, classes).float() * 3 - 1


def test_accuracy_and_f1() -> None:
    found = scores(TASKS["MRPC"], logits(CHOSEN), LABELS)
    # Accuracy (3 + 4) / 10. Precision 3 / 5 and recall 3 / 4: F1 = 2 * 3 / (2 * 3 + 2 + 1) = 6 / 9.
    assert found == pytest.approx({"accuracy": 0.7, "f1": 2 / 3})
    assert all(type(score) is float for score in found.values())
    assert primary_score(TASKS["MRPC"], {"dev": found}) == pytest.approx((0.7 + 2 / 3) / 2)


def test_matthews() -> None:
    found = scores(TASKS["CoLA"], logits(CHOSEN), LABELS)
    # (3 * 4 - 2 * 1) / sqrt((3 + 2) (3 + 1) (4 + 2) (4 + 1)) = 10 / sqrt(600)
    assert found == pytest.approx({"matthews": 10 / 600**0.5, "accuracy": 0.7})
    assert primary_score(TASKS["CoLA"], {"dev": found}) == found["matthews"]


@pytest.mark.parametrize("shape", [(5,), (5, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pearson_and_spearman(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    labels = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    predictions = torch.tensor([1.0, 0.0, 2.0, 3.0, 9.0], dtype=dtype).reshape(shape)
    found = scores(TASKS["STS-B"], predictions, labels)
    # Deviations of the labels -2 -1 0 1 2, of the predictions (mean 3) -2 -3 -1 0 6: products 4 + 3 + 0 + 0 + 12 = 19,
    # squares 10 and 4 + 9 + 1 + 0 + 36 = 50. Ranks 1 2 3 4 5 and 2 1 3 4 5: 1 - 6 * (1 + 1) / (5 * 24) = 0.9.
    assert found == pytest.approx({"pearson": 19 / 500**0.5, "spearman": 0.9}, abs=1e-5)
    assert primary_score(TASKS["STS-B"], {"dev": found}) == pytest.approx((19 / 500**0.5 + 0.9) / 2, abs=1e-5)


def test_spearman_gives_equal_values_their_mean_rank() -> None:
    found = scores(TASKS["STS-B"], torch.tensor([1.0, 1.0, 2.0, 5.0]), torch.tensor([0.0, 1.0, 2.0, 3.0]))
    # Ranks 1.5 1.5 3 4, deviations -1 -1 0.5 1.5; of the labels -1.5 -0.5 0.5 1.5:
    # products 1.5 + 0.5 + 0.25 + 2.25 = 4.5, squares 1 + 1 + 0.25 + 2.25 = 4.5 and 5.
    assert found["spearman"] == pytest.approx(4.5 / (4.5 * 5) ** 0.5, abs=1e-5)


def test_mnli_is_the_mean_of_both_splits() -> None:
    task, labels = TASKS["MNLI"], torch.tensor([0, 1, 2, 2])
    matched = scores(task, logits(torch.tensor([0, 1, 2, 0]), 3), labels)
    mismatched = scores(task, logits(torch.tensor([0, 2, 0, 1]), 3), labels)
    assert (matched, mismatched) == ({"accuracy": 0.75}, {"accuracy": 0.25})
    assert primary_score(task, {"dev_matched": matched, "dev_mismatched": mismatched}) == 0.5


@pytest.mark.parametrize("chosen", [0, 1])
@pytest.mark.parametrize("labels", [[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
def test_one_class_has_no_matthews_correlation(chosen: int, labels: list[int]) -> None:
    constant, mixed = torch.full((4,), chosen), torch.tensor([0, 1, 1, 0])
    assert scores(TASKS["CoLA"], logits(constant), torch.tensor(labels))["matthews"] == 0.0
    if len(set(labels)) == 1:
        assert scores(TASKS["CoLA"], logits(mixed), torch.tensor(labels))["matthews"] == 0.0


def test_the_larger_class_of_a_whole_set_has_none_either() -> None:
    labels = torch.tensor([1] * 721 + [0] * 322)
    assert scores(TASKS["CoLA"], logits(torch.ones_like(labels)), labels)["matthews"] == 0.0


def test_f1_of_one_class() -> None:
    task, labels = TASKS["QQP"], torch.tensor([1, 1, 1, 0])
    assert scores(task, logits(torch.zeros_like(labels)), labels)["f1"] == 0.0
    assert scores(task, logits(torch.zeros_like(labels)), torch.zeros_like(labels))["f1"] == 0.0
    # Always "duplicate" has an F1: precision 3 / 4, recall 1, 2 * 3 / (2 * 3 + 1) = 6 / 7.
    assert scores(task, logits(torch.ones_like(labels)), labels)["f1"] == pytest.approx(6 / 7)


@pytest.mark.parametrize(
    ("predictions", "labels"),
    [([2.0, 2.0, 2.0], [0.0, 1.0, 5.0]), ([0.0, 1.0, 5.0], [2.0, 2.0, 2.0]), ([1.5], [3.0])],
)
def test_a_constant_has_no_correlation(predictions: list[float], labels: list[float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = scores(TASKS["STS-B"], torch.tensor(predictions), torch.tensor(labels))
    assert found == {"pearson": 0.0, "spearman": 0.0}


def test_one_outlier_among_many_leaves_a_correlation() -> None:
    labels = torch.tensor([0.0, 0.001, *[0.0] * 5997, 5.0])
    assert scores(TASKS["STS-B"], labels, labels) == pytest.approx({"pearson": 1.0, "spearman": 1.0}, abs=1e-3)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_task_is_scored_by_its_metrics(task: Task) -> None:
    classes = len(task.classes)
    labels = torch.tensor([0, 1, max(1, classes - 1), 0])
    found = scores(task, logits(labels, classes) if classes else labels.float(), labels)
    assert tuple(found) == task.metrics
    assert found == pytest.approx(dict.fromkeys(task.metrics, 1.0), abs=1e-5)
