"""A student is measured in float32 where there is room, else in the format of training; the figures say which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from family_models import save_teacher
from tiny_run import WORDS

from integration.processes import machine, work

Results = dict[str, dict[str, Any]]
PLACEMENTS = ("replicated", "zero3")
STAGES = {"replicated": 2, "zero3": 3}


@pytest.fixture(scope="module")
def found(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("measured")
    teacher = save_teacher("llama", WORDS, folder / "teacher")
    config = {
        **{"teacher": str(teacher), "corpus": [str(tiny_corpus)], "steps": 3, "global_batch_size": 8},
        **{"sequence_length": 32, "held_out_sequences": 16, "eval_interval": 0, "save_interval": 0, "cuts": 1},
        "student": {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2},
        "pruning": {"interval": 1, "end": 0.7},
        "loss": {"mlm": 0.0, "kl": 1.0, "hidden": 0.0, "attention": 0.0, "embedding": 0.0},
    }
    half = {"bf16": {"enabled": True}}
    cases = {
        f"{placement} {'room' if room else 'none'}": {
            "machine": machine(STAGES[placement]) | half,
            "placement": placement,
            "room": room,
        }
        for placement in PLACEMENTS
        for room in (True, False)
    }
    return work(2, "measured", folder / "out", config=config, cases=cases)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_without_room_it_is_the_format_of_training_and_nearly_the_same_figure(found: Results, placement: str) -> None:
    room, none = (found[f"{placement} {name}"] for name in ("room", "none"))
    assert (room["report"]["measured_in"], none["report"]["measured_in"]) == ("float32", "bfloat16")
    assert (room["seen"]["weights"], none["seen"]["weights"]) == (["torch.float32"], ["torch.bfloat16"])
    assert room["seen"]["frequencies"] == none["seen"]["frequencies"] == ["torch.float32"], "positions are not rounded"
    for figure in ("heldout_loss", "discrepancy_kl"):
        assert none["report"]["student"][figure] == pytest.approx(room["report"]["student"][figure], rel=0.05)
    assert none["report"]["teacher"]["heldout_loss"] == pytest.approx(
        room["report"]["teacher"]["heldout_loss"], rel=0.05
    )
