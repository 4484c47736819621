"""A run that goes on from a checkpoint is the run that never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from integration.processes import work

OPTIMIZERS = ["adamw", "fused_adam"]


@pytest.fixture(scope="module")
def resumed(tiny_teacher: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two ranks, fp32, ZeRO 2; a checkpoint after each of the steps 1 to 5, the last one loaded."""
    out = tmp_path_factory.mktemp("checkpoint")
    return work(2, "checkpoint_round_trip", out, teacher=tiny_teacher, corpus=tiny_corpus)


def test_losses_after_loading_are_those_of_the_uninterrupted_run_to_the_bit(resumed: dict[str, Any]) -> None:
    uninterrupted, again = resumed["adamw"]["histories"]
    assert [row["step"] for row in again] == [6, 7, 8, 9, 10, 10]  # the last is the held-out row
    assert again == [row for row in uninterrupted if row["step"] > 5]


def test_losses_with_fused_adam_are_equal_to_rounding(resumed: dict[str, Any]) -> None:
    """DeepSpeed's FusedAdam on a CPU multiplies beta^t up step by step, but takes a power after a jump of t."""
    uninterrupted, again = resumed["fused_adam"]["histories"]
    for own, other in zip(again, (row for row in uninterrupted if row["step"] > 5), strict=True):
        assert own == pytest.approx(other, rel=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_masks_and_importance_are_restored(resumed: dict[str, Any], optimizer: str) -> None:
    found = resumed[optimizer]
    assert found["step"] == 5
    assert found["restored digest"] == found["saved digests"]["5"]
    first, again = found["final digests"]
    assert first == again
    assert first != found["restored digest"], "no neuron left after the checkpoint, so nothing was tested"
    assert found["agreements"][0] == found["agreements"][1]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_folder_holds_the_newest_two_and_nothing_unfinished(resumed: dict[str, Any], optimizer: str) -> None:
    files = set(resumed[optimizer]["files"]) - {"zero_to_fp32.py", "zero_to_torch.py"}  # DeepSpeed's recovery scripts
    assert files == {"latest", "step-4", "step-5"}
