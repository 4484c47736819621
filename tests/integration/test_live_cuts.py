"""Cutting the running student changes nothing but its size, at every ZeRO stage; rebuilds are exact and leak none."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest

from integration.processes import work

STAGES = ["zero0", "zero1", "zero2", "zero3"]
REBUILT = [f"zero{zero}-None" for zero in range(4)] + [f"zero{z}-{p}" for p in ("bf16", "fp16") for z in (1, 2, 3)]


@pytest.fixture(scope="module")
def trained(tiny_teacher: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """On two ranks, gradients clipped at norm 1; float32 unless a name says otherwise."""
    out = tmp_path_factory.mktemp("live_cuts")
    return work(2, "live_cuts", out, teacher=tiny_teacher, corpus=tiny_corpus)


def assert_same_course(masked: dict[str, Any], cut: dict[str, Any]) -> None:
    """All losses of all steps to 1e-5, 34 of them after the last cut."""
    assert masked["physical"] == "32/64/4x8"
    assert cut["physical"] == cut["widths"] == "15/41/3x5"
    assert cut["digests"] == masked["digests"]
    assert len(cut["losses"]["total"]) == 44
    for name, values in masked["losses"].items():
        assert cut["losses"][name] == pytest.approx(values, rel=1e-5), name
    assert cut["heldout"] == pytest.approx(masked["heldout"], rel=1e-5)
    assert masked["losses"]["total"][-1] != pytest.approx(masked["losses"]["total"][11], rel=1e-3), (
        "nothing was learned"
    )
    assert cut["adam_step"] == cut["global_steps"] == 44
    assert masked["regrown"] == cut["regrown"] == 0


@pytest.mark.parametrize("stage", STAGES)
def test_a_cut_run_takes_the_course_of_the_masked_one(trained: dict[str, Any], stage: str) -> None:
    assert_same_course(trained[stage]["masked"], trained[stage]["cut"])


@pytest.mark.parametrize("stage", STAGES[1:])
def test_gradients_were_clipped_by_the_same_norm(trained: dict[str, Any], stage: str) -> None:
    masked, cut = (trained[stage][name]["grad_norm"] for name in ("masked", "cut"))
    assert masked == pytest.approx(cut, rel=1e-4)


@pytest.mark.parametrize("stage", STAGES[1:])
def test_the_course_does_not_depend_on_the_stage(trained: dict[str, Any], stage: str) -> None:
    """Clipping included: DeepSpeed has another code path for it at stage 0."""
    own, first = (trained[name]["cut"]["losses"]["total"] for name in (stage, "zero0"))
    assert own == pytest.approx(first, rel=1e-5)


@pytest.mark.parametrize(("name", "stage"), [("zero3-to-zero1", 1), ("zero2-to-zero0", 0)])
def test_the_zero_stage_may_change_at_a_cut(trained: dict[str, Any], name: str, stage: int) -> None:
    assert trained[name]["zero"] == stage
    assert_same_course(trained["zero2"]["masked"], trained[name])


@pytest.mark.parametrize("name", ["offload2", "offload3", "accumulated"])
def test_with_states_in_host_memory_and_with_accumulation_too(trained: dict[str, Any], name: str) -> None:
    """At stage 3 the weights are there too."""
    assert_same_course(trained[name]["masked"], trained[name]["cut"])


def test_in_bf16_the_course_is_the_same_but_for_its_rounding(trained: dict[str, Any]) -> None:
    """Smaller matrices round elsewhere, and near ties between neurons may then fall another way."""
    masked, cut = trained["bf16"]["masked"], trained["bf16"]["cut"]
    assert cut["losses"]["total"] == pytest.approx(masked["losses"]["total"], rel=2e-2)
    assert cut["physical"] == cut["widths"] == masked["widths"]
    assert masked["regrown"] == cut["regrown"] == 0


@pytest.mark.parametrize("name", REBUILT)
def test_a_rebuild_at_the_same_size_is_bitwise(trained: dict[str, Any], name: str) -> None:
    """Losses, norm, weights; in fp16 the loss scale and its skipped steps go along."""
    straight, rebuilt = trained[name]["straight"], trained[name]["rebuilt"]
    assert straight == rebuilt
    assert (straight["skipped"] > 0) == name.endswith("fp16")


@pytest.mark.parametrize("stage", STAGES)
def test_twenty_rebuilds_leave_memory_flat(trained: dict[str, Any], stage: str) -> None:
    memory = trained[stage]["memory"]
    assert len(set(memory["parameters"][2:])) == 1, memory["parameters"]
    early, late = memory["rss"][4:10], memory["rss"][-6:]
    assert statistics.median(late) - statistics.median(early) < 3.0, memory["rss"]
