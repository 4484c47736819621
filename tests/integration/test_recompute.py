"""Layers that are run once more for their backward pass change no step: ZeRO stages, over cuts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from family_models import save_teacher
from tiny_run import WORDS

from integration.processes import work
from integration.test_resume import Results, alike, config, machine

STAGES = (0, 2, 3)  # stage 3 comes last: it changes torch's linear for good, by a bit in the last place
RECOMPUTED: dict[str, Any] = {"activation_checkpointing": {}}
LOSSES = {
    "bert": {"mlm": 1.0, "kl": 1.0, "hidden": 1.0, "attention": 0.0, "embedding": 1.0},
    "llama": {"mlm": 0.0, "kl": 1.0, "hidden": 1.0, "attention": 0.0, "embedding": 1.0},
}


@pytest.fixture(scope="module", params=LOSSES)
def found(request: pytest.FixtureRequest, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp(request.param)
    teacher = save_teacher(request.param, WORDS, folder / "teacher")
    cases = {f"kept {stage}": {"machine": machine(stage)} for stage in STAGES}
    cases |= {f"recomputed {stage}": {"machine": machine(stage) | RECOMPUTED} for stage in STAGES}
    cases["changed 2"] = {"machine": machine(2) | RECOMPUTED, "after_cuts": machine(2)}
    ordered = {name: cases[name] for name in sorted(cases, key=lambda name: name[-1])}
    values = config(teacher, tiny_corpus) | {"loss": LOSSES[request.param], "save_interval": 0}
    return work(2, "resume", folder / "out", config=values, cases=ordered)


@pytest.mark.parametrize("stage", STAGES)
def test_recomputed_layers_give_the_same_run(found: Results, stage: int) -> None:
    alike(found[f"recomputed {stage}"], found[f"kept {stage}"])
    assert (found[f"recomputed {stage}"]["recomputes"], found[f"kept {stage}"]["recomputes"]) == (True, False)


def test_layers_run_once_again_as_soon_as_a_cut_has_made_room(found: Results) -> None:
    alike(found["changed 2"], found["kept 2"])
    assert not found["changed 2"]["recomputes"]
