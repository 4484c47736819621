"""What ranks send and open is what the plan of benchmarks/many_ranks.py says, and hardly any of it grows with them."""

from __future__ import annotations

from typing import Any

import many_ranks
import pytest
from many_ranks import TOLERANCE, bert_base, comparison, count_here, measured, plan, shape_of

WORLDS = (2, 4, 8)
pytestmark = pytest.mark.alone
FLAT = ("scoring", "agreement", "stop", "together", "resume")  # as much for one rank, however many there are


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    return count_here(tmp_path_factory.mktemp("many"), WORLDS, (2, 3))


def test_counted_is_what_is_planned(found: dict[int, dict[str, Any]]) -> None:
    rows = comparison(found)
    assert {row["phase"] for row in rows} == set(TOLERANCE)
    assert [row for row in rows if not row["within"]] == []


@pytest.mark.parametrize("case", ["zero2", "zero3"])
def test_most_of_it_is_the_same_for_every_number_of_ranks(found: dict[int, dict[str, Any]], case: str) -> None:
    figures = [measured(found[ranks][case]) for ranks in WORLDS]
    for phase in FLAT:
        assert len({one[phase] for one in figures}) == 1, phase
    assert figures[0]["scoring"].got == 4 * found[2][case]["neurons"]
    # The manifest is put together on rank 0 alone; what another rank sends does not grow.
    assert len({one["save"].sent for one in figures}) <= 2
    assert [len(found[ranks][case]["files"]) for ranks in WORLDS] == [ranks + 3 for ranks in WORLDS]


@pytest.mark.parametrize("case", ["zero2", "zero3"])
def test_every_entry_is_saved_once(found: dict[int, dict[str, Any]], case: str) -> None:
    for ranks in WORLDS:
        assert found[ranks][case]["state_bytes"] == 12 * shape_of(found[ranks][case]).entries


@pytest.mark.parametrize("case", ["zero2", "zero3"])
def test_the_layout_of_the_plan_is_that_of_deepspeed(found: dict[int, dict[str, Any]], case: str) -> None:
    for ranks in WORLDS:
        planned = many_ranks.RUNS[int(case[4:])](shape_of(found[ranks][case]), ranks)
        for own, runs in zip(found[ranks][case]["runs"], planned, strict=True):
            assert sorted(map(tuple, own)) == sorted(runs)


def test_the_plan_stays_flat_at_thousands_of_ranks() -> None:
    shape = bert_base()
    few, many = plan(shape, 2, 64, 32), plan(shape, 2, 1024, 512)
    for phase in FLAT:
        assert few[phase] == many[phase], phase
    assert many["resume elsewhere"].opens <= 10
    assert many["save"].got < 1e6
