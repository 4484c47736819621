"""Decoders take the same way: any ZeRO stage, number of ranks and split of the vocabulary, cuts and a resume."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import save_teacher
from tiny_run import WORDS
from transformers import AutoModelForCausalLM, AutoTokenizer

from homodistil_ds.models.families import plan_for
from integration.conftest import succeeded
from integration.processes import TRAIN, run, work
from integration.test_resume import Results, alike, config, machine, step

STAGES = (0, 1, 2, 3)
FEW = 500  # logits at once: of a micro batch's 62 rows of 190 words
STOPPED = 6  # after a cut


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("decoders")


@pytest.fixture(scope="module")
def values(tiny_corpus: Path, folder: Path) -> dict[str, Any]:
    """Two groups of two query heads lose one; embeddings and vocabulary head are one tensor."""
    teacher = save_teacher("llama-tied", WORDS, folder / "teacher")
    loss = {"mlm": 0.5, "kl": 1.0, "jsd": 0.5, "hidden": 1.0, "embedding": 1.0, "attention": 0.0}
    return config(teacher, tiny_corpus) | {"loss": loss}


@pytest.fixture(scope="module")
def two(values: dict[str, Any], folder: Path) -> Results:
    cases: dict[str, Any] = {}
    for stage in STAGES:  # stage 3 comes last: it changes torch's linear for good, by a bit in the last place
        cases[f"whole {stage}"] = {"machine": machine(stage)}
        cases[f"parts {stage}"] = {"machine": machine(stage), "most_entries": FEW}
        resume = step(folder / "two", f"parts {stage}", STOPPED)
        if stage:
            cases[f"bf16 {stage}"] = {"machine": machine(stage, bf16=True), "most_entries": FEW}
        cases[f"resumed {stage}"] = cases[f"parts {stage}"] | {"resume": resume}
    return work(2, "resume", folder / "two", config=values, cases=cases)


@pytest.mark.parametrize("form", ["whole", "parts"])
@pytest.mark.parametrize("stage", STAGES)
def test_stages_and_parts_of_the_vocabulary_change_nothing(two: Results, stage: int, form: str) -> None:
    alike(two[f"{form} {stage}"], two["whole 0"])


@pytest.mark.parametrize("stage", STAGES[1:])
def test_half_precision_leaves_rotary_frequencies_exact(two: Results, stage: int) -> None:
    """Of student and teacher, after the last cut: rounded ones would be other positions."""
    assert two["whole 0"]["frequencies"]
    assert two[f"bf16 {stage}"]["frequencies"] == two["whole 0"]["frequencies"]
    assert two[f"bf16 {stage}"]["history"][-1]["discrepancy_kl"] == pytest.approx(
        two["whole 0"]["history"][-1]["discrepancy_kl"], rel=0.2
    )


@pytest.mark.parametrize("ranks", [1, 4])
def test_other_numbers_of_ranks_change_nothing(values: dict[str, Any], two: Results, folder: Path, ranks: int) -> None:
    cases = {"parts": {"machine": machine(2), "most_entries": FEW}}
    alike(work(ranks, "resume", folder / str(ranks), config=values, cases=cases)["parts"], two["whole 0"])


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_goes_on_after_a_cut_is_the_run_that_never_stopped(two: Results, stage: int) -> None:
    assert two[f"resumed {stage}"] == two[f"parts {stage}"]


@pytest.mark.parametrize("variant", ["gemma", "gpt2"])
def test_the_command_leaves_a_student_that_transformers_loads(
    variant: str, tiny_corpus: Path, fp32_config: Path, tmp_path: Path
) -> None:
    teacher = save_teacher(variant, WORDS, tmp_path / "teacher")
    run_dir = tmp_path / "run"
    arguments = ["--deepspeed_config", str(fp32_config), "--teacher", str(teacher), "--corpus", str(tiny_corpus)]
    arguments += ["--preset", "homodistil", "--steps", "10", "--global_batch_size", "8", "--sequence_length", "32"]
    arguments += ["--held_out_sequences", "16", "--student.hidden_size", "16", "--student.intermediate_size", "24"]
    arguments += ["--student.num_attention_heads", "2", "--pruning.interval", "1", "--output_dir", str(run_dir)]
    succeeded(run([sys.executable, str(TRAIN), *arguments]), run_dir)
    student, info = AutoModelForCausalLM.from_pretrained(run_dir / "student", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    full = plan_for(student.config).full
    assert (student.config.model_type, full.hidden, full.ffn, full.heads) == (variant, 16, 24, 2)
    ids = AutoTokenizer.from_pretrained(run_dir / "student")("ban bas dot", return_tensors="pt")["input_ids"]
    assert torch.isfinite(student(ids).logits).all()
    report = json.loads((run_dir / "report.json").read_text(encoding="utf-8"))
    assert report["student"]["discrepancy_kl"] > 0
