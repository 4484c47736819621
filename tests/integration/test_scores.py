"""Scores, shards and prune events do not depend on ranks, ZeRO stage or accumulation; scoring costs one all-reduce."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from homodistil_ds.models.families import plan_for
from homodistil_ds.models.forward import Activations, Student, forward
from homodistil_ds.models.loading import load_teacher, twin, without_dropout
from homodistil_ds.models.width import WidthPlan
from integration.processes import work

PLAIN = [f"zero{stage}-accumulation{accumulation}" for stage in (0, 1, 2, 3) for accumulation in (1, 2)]
OFFLOADED = [f"zero{stage}-offload" for stage in (1, 2, 3)]
LOW = [f"zero{stage}-{precision}" for precision in ("fp16", "bf16") for stage in (1, 2, 3)]
ODD_WORLDS = ["zero0-accumulation1", "zero2-accumulation1", "zero3-accumulation1"]
RUNS = [
    *((1, case) for case in PLAIN),
    *((2, case) for case in (*PLAIN, *OFFLOADED, *LOW)),
    *((4, case) for case in ODD_WORLDS),
]
READS = ("logits", "hidden", "attention", "embedding")
Scored = dict[int, tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def scored(tiny_teacher: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """World size -> folder of the saved tensors, and what the worker found."""
    found = {}
    for ranks in (1, 2, 4):
        out = tmp_path_factory.mktemp(f"scores{ranks}")
        cases = ODD_WORLDS if ranks == 4 else None
        found[ranks] = (out, work(ranks, "scores", out, teacher=tiny_teacher, corpus=tiny_corpus, cases=cases))
    return found


def teacher_and_plan(folder: Path) -> tuple[PreTrainedModel, WidthPlan]:
    teacher, _ = load_teacher(str(folder))
    return without_dropout(teacher), plan_for(teacher.config)


def objective(student: Activations, teacher: Activations, labels: torch.Tensor) -> torch.Tensor:
    """H8 to H13 with weights of 1, in the number format of the activations."""
    logits, target = student.logits.flatten(0, 1), teacher.logits.flatten(0, 1).log_softmax(-1)
    total = F.cross_entropy(logits, labels.flatten())
    total = total + (target.exp() * (target - logits.log_softmax(-1))).sum(-1).mean()
    total = total + F.mse_loss(student.embedding, teacher.embedding)
    for own, shown in ((student.hidden, teacher.hidden), (student.attention, teacher.attention)):
        total = total + sum(F.mse_loss(mine, theirs) for mine, theirs in zip(own, shown, strict=True))
    return total


def dense_scores(folder: Path, weights: Mapping[str, torch.Tensor], batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Sensitivity of every neuron from the whole gradient of the whole global batch, in float64 on one process."""
    teacher, plan = teacher_and_plan(folder)
    student = Student(twin(teacher, plan).requires_grad_(True), plan.family, READS, plan.full.hidden).double()
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            parameter.copy_(weights[name])
        shown = forward(teacher.double(), plan.family, batch["input_ids"], batch["positions"], reads=READS)
    objective(student(batch["input_ids"], batch["positions"]), shown, batch["labels"]).backward()
    sums = {group: torch.zeros(size, dtype=torch.float64) for group, size in plan.groups().items()}
    for name, parameter in student.named_parameters():
        if not plan.scored(name):
            continue
        entries = (parameter * parameter.grad).abs().detach()
        dims = plan.dims(name)
        for place, dim in enumerate(dims):
            if dim is not None:
                sums[dim.group] += entries.movedim(place, 0).flatten(1).sum(1) if entries.dim() > 1 else entries
        if len(dims) == 2 and dims[0] == dims[1] and dims[0] is not None:
            sums[dims[0].group] -= entries.diagonal()
    return sums


@pytest.mark.parametrize(("ranks", "case"), RUNS)
def test_scores_equal_those_of_the_full_gradient(scored: Scored, tiny_teacher: Path, ranks: int, case: str) -> None:
    """Each neuron's to 1e-5 of its own score; in low precision the rounding of the gradients remains."""
    facts = torch.load(scored[ranks][0] / f"{case}.pt", weights_only=True)
    wanted = dense_scores(tiny_teacher, facts["weights"], facts["batch"])
    found = facts["score"].double().split([len(values) for values in wanted.values()])
    pairs = [(group, own, values) for (group, values), own in zip(wanted.items(), found, strict=True)]
    if case in LOW:
        errors = {group: float((own - values).norm() / values.norm()) for group, own, values in pairs}
        assert max(errors.values()) < 0.05, errors
    else:
        errors = {group: float(((own - values).abs() / values).max()) for group, own, values in pairs}
        assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize(("ranks", "case"), RUNS)
def test_every_entry_is_scored_once(scored: Scored, ranks: int, case: str) -> None:
    assert scored[ranks][1][case]["coverage"] == [1, 1]
    owners = ranks if case.startswith("zero0") else 1  # at stage 0 every rank holds all masters and moments
    assert scored[ranks][1][case]["state_coverage"] == [owners, owners]


@pytest.mark.parametrize(("ranks", "case"), RUNS)
def test_scoring_costs_one_all_reduce_of_four_bytes_a_neuron(scored: Scored, ranks: int, case: str) -> None:
    found = scored[ranks][1][case]
    assert found["collectives"] == ([["all_reduce", 4 * found["neurons"]]] if ranks > 1 else [])


@pytest.mark.parametrize("case", PLAIN)
def test_prune_event_keeps_the_same_neurons_on_any_number_of_ranks(scored: Scored, case: str) -> None:
    kept = {ranks: found[case]["kept"] for ranks, (_, found) in scored.items() if case in found}
    assert len(kept) == (3 if case in ODD_WORLDS else 2)
    assert all(one == kept[1] for one in kept.values())
    assert {group: len(index) for group, index in kept[1].items() if group.endswith((".0", "hidden"))} == {
        "hidden": 15,
        "ffn.0": 41,
        "qk.0": 15,
        "vo.0": 15,
    }


@pytest.mark.parametrize(("ranks", "case"), RUNS)
def test_gradient_of_every_shard_is_the_slice_of_the_gathered_one(scored: Scored, ranks: int, case: str) -> None:
    assert scored[ranks][1][case]["gradient_gap"] == 0.0


@pytest.mark.parametrize(("ranks", "case"), [(ranks, case) for ranks, case in RUNS if not case.startswith("zero0")])
def test_masters_and_moments_of_every_shard_are_slices_of_the_gathered_ones(
    scored: Scored, ranks: int, case: str
) -> None:
    """After a step and a prune event."""
    assert scored[ranks][1][case]["state_gaps"] == {"weight": 0.0, "exp_avg": 0.0, "exp_avg_sq": 0.0}


@pytest.mark.parametrize("case", [case for case in LOW if case.endswith("fp16")])
def test_steps_whose_fp16_gradients_overflow_are_done_again_and_scored_once(scored: Scored, case: str) -> None:
    found = scored[2][1][case]
    assert found["skipped"] > 0
    assert found["loss_scale"] == 2.0 ** (24 - found["skipped"])
    assert found["steps"] == found["skipped"] + 1
