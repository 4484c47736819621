"""A student starts as its teacher: at the first step every distance is exactly 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from integration.processes import work

STAGES = ["zero0", "zero1", "zero2", "zero3"]


@pytest.fixture(scope="module")
def first_step(tiny_teacher: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("step_zero")
    return work(2, "step_zero", out, teacher=tiny_teacher, corpus=tiny_corpus)


@pytest.mark.parametrize("stage", STAGES)
def test_logits_through_the_engine_are_the_teachers_to_the_bit(first_step: dict[str, Any], stage: str) -> None:
    assert first_step[stage]["ranks with other logits"] == 0


@pytest.mark.parametrize("stage", STAGES)
def test_every_distance_is_exactly_zero(first_step: dict[str, Any], stage: str) -> None:
    terms = first_step[stage]["terms"]
    assert {name: terms[name] for name in ("kl", "hidden", "attention", "embedding")} == {
        "kl": 0.0,
        "hidden": 0.0,
        "attention": 0.0,
        "embedding": 0.0,
    }
    assert terms["total"] == terms["mlm"] > 0.0
