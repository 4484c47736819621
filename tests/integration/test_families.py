"""The command on a tiny teacher of each family that trains: from a folder with its own tokenizer to a plain student."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from family_models import VARIANTS, save_teacher
from tiny_run import WORDS
from transformers import AutoModelForMaskedLM, AutoTokenizer

from homodistil_ds.models.families import plan_for
from integration.conftest import succeeded
from integration.processes import TRAIN, run, work
from integration.test_resume import alike, config, machine, step


@pytest.mark.parametrize("variant", ["roberta", "distilbert", "electra-narrow", "modernbert", "deberta-v2-relative"])
def test_the_command_leaves_a_student_that_transformers_loads(
    variant: str, tiny_corpus: Path, fp32_config: Path, tmp_path: Path
) -> None:
    """BERT has its own tests; the ELECTRA that shares its embedding axis with the states runs as BERT does."""
    teacher = save_teacher(variant, WORDS, tmp_path / "teacher")
    run_dir, head_size = tmp_path / "run", 8 if variant in ("modernbert", "deberta-v2-relative") else 6
    arguments = ["--deepspeed_config", str(fp32_config), "--teacher", str(teacher), "--corpus", str(tiny_corpus)]
    arguments += ["--steps", "10", "--global_batch_size", "8", "--sequence_length", "32", "--held_out_sequences", "16"]
    arguments += ["--student.hidden_size", str(3 * head_size), "--student.intermediate_size", "24"]
    arguments += ["--student.num_attention_heads", "3", "--pruning.interval", "1", "--output_dir", str(run_dir)]
    succeeded(run([sys.executable, str(TRAIN), *arguments]), run_dir)
    student, info = AutoModelForMaskedLM.from_pretrained(run_dir / "student", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert student.config.model_type == VARIANTS[variant][0]
    full = plan_for(student.config).full
    assert (full.hidden, full.ffn, full.heads, full.head_size) == (3 * head_size, 24, 3, head_size)
    ids = AutoTokenizer.from_pretrained(run_dir / "student")("ban bas dot", return_tensors="pt")["input_ids"]
    assert torch.isfinite(student(ids).logits).all()
    assert json.loads((run_dir / "report.json").read_text(encoding="utf-8"))["steps"] == 10


@pytest.mark.parametrize("variant", ["gpt2", "modernbert"])
def test_matrices_that_were_taken_apart_are_sharded_and_cut_like_others(
    variant: str, tiny_corpus: Path, tmp_path: Path
) -> None:
    """Stage 3 comes last: it changes torch's linear for good, by a bit in the last place."""
    values = config(save_teacher(variant, WORDS, tmp_path / "teacher"), tiny_corpus)
    resumed = {"machine": machine(3), "resume": step(tmp_path / "out", "3", 6)}
    cases = {"2": {"machine": machine(2)}, "3": {"machine": machine(3)}, "resumed": resumed}
    found = work(2, "resume", tmp_path / "out", config=values, cases=cases)
    alike(found["3"], found["2"])
    assert found["resumed"] == found["3"]
