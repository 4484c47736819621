"""What a task's settings may be, and which losses go with which method."""

from typing import Any

import pytest

from homodistil_ds.config import RunConfig
from homodistil_ds.errors import HomodistilError
from homodistil_ds.presets import PRESETS
from homodistil_ds.task_config import MixupConfig, TaskConfig, TaskLossConfig

NAN, INFINITE = float("nan"), float("inf")
REFUSED: list[tuple[type[Any], str, tuple[float, ...]]] = [
    (TaskConfig, "fraction", (0.0, -0.1, 1.1, NAN)),
    (TaskConfig, "epochs", (0.0, -1.0, INFINITE, NAN)),
    (TaskConfig, "held_out", (-0.1, 1.0, NAN)),
    (TaskConfig, "dropout", (-0.1, 1.0, NAN)),
    *((TaskLossConfig, name, (-1.0, INFINITE, NAN)) for name in ("task", "mixed_task", "kd", "mixed_kd", "patience")),
    (TaskLossConfig, "temperature", (0.0, -1.0, INFINITE, NAN)),
    (MixupConfig, "alpha", (0.0, -1.0, INFINITE, NAN)),
    (MixupConfig, "ratio", (-0.1, 1.1, NAN)),
]


@pytest.mark.parametrize(("kind", "name", "values"), REFUSED, ids=lambda value: getattr(value, "__name__", None))
def test_a_value_out_of_range_is_refused_by_name(kind: type[Any], name: str, values: tuple[float, ...]) -> None:
    for value in values:
        with pytest.raises(HomodistilError, match=rf"\.{name}:") as caught:
            kind(**{name: value})
        assert caught.value.error_id == "CFG-RANGE"


@pytest.mark.parametrize(
    ("kind", "name", "values"),
    [
        (TaskConfig, "fraction", (1e-3, 1.0)),
        (TaskConfig, "held_out", (0.0, 0.9)),
        (TaskConfig, "dropout", (0.0, 0.9)),
        (MixupConfig, "ratio", (0.0, 1.0)),
    ],
)
def test_the_edges_of_a_range_are_taken(kind: type[Any], name: str, values: tuple[float, ...]) -> None:
    for value in values:
        assert getattr(kind(**{name: value}), name) == value


def test_some_loss_must_have_a_weight() -> None:
    with pytest.raises(HomodistilError, match="task_loss"):
        TaskLossConfig(task=0.0)
    assert TaskLossConfig(task=0.0, mixed_kd=1.0).learns_from_teacher


@pytest.mark.parametrize("name", ["kd", "mixed_kd", "patience"])
def test_a_finetune_has_no_teacher_to_learn_from_and_mixkd_must_have_one(name: str) -> None:
    taught = TaskLossConfig(**{name: 0.1})
    with pytest.raises(HomodistilError, match="method finetune") as caught:
        RunConfig(method="finetune", task_loss=taught)
    assert "mixkd" in caught.value.remedy
    assert RunConfig(method="mixkd", task_loss=taught).task_loss == taught


def test_mixkd_without_a_teachers_loss_is_refused() -> None:
    with pytest.raises(HomodistilError, match="method mixkd") as caught:
        RunConfig(method="mixkd", task_loss=TaskLossConfig(mixed_task=1.0))
    assert "finetune" in caught.value.remedy


def test_only_a_task_may_leave_its_steps_to_the_epochs() -> None:
    assert RunConfig(method="finetune", steps=0).steps == 0
    with pytest.raises(HomodistilError, match="steps"):
        RunConfig(method="pretrain", steps=0)


@pytest.mark.parametrize(
    ("name", "alone", "taught"),
    [("finetune", False, False), ("mixkd", True, True), ("task_kd", False, False), ("pkd", False, False)],
)
def test_who_reads_mixed_examples(name: str, alone: bool, taught: bool) -> None:
    loss = PRESETS[name]().task_loss
    assert (loss.mixes(with_teacher=False), loss.mixes(with_teacher=True)) == (alone, taught)
    assert not TaskLossConfig(mixed_kd=1.0).mixes(with_teacher=False)
