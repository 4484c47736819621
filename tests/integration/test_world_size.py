"""The number of ranks changes neither which neurons are kept nor what the student is worth; a repeated run nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def report(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "report.json").read_text(encoding="utf-8"))


def kept(run_dir: Path) -> dict[str, list[int]]:
    return json.loads((run_dir / "student" / "pruning.json").read_text(encoding="utf-8"))["kept"]


def test_one_and_two_ranks_keep_the_same_neurons(one_rank: Path, two_ranks: Path) -> None:
    """At least 99 % of all neurons share one fate."""
    sizes = {"hidden": 32} | {
        f"{axis}.{k}": size for k in (0, 1) for axis, size in (("ffn", 64), ("qk", 32), ("vo", 32))
    }
    first, second = kept(one_rank), kept(two_ranks)
    assert first.keys() == second.keys() == sizes.keys()
    differing = sum(len(set(first[group]) ^ set(second[group])) for group in sizes)
    assert differing <= 0.01 * sum(sizes.values()), f"{differing} of {sum(sizes.values())} neurons differ"


def test_one_and_two_ranks_reach_the_same_held_out_loss(one_rank: Path, two_ranks: Path) -> None:
    first, second = report(one_rank), report(two_ranks)
    assert (first["world_size"], second["world_size"]) == (1, 2)
    assert first["student"]["heldout_loss"] == pytest.approx(second["student"]["heldout_loss"], abs=1e-2)
    assert first["student"]["discrepancy_kl"] == pytest.approx(second["student"]["discrepancy_kl"], abs=1e-2)
    assert first["teacher"]["heldout_loss"] == pytest.approx(second["teacher"]["heldout_loss"], rel=1e-6)
    assert first["corpus_fingerprint"] == second["corpus_fingerprint"]


def test_the_first_evaluation_finds_the_untouched_teacher(one_rank: Path, two_ranks: Path) -> None:
    for found in (report(one_rank), report(two_ranks)):
        evaluated = [row for row in found["history"] if "heldout_loss" in row]
        assert [row["step"] for row in evaluated] == [0, 30, 60]
        assert evaluated[0] == found["history"][0]
        assert evaluated[0]["discrepancy_kl"] == pytest.approx(0.0, abs=1e-6)
        assert evaluated[0]["heldout_loss"] == pytest.approx(found["teacher"]["heldout_loss"], abs=1e-5)
        assert evaluated[0]["kept_hidden"] == 32


def test_every_prune_event_was_agreed_on(two_ranks: Path) -> None:
    assert report(two_ranks)["digests_checked"] > 0


def test_repeated_run_on_two_ranks_gives_the_same_masks(two_ranks: Path, repeated: Path) -> None:
    """And the same losses at every logged step, to the bit."""
    first, second = report(two_ranks), report(repeated)
    assert first["mask_digest"] == second["mask_digest"] != ""
    assert kept(two_ranks) == kept(repeated)
    assert first["history"] == second["history"]
