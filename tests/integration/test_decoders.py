"""Decoders take the same way: any ZeRO stage, number of ranks, split of the vocabulary, cuts, a resume, the tools."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from family_models import save_teacher
from tiny_run import WORDS
from transformers import AutoModelForCausalLM, AutoTokenizer

from homodistil_ds.evaluation.inputs import sample_inputs
from homodistil_ds.models.families import plan_for
from integration.conftest import succeeded
from integration.processes import TRAIN, run, work
from integration.test_resume import Results, alike, config, machine, step

TOOLS = TRAIN.parent.parent / "tools"
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
    cases = {str(stage): {"machine": machine(stage), "most_entries": FEW} for stage in STAGES}
    found = work(ranks, "resume", folder / str(ranks), config=values, cases=cases)
    for stage in STAGES:
        alike(found[str(stage)], two["whole 0"])


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_goes_on_after_a_cut_is_the_run_that_never_stopped(two: Results, stage: int) -> None:
    assert two[f"resumed {stage}"] == two[f"parts {stage}"]


def distilled(teacher: Path, corpus: Path, machine: Path, run_dir: Path) -> Path:
    """The directory of a finished run of the command."""
    arguments = ["--deepspeed_config", str(machine), "--teacher", str(teacher), "--corpus", str(corpus)]
    arguments += ["--preset", "homodistil", "--steps", "10", "--global_batch_size", "8", "--sequence_length", "32"]
    arguments += ["--held_out_sequences", "16", "--student.hidden_size", "16", "--student.intermediate_size", "24"]
    arguments += ["--student.num_attention_heads", "2", "--pruning.interval", "1", "--output_dir", str(run_dir)]
    return succeeded(run([sys.executable, str(TRAIN), *arguments]), run_dir)


@pytest.mark.parametrize("variant", ["gemma", "gpt2", "mistral", "opt", "qwen3"])
def test_the_command_leaves_a_student_that_transformers_loads(
    variant: str, tiny_corpus: Path, fp32_config: Path, tmp_path: Path
) -> None:
    teacher = save_teacher(variant, WORDS, tmp_path / "teacher")
    run_dir = distilled(teacher, tiny_corpus, fp32_config, tmp_path / "run")
    student, info = AutoModelForCausalLM.from_pretrained(run_dir / "student", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    full = plan_for(student.config).full
    assert (student.config.model_type, full.hidden, full.ffn, full.heads) == (variant, 16, 24, 2)
    ids = AutoTokenizer.from_pretrained(run_dir / "student")("ban bas dot", return_tensors="pt")["input_ids"]
    assert torch.isfinite(student(ids).logits).all()
    report = json.loads((run_dir / "report.json").read_text(encoding="utf-8"))
    assert report["student"]["discrepancy_kl"] > 0


@pytest.fixture(scope="module")
def finished(values: dict[str, Any], tiny_corpus: Path, fp32_config: Path, folder: Path) -> Path:
    """The run directory of a Llama."""
    return distilled(Path(values["teacher"]), tiny_corpus, fp32_config, folder / "llama")


def used(tool: str, *arguments: object) -> str:
    """What a tool says that has done its work and complains of nothing."""
    done = run([sys.executable, str(TOOLS / tool), *map(str, arguments)])
    assert (done.code, done.err) == (0, ""), done.shown
    return done.out


def test_the_student_is_exported_for_transformers_and_onnxruntime(finished: Path, tmp_path: Path) -> None:
    said = used(
        "export_student.py", "--run", finished, "--output_dir", tmp_path / "out", "--dtype", "bfloat16", "--onnx"
    )
    assert "loaded by transformers alone" in said
    assert "under onnxruntime" in said
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    student = AutoModelForCausalLM.from_pretrained(finished / "student")
    assert exported.dtype == torch.bfloat16
    for name, tensor in student.state_dict().items():
        assert torch.equal(exported.state_dict()[name], tensor.to(torch.bfloat16)), name
    session = onnxruntime.InferenceSession(str(tmp_path / "out/onnx/model.onnx"), providers=["CPUExecutionProvider"])
    assert {one.name for one in session.get_inputs()} == {"input_ids", "attention_mask"}
    inputs = sample_inputs(exported, 3, 11)
    (logits,) = session.run(["logits"], {name: tensor.numpy() for name, tensor in inputs.items()})
    expected = exported.float().eval()(**inputs).logits.detach()
    assert np.abs(logits - expected.numpy()).max() <= 1e-5 * float(expected.abs().max())


def test_the_page_has_its_latency(finished: Path, values: dict[str, Any], tmp_path: Path) -> None:
    used("report.py", finished, "--output_dir", tmp_path / "page", "--latency")
    text = (tmp_path / "page" / "report.md").read_text(encoding="utf-8")
    timed = [line for line in text.split("## Latency")[1].split("##")[0].splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in timed[2:]] == [f"| teacher {values['teacher']}", "| llama"]
    assert "AutoModelForCausalLM" in text


def test_its_held_out_figures_are_those_of_its_report(finished: Path, values: dict[str, Any], tmp_path: Path) -> None:
    """On a corpus that was prepared of the same text, and beside last words."""
    passages, out = tmp_path / "passages.jsonl", tmp_path / "figures.json"
    texts = ["ban bas dot", "ban", f"{' '.join(WORDS)} bas"]
    passages.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    prepared = ["--teacher", values["teacher"], "--output_dir", tmp_path / "corpus", "--sequence_length", "32"]
    used("prepare_corpus.py", "--corpus", *values["corpus"], *prepared, "--workers", "1")
    asked = ["--model", finished / "student", "--teacher", values["teacher"], "--held_out_sequences", "16"]
    asked += ["--corpus", tmp_path / "corpus", "--last_words", passages, "--output", out]
    said = used("evaluate_heldout.py", *asked)
    assert "last words of 2 passages, 1 without their beginning, 1 skipped (one word)" in said
    told = json.loads((finished / "report.json").read_text(encoding="utf-8"))
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["heldout_loss"] == pytest.approx(told["student"]["heldout_loss"], rel=1e-5)
    assert found["teacher_loss"] == pytest.approx(told["teacher"]["heldout_loss"], rel=1e-5)
    assert found["kl"] == pytest.approx(told["student"]["discrepancy_kl"], rel=1e-4)
    assert found["last_words"]["perplexity"] > 1
    assert found["last_words"]["teacher_perplexity"] > 1
