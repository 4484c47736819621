"""Which folders may be begun again, and which values of a run are those of another one."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from homodistil_ds.config import RunConfig
from homodistil_ds.errors import HomodistilError
from homodistil_ds.methods.start import check_same_values, refuse_used


@pytest.mark.parametrize("name", ["student", "report.json", "checkpoints/step-3"])
def test_what_cannot_be_had_again_is_not_begun_again(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(HomodistilError) as caught:
        refuse_used(tmp_path)
    assert caught.value.error_id == "CFG-USED-DIR"


def test_students_left_before_the_first_checkpoint_are_made_again(tmp_path: Path) -> None:
    (tmp_path / "students" / "0.5").mkdir(parents=True)
    refuse_used(tmp_path)


def test_an_assistant_is_itself_by_whatever_path_its_run_is_called() -> None:
    config = RunConfig(teacher="runs/a/trial/students/0.5")
    before = asdict(replace(config, teacher="/data/moved/trial/students/0.5"))
    check_same_values(config, before, "it", "mend it")
    for other in ("/data/moved/trial/students/0.25", "/data/students/0.5"):
        with pytest.raises(HomodistilError, match="--teacher"):
            check_same_values(config, before | {"teacher": other}, "it", "mend it")
