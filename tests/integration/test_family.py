"""One run leaves a family of students behind: plain folders, the same after a resume, one of which may teach."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

from homodistil_ds.models.families import plan_for
from homodistil_ds.pruning.family import members_of
from integration.conftest import succeeded
from integration.processes import TRAIN, machine, run, torchrun

SCALES = (0.75, 0.5, 0.25)
STEPS = 24


def flags(teacher: Path, corpus: Path, folder: Path, stage: int, *changed: str) -> list[str]:
    path = folder / f"machine-{stage}.json"
    path.write_text(json.dumps(machine(stage)), encoding="utf-8")
    return [
        *("--deepspeed_config", str(path), "--teacher", str(teacher), "--corpus", str(corpus)),
        *("--steps", str(STEPS), "--global_batch_size", "8", "--sequence_length", "32", "--held_out_sequences", "16"),
        *("--eval_interval", "0", "--save_interval", "2", "--save_total_limit", str(STEPS), "--pruning.interval", "1"),
        *("--pruning.rest", "0.1", "--cuts", "2", "--family", ",".join(map(str, SCALES)), *changed),
    ]


def facts(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "report.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("family")


@pytest.fixture(scope="module")
def straight(tiny_teacher: Path, tiny_corpus: Path, folder: Path) -> Path:
    out = folder / "straight"
    given = flags(tiny_teacher, tiny_corpus, folder, 2, "--output_dir", str(out))
    return succeeded(run([sys.executable, str(TRAIN), *given]), out)


def test_every_member_is_a_plain_folder_of_its_shape(straight: Path, tiny_teacher: Path) -> None:
    rows = facts(straight)["family"]
    assert [row["scale"] for row in rows] == list(SCALES)
    assert [row["folder"] for row in rows] == ["students/0.75", "students/0.5", "student"]
    plan = plan_for(AutoModelForMaskedLM.from_pretrained(tiny_teacher).config)
    for row, member in zip(rows, members_of(plan, SCALES), strict=True):
        model, info = AutoModelForMaskedLM.from_pretrained(straight / row["folder"], output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert (model.config.hidden_size, model.config.intermediate_size) == (member.widths.hidden, member.widths.ffn)
        assert sum(tensor.numel() for tensor in model.parameters()) == row["parameters"]
        card = (straight / row["folder"] / "README.md").read_text(encoding="utf-8")
        assert f"{row['heldout_loss']:.4f} nats" in card
    page = (straight / "report.md").read_text(encoding="utf-8")
    assert "## Family" in page
    assert (straight / "figures" / "family.png").stat().st_size > 0


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_resumed_descent_leaves_the_same_students(
    straight: Path, tiny_teacher: Path, tiny_corpus: Path, folder: Path, place: str
) -> None:
    """From a checkpoint before the first student was left, and from one after it, into another folder."""
    first = facts(straight)["family"][0]["step"]
    near = {"before": max(step for step in range(2, STEPS, 2) if step < first), "after": first + 2 - first % 2}
    out = folder / place
    checkpoint = str(straight / "checkpoints" / f"step-{near[place]}")
    changed = ("--output_dir", str(out), "--resume", checkpoint)
    succeeded(run([sys.executable, str(TRAIN), *flags(tiny_teacher, tiny_corpus, folder, 2, *changed)]), out)
    for row in facts(straight)["family"]:
        ours, theirs = (load_file(where / row["folder"] / "model.safetensors") for where in (straight, out))
        assert ours.keys() == theirs.keys()
        assert all(bool((ours[name] == theirs[name]).all()) for name in ours)
    assert facts(out)["family"] == [
        row | {"tokens_per_second": new["tokens_per_second"]}
        for row, new in zip(facts(straight)["family"], facts(out)["family"], strict=True)
    ]
    before = json.loads(Path(checkpoint, "state.json").read_text(encoding="utf-8"))
    assert facts(out)["loop_cpu_seconds"] > before["loop"]["cpu_seconds"] > 0, (
        "what a run takes is that of all its starts"
    )


def test_an_assistant_teaches_what_is_smaller_on_two_ranks_in_pieces(
    tiny_teacher: Path, tiny_corpus: Path, folder: Path
) -> None:
    out = folder / "assisted"
    given = flags(tiny_teacher, tiny_corpus, folder, 3, "--output_dir", str(out), "--assistant", "auto")
    succeeded(torchrun(2, TRAIN, *given), out)
    trial, report = facts(out / "trial"), facts(out)
    worth = [row["trade_off"] for row in trial["family"][:-1]]
    place = worth.index(max(worth))
    chosen = trial["family"][place]
    assert report["teacher"]["parameters"] == chosen["parameters"]
    assert report["teacher"]["heldout_loss"] == pytest.approx(chosen["heldout_loss"], abs=1e-5)
    assert [row["scale"] for row in report["family"]] == list(SCALES[place + 1 :])
    assert [row["widths"] for row in report["family"]] == [row["widths"] for row in trial["family"][place + 1 :]]
    assert json.loads((out / "run_config.json").read_text())["teacher"] == str(out / "trial" / chosen["folder"])
    assert (out / "corpus" / "index.json").exists()
    assert not (out / "trial" / "corpus").exists(), "both descents read one corpus"
    again = torchrun(2, TRAIN, *given, "--resume", "auto")
    succeeded(again, out)
    assert "going on after step" in again.out
    assert facts(out)["student"]["heldout_loss"] == pytest.approx(report["student"]["heldout_loss"], abs=1e-6)
