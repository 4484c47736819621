"""A gradient that is not a number on one rank never reaches weights, masks or scores of any, at every ZeRO stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from integration.processes import work

CASES = [f"zero{zero}-fp32" for zero in range(4)] + [f"zero{zero}-bf16" for zero in (1, 2, 3)]


@pytest.fixture(scope="module")
def poisoned(tiny_teacher: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("bad_gradient")
    return work(2, "bad_gradient", out, teacher=tiny_teacher, corpus=tiny_corpus)


@pytest.mark.parametrize("case", CASES)
def test_all_ranks_stop_with_the_step_and_nothing_has_changed(poisoned: dict[str, Any], case: str) -> None:
    found = poisoned[case]
    assert found["errors"] == ["NUM-GRADIENT step 4: a gradient is not a finite number"] * 2
    assert found["unchanged"]
    assert found["adam_step"] == 3
