"""A masked student and the cut one compute and learn the same: norms, attention scale, moments, clipping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from integration.processes import work

STAGES = ["zero0", "zero1", "zero2"]


@pytest.fixture(scope="module")
def compared(tiny_teacher: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """On two ranks in fp32, gradients clipped at norm 1."""
    out = tmp_path_factory.mktemp("masked_equals_cut")
    return work(2, "masked_equals_cut", out, teacher=tiny_teacher, corpus=tiny_corpus)


@pytest.mark.parametrize("stage", STAGES)
def test_outputs_are_equal(compared: dict[str, Any], stage: str) -> None:
    assert compared[stage]["widths"] == "15/41/3x5"
    assert max(compared[stage]["outputs"].values()) < 1e-5, compared[stage]["outputs"]


@pytest.mark.parametrize("stage", STAGES)
def test_losses_of_eight_more_steps_are_equal(compared: dict[str, Any], stage: str) -> None:
    losses = compared[stage]["losses"]
    assert [len(values) for values in losses["total"]] == [8, 8]
    for name, (masked, cut) in losses.items():
        assert masked == pytest.approx(cut, rel=1e-5), name
    assert losses["total"][0][-1] != pytest.approx(losses["total"][0][0], rel=1e-3), "nothing was learned"


@pytest.mark.parametrize("stage", ["zero1", "zero2"])
def test_gradients_were_clipped_by_the_same_norm(compared: dict[str, Any], stage: str) -> None:
    masked, cut = compared[stage]["grad_norms"]
    assert masked == pytest.approx(cut, rel=1e-5)
    assert masked > 1.0


@pytest.mark.parametrize("stage", ["zero1", "zero2"])
def test_losses_do_not_depend_on_the_stage(compared: dict[str, Any], stage: str) -> None:
    """Clipping included: DeepSpeed has another code path for it at stage 0."""
    for own, first in zip(compared[stage]["losses"]["total"], compared["zero0"]["losses"]["total"], strict=True):
        assert own == pytest.approx(first, rel=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_masked_weights_stay_zero_and_kept_ones_stay_equal(compared: dict[str, Any], stage: str) -> None:
    assert compared[stage]["adam_step"] == 8
    assert compared[stage]["regrown"] == 0
    assert max(compared[stage]["weights"].values()) < 1e-4, compared[stage]["weights"]
