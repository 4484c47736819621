"""A run that goes on from a checkpoint is the run that never stopped: to the bit on the same machine, else nearly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from integration.processes import work

STEPS = 14
FP32, BF16 = (0, 1, 2, 3), (1, 2, 3)
PLACES = {"before a cut": 3, "after a cut": 6, "after the last cut": 10}
Results = dict[str, dict[str, Any]]


def machine(stage: int, bf16: bool = False) -> dict[str, Any]:
    """Micro batches of 2: four accumulated on one rank, one on four."""
    values: dict[str, Any] = {"train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": stage}}
    return values | {"gradient_clipping": 1.0, "bf16": {"enabled": bf16}}


def config(teacher: Path, corpus: Path) -> dict[str, Any]:
    student = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    return {
        **{"teacher": str(teacher), "corpus": [str(corpus)], "steps": STEPS, "global_batch_size": 8},
        **{"sequence_length": 32, "held_out_sequences": 16, "eval_interval": 0, "log_interval": 1},
        **{"save_interval": 1, "save_total_limit": STEPS, "cuts": 2, "learning_rate": 1e-3},
        **{"student": student, "pruning": {"interval": 1, "end": 0.7}},
    }


def step(folder: Path, name: str, number: int) -> str:
    return str(folder / name / "checkpoints" / f"step-{number}")


@pytest.fixture(scope="module")
def values(tiny_teacher: Path, tiny_corpus: Path) -> dict[str, Any]:
    return config(tiny_teacher, tiny_corpus)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def same(values: dict[str, Any], folder: Path) -> Results:
    """Two ranks: a straight run of each kind, and what goes on from its checkpoints."""
    cases: dict[str, Any] = {}
    for bf16, stages in ((False, FP32), (True, BF16)):
        for stage in stages:
            name, given = f"{'bf16' if bf16 else 'fp32'}-{stage}", {"machine": machine(stage, bf16)}
            cases[name] = given
            for place, number in PLACES.items():
                if not bf16 or place == "after a cut":
                    cases[f"{name} {place}"] = {**given, "resume": step(folder / "two", name, number)}
    for before, after in ((2, 3), (3, 0)):
        resume = step(folder / "two", f"fp32-{before}", PLACES["after a cut"])
        cases[f"{before} to {after}"] = {"machine": machine(after), "resume": resume}
    return work(2, "resume", folder / "two", config=values, cases=cases)


@pytest.mark.parametrize("stage", FP32)
def test_same_ranks_in_float32_give_the_same_bits(same: Results, stage: int) -> None:
    straight = same[f"fp32-{stage}"]
    assert len(straight["history"]) == STEPS + 1
    for place in PLACES:
        assert same[f"fp32-{stage} {place}"] == straight, place


@pytest.mark.parametrize("stage", BF16)
def test_same_ranks_in_bf16_give_the_same_bits(same: Results, stage: int) -> None:
    assert same[f"bf16-{stage} after a cut"] == same[f"bf16-{stage}"]


@pytest.mark.parametrize("change", ["2 to 3", "3 to 0"])
def test_another_stage_goes_on_where_this_one_stood(same: Results, change: str) -> None:
    alike(same[change], same[f"fp32-{change[0]}"])


def test_other_numbers_of_ranks_go_on_where_these_stood(same: Results, values: dict[str, Any], folder: Path) -> None:
    """2 to 4 and back, 2 to 1 and back; all before the last cut, so that it is made by the others too."""
    straight = same["fp32-2"]
    for count in (4, 1):
        there = folder / str(count)
        case = {"machine": machine(2), "resume": step(folder / "two", "fp32-2", PLACES["before a cut"])}
        other = work(count, "resume", there, config=values, cases={"there": case})["there"]
        alike(other, straight)
    cases = {
        f"from {count}": {"machine": machine(2), "resume": step(folder / str(count), "there", PLACES["after a cut"])}
        for count in (4, 1)
    }
    for back in work(2, "resume", folder / "back", config=values, cases=cases).values():
        alike(back, straight)


def alike(found: dict[str, Any], straight: dict[str, Any], relative: float = 0.0) -> None:
    assert found["masks"] == straight["masks"]
    for own, other in zip(found["history"], straight["history"], strict=True):
        assert own == pytest.approx(other, rel=relative, abs=1e-4)
