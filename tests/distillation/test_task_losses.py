"""Every loss of a task against its formula (X2-X4, B1, B6) in float64 loops, and micro batches against the whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from homodistil_ds.distillation.losses import Inputs, Pairs
from homodistil_ds.distillation.mixup import with_copy
from homodistil_ds.distillation.objective import Objective
from homodistil_ds.distillation.task_losses import TASK_LOSSES
from homodistil_ds.models.forward import Activations
from homodistil_ds.task_config import TaskLossConfig

GLOBAL, CLASSES, HIDDEN, LENGTH, TAU = 8, 3, 6, 4, 1.7
TEACHER_LAYERS, LAYERS = 4, 2
LAYER_MAP = (1, 3)
SPLITS = [(8,), (4, 4), (2, 2, 2, 2), (1,) * 8]
KINDS = ["classes", "values"]


def drawn(seed: int, rows: int, classes: int, layers: int) -> Activations:
    generator = torch.Generator().manual_seed(seed)
    return Activations(
        logits=2 * torch.randn(rows, classes, generator=generator),
        hidden=tuple(torch.randn(rows, LENGTH, HIDDEN, generator=generator) for _ in range(layers)),
    )


def rows_of(part: Activations, rows: Sequence[int]) -> Activations:
    assert part.logits is not None
    wanted = torch.tensor(rows, dtype=torch.long)
    return Activations(logits=part.logits[wanted], hidden=tuple(layer[wanted] for layer in part.hidden))


def whole(kind: str, ratio: float = 1.0, distance: str = "mse", share: torch.Tensor | None = None) -> Inputs:
    """A global batch as one micro batch: GLOBAL examples, then their mixed copies."""
    copied = torch.from_numpy(with_copy(GLOBAL, ratio))
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, CLASSES, (GLOBAL,), generator=generator)
    if kind == "values":
        labels = 5 * torch.rand(GLOBAL, generator=generator)
    partner = torch.randperm(GLOBAL, generator=generator)
    drawn_share = torch.rand(GLOBAL, generator=generator) if share is None else share
    rows, classes = GLOBAL + len(copied), CLASSES if kind == "classes" else 1
    return Inputs(
        student=drawn(1, rows, classes, LAYERS),
        teacher=drawn(2, rows, classes, TEACHER_LAYERS),
        labels=torch.cat([labels, labels[copied]]),
        temperature=TAU,
        distance=distance,
        layer_map=LAYER_MAP,
        pairs=Pairs(
            other_labels=torch.cat([labels, labels[partner[copied]]]),
            share=torch.cat([torch.ones(GLOBAL), drawn_share[copied]]),
            plain=GLOBAL,
            weight=1 / max(len(copied), 1),
            mask=(torch.arange(LENGTH) < torch.randint(1, LENGTH + 1, (rows, 1), generator=generator)).long(),
        ),
    )


def pairs_of(inputs: Inputs) -> Pairs:
    assert inputs.pairs is not None
    return inputs.pairs


def logits(part: Activations) -> list[list[float]]:
    assert part.logits is not None
    return part.logits.double().tolist()


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def log_softmax(row: Sequence[float], tau: float = 1.0) -> list[float]:
    total = math.log(math.fsum(math.exp(z / tau) for z in row))
    return [z / tau - total for z in row]


def error(row: list[float], target: list[float] | float) -> float:
    """Against a distribution over classes, or a value."""
    if isinstance(target, float):
        return (row[0] - target) ** 2
    return -math.fsum(part * log for part, log in zip(target, log_softmax(row), strict=True))


def target(inputs: Inputs, row: int) -> list[float] | float:
    pairs = pairs_of(inputs)
    share = float(pairs.share[row].double())
    first, second = inputs.labels[row].item(), pairs.other_labels[row].item()
    if inputs.labels.is_floating_point():
        return share * first + (1 - share) * second
    return [share * (place == first) + (1 - share) * (place == second) for place in range(CLASSES)]


def distance(own: list[float], shown: list[float], kind: str) -> float:
    if kind == "mse" or len(own) == 1:
        return mean([(a - b) ** 2 for a, b in zip(own, shown, strict=True)])
    student, teacher = log_softmax(own, TAU), log_softmax(shown, TAU)
    entropy = math.fsum(math.exp(t) * t for t in teacher) if kind == "kl" else 0.0
    return TAU**2 * (entropy - math.fsum(math.exp(t) * s for s, t in zip(student, teacher, strict=True)))


def patience(inputs: Inputs) -> float:
    total = 0.0
    for own, place in list(zip(inputs.student.hidden, LAYER_MAP, strict=True))[:-1]:
        squares = []
        for row in range(GLOBAL):
            ends = []
            for states in (own, inputs.teacher.hidden[place]):
                first = states[row, 0].double().tolist()
                norm = math.sqrt(math.fsum(value**2 for value in first))
                ends.append([value / norm for value in first])
            squares += [(a - b) ** 2 for a, b in zip(*ends, strict=True)]
        total += mean(squares)
    return total


def states(inputs: Inputs) -> float:
    mask = pairs_of(inputs).mask
    assert mask is not None
    found = []
    for own, place in zip(inputs.student.hidden, LAYER_MAP, strict=True):
        for row in range(GLOBAL):
            tokens = [token for token in range(LENGTH) if mask[row, token]]
            squares = (own[row].double() - inputs.teacher.hidden[place][row].double()) ** 2
            found.append(mean([mean(squares[token].tolist()) for token in tokens]))
    return mean(found)


def naive(name: str, inputs: Inputs) -> float:
    own, shown = logits(inputs.student), logits(inputs.teacher)
    plain, mixed = range(GLOBAL), range(GLOBAL, len(own))
    formulas: dict[str, Callable[[], float]] = {
        "task": lambda: mean([error(own[row], target(inputs, row)) for row in plain]),
        "mixed_task": lambda: mean([error(own[row], target(inputs, row)) for row in mixed]),
        "kd": lambda: mean([distance(own[row], shown[row], inputs.distance) for row in plain]),
        "mixed_kd": lambda: mean([distance(own[row], shown[row], inputs.distance) for row in mixed]),
        "patience": lambda: patience(inputs),
        "states": lambda: states(inputs),
    }
    return formulas[name]()


def value(name: str, inputs: Inputs) -> float:
    return float(TASK_LOSSES[name].function(inputs))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ratio", [0.5, 1.0])
@pytest.mark.parametrize("measure", ["mse", "kl", "ce"])
@pytest.mark.parametrize("name", TASK_LOSSES)
def test_a_loss_is_its_formula(name: str, measure: str, ratio: float, kind: str) -> None:
    inputs = whole(kind, ratio, measure)
    assert value(name, inputs) == pytest.approx(naive(name, inputs), rel=1e-5)


@pytest.mark.parametrize("sizes", SPLITS, ids=str)
@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("teacher_reads_plain", [True, False])
def test_the_mean_over_micro_batches_is_that_of_the_global_batch(
    teacher_reads_plain: bool, kind: str, ratio: float, sizes: tuple[int, ...]
) -> None:
    """At a ratio below 1 some micro batches have more mixed rows than others, and some have none."""
    inputs = whole(kind, ratio)
    pairs, copied = pairs_of(inputs), with_copy(GLOBAL, ratio).tolist()
    parts, start = [], 0
    for size in sizes:
        mixed = [GLOBAL + place for place, copy in enumerate(copied) if start <= copy < start + size]
        rows = [*range(start, start + size), *mixed]
        parts.append(
            replace(
                inputs,
                student=rows_of(inputs.student, rows),
                teacher=rows_of(inputs.teacher, rows if teacher_reads_plain or not mixed else mixed),
                labels=inputs.labels[rows],
                pairs=Pairs(
                    other_labels=pairs.other_labels[rows],
                    share=pairs.share[rows],
                    plain=size,
                    weight=GLOBAL / (size * max(len(copied), 1)),
                    mask=None if pairs.mask is None else pairs.mask[rows],
                ),
            )
        )
        start += size
    for name in TASK_LOSSES if teacher_reads_plain else ("task", "mixed_task", "mixed_kd"):
        split = math.fsum(value(name, part) for part in parts) / len(parts)
        assert split == pytest.approx(value(name, inputs), rel=1e-5), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("measure", ["mse", "kl", "ce"])
def test_rows_that_are_wholly_their_first_example_count_as_plain_ones(measure: str, kind: str) -> None:
    """And wholly the second: their labels are the other ones."""
    inputs = whole(kind, 1.0, measure, share=torch.ones(GLOBAL))
    twice = [*range(GLOBAL), *range(GLOBAL)]
    inputs = replace(inputs, student=rows_of(inputs.student, twice), teacher=rows_of(inputs.teacher, twice))
    assert value("mixed_task", inputs) == pytest.approx(value("task", inputs), rel=1e-6)
    assert value("mixed_kd", inputs) == pytest.approx(value("kd", inputs), rel=1e-6)
    pairs = pairs_of(inputs)
    other = replace(inputs, pairs=pairs._replace(share=torch.zeros_like(pairs.share)))
    swapped = replace(inputs, labels=pairs.other_labels, pairs=pairs._replace(other_labels=inputs.labels))
    assert value("mixed_task", other) == pytest.approx(value("mixed_task", swapped), rel=1e-6)


@pytest.mark.parametrize("name", ["kd", "mixed_kd", "patience"])
@pytest.mark.parametrize("measure", ["mse", "kl"])
def test_a_distance_from_the_teacher_to_itself_is_zero(name: str, measure: str) -> None:
    inputs = replace(whole("classes", 1.0, measure), layer_map=())
    assert value(name, replace(inputs, student=inputs.teacher)) == 0.0


def test_without_a_teacher_only_the_labels_are_left() -> None:
    every = TaskLossConfig(mixed_task=1.0, kd=1.0, mixed_kd=1.0, patience=1.0, states=1.0)
    assert list(Objective(every, with_teacher=False).weights) == ["task", "mixed_task"]
    taught = Objective(every, with_teacher=True)
    assert list(taught.weights) == list(TASK_LOSSES)
    assert taught.teacher_reads() == taught.student_reads() == {"logits", "hidden"}
    assert taught.settings == {"distance": "mse", "temperature": 1.0}


@pytest.mark.parametrize("name", TASK_LOSSES)
def test_low_precision_activations_are_compared_in_float32(name: str) -> None:
    def rounded(part: Activations, dtype: torch.dtype) -> Activations:
        assert part.logits is not None
        return Activations(
            logits=part.logits.bfloat16().to(dtype), hidden=tuple(s.bfloat16().to(dtype) for s in part.hidden)
        )

    inputs = whole("classes")
    found = [
        TASK_LOSSES[name].function(
            replace(inputs, student=rounded(inputs.student, dtype), teacher=rounded(inputs.teacher, dtype))
        )
        for dtype in (torch.bfloat16, torch.float32)
    ]
    assert found[0].dtype is torch.float32
    assert torch.equal(*found)
