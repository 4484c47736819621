"""A part that has begun is gone on with; while only it has begun, a path to resume from must lie in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from homodistil_ds.config import RunConfig
from homodistil_ds.errors import HomodistilError
from homodistil_ds.machine import Machine
from homodistil_ds.methods.parts import complete_first


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A run of which only the trial has begun, with a checkpoint."""
    (tmp_path / "run" / "trial" / "checkpoints" / "step-4").mkdir(parents=True)
    (tmp_path / "run" / "trial" / "run.json").write_text("{}", encoding="utf-8")
    return tmp_path / "run"


def started(whole: Path, resume: str) -> tuple[list[str], str]:
    """How the part was told to resume, and how the run around it is."""
    told: list[str] = []
    own = RunConfig(output_dir=str(whole / "trial"))
    rest = complete_first(own, Machine(ds_config={}, resume=resume), whole, lambda its: told.append(its.resume))
    return told, rest.resume


@pytest.mark.parametrize("resume", ["auto", "never", "the run"])
def test_the_newest_of_the_part_is_gone_on_with_and_the_rest_begins(whole: Path, resume: str) -> None:
    assert started(whole, str(whole) if resume == "the run" else resume) == (["auto"], "never")


@pytest.mark.parametrize("place", ["trial", "trial/checkpoints/step-4"])
def test_a_path_in_the_part_is_the_parts(whole: Path, place: str) -> None:
    assert started(whole, str(whole / place)) == ([str(whole / place)], "never")


def test_any_other_path_is_refused_before_the_part_is_done(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(HomodistilError, match="only trial/ has begun") as raised:
        started(whole, str(tmp_path / "elsewhere"))
    assert raised.value.error_id == "CKPT-NONE"


def test_a_part_that_is_not_there_begins(tmp_path: Path) -> None:
    assert started(tmp_path / "run", "never") == (["never"], "never")
