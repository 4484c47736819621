"""A run that goes on from a checkpoint is the run that never stopped, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from integration.processes import work


@pytest.fixture(scope="module")
def resumed(tiny_teacher: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two ranks, fp32, ZeRO 2; a checkpoint after each of the steps 1 to 5."""
    out = tmp_path_factory.mktemp("checkpoint")
    return work(2, "checkpoint_round_trip", out, teacher=tiny_teacher, corpus=tiny_corpus)


def test_losses_after_loading_are_those_of_the_uninterrupted_run(resumed: dict[str, Any]) -> None:
    uninterrupted, again = resumed["histories"]
    assert [row["step"] for row in again] == [6, 7, 8, 9, 10, 10]  # the last is the held-out row
    assert again == [row for row in uninterrupted if row["step"] > 5]


def test_masks_and_importance_are_restored(resumed: dict[str, Any]) -> None:
    assert resumed["step"] == 5
    assert resumed["restored digest"] == resumed["saved digests"]["5"]
    first, again = resumed["final digests"]
    assert first == again
    assert first != resumed["restored digest"], "no neuron left after the checkpoint, so nothing was tested"
    assert resumed["agreements"][0] == resumed["agreements"][1]


def test_folder_holds_the_newest_two_and_nothing_unfinished(resumed: dict[str, Any]) -> None:
    assert resumed["files"] == ["latest", "step-4", "step-5"]
