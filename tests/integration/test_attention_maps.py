"""A run whose attention maps are compared in tiles is the run with whole maps, pruned and cut, sharded or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from integration.processes import work

STAGES = ["zero0", "zero3"]


@pytest.fixture(scope="module")
def found(tiny_teacher: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return work(1, "attention_maps", tmp_path_factory.mktemp("maps"), teacher=tiny_teacher, corpus=tiny_corpus)


@pytest.mark.parametrize("stage", STAGES)
def test_tiles_give_the_same_history(found: dict[str, Any], stage: str) -> None:
    whole, tiles = (found[stage][str(tiled)] for tiled in (False, True))
    assert len(whole) == 13  # one row for each step, and one of held-out text
    assert all(row["attention"] > 0 for row in whole[:12])
    for own, theirs in zip(tiles, whole, strict=True):
        assert own == pytest.approx(theirs, rel=1e-4)
    assert tiles[-1]["kept_heads"] == 2
