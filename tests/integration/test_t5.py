"""An encoder with a decoder takes the same way: ZeRO stages, ranks, teachers in pieces, cuts, a resume, the tools."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from family_models import save_teacher
from tiny_run import WORDS
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, T5EncoderModel

from homodistil_ds.models.families import plan_for
from integration.conftest import succeeded
from integration.processes import TRAIN, run, work
from integration.test_resume import Results, alike, config, machine, step

TOOLS = TRAIN.parent.parent / "tools"
STAGES = (0, 1, 2, 3)
STOPPED = 6  # after a cut
RELATIVE = 1e-4  # losses of two stacks of random weights add up to tens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("t5")


@pytest.fixture(scope="module")
def values(tiny_corpus: Path, folder: Path) -> dict[str, Any]:
    return config(save_teacher("t5", WORDS, folder / "teacher"), tiny_corpus)


@pytest.fixture(scope="module")
def two(values: dict[str, Any], folder: Path) -> Results:
    cases: dict[str, Any] = {}
    for stage in STAGES:  # stage 3 comes last: it changes torch's linear for good, by a bit in the last place
        cases[f"{stage}"] = {"machine": machine(stage)}
        cases[f"resumed {stage}"] = {"machine": machine(stage), "resume": step(folder / "two", f"{stage}", STOPPED)}
    return work(2, "resume", folder / "two", config=values, cases=cases)


@pytest.mark.parametrize("stage", STAGES[1:])
def test_stages_change_nothing(two: Results, stage: int) -> None:
    alike(two[f"{stage}"], two["0"], RELATIVE)


@pytest.mark.parametrize("ranks", [1, 4])
def test_other_numbers_of_ranks_change_nothing(values: dict[str, Any], two: Results, folder: Path, ranks: int) -> None:
    found = work(ranks, "resume", folder / str(ranks), config=values, cases={"2": {"machine": machine(2)}})
    alike(found["2"], two["0"], RELATIVE)


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_goes_on_after_a_cut_is_the_run_that_never_stopped(two: Results, stage: int) -> None:
    assert two[f"resumed {stage}"] == two[f"{stage}"]


def test_the_command_leaves_a_student_that_transformers_loads(tiny_corpus: Path, tmp_path: Path) -> None:
    """From a teacher in pieces with a vocabulary head of its own; the encoder serves alone; tools read the run."""
    teacher, run_dir = save_teacher("t5-1.1", WORDS, tmp_path / "teacher"), tmp_path / "run"
    machine_file = tmp_path / "zero3.json"
    machine_file.write_text(json.dumps(machine(3)), encoding="utf-8")
    arguments = ["--deepspeed_config", str(machine_file), "--teacher", str(teacher), "--corpus", str(tiny_corpus)]
    arguments += ["--steps", "10", "--global_batch_size", "8", "--sequence_length", "32", "--held_out_sequences", "16"]
    arguments += ["--student.hidden_size", "20", "--student.intermediate_size", "24", "--teacher_placement", "zero3"]
    arguments += ["--student.num_attention_heads", "2", "--pruning.interval", "1", "--output_dir", str(run_dir)]
    succeeded(run([sys.executable, str(TRAIN), *arguments]), run_dir)
    student, info = AutoModelForSeq2SeqLM.from_pretrained(run_dir / "student", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    plan = plan_for(student.config)
    assert (plan.full.hidden, plan.full.ffn, plan.full.heads, plan.full.head_size, plan.layers) == (20, 24, 2, 6, 5)
    ids = AutoTokenizer.from_pretrained(run_dir / "student")("ban bas <extra_id_0> dot", return_tensors="pt").input_ids
    # Its cache would have as many layers as the encoder.
    assert student.generate(ids, max_new_tokens=4, use_cache=False).shape[0] == 1
    assert T5EncoderModel.from_pretrained(run_dir / "student")(ids).last_hidden_state.shape == (1, ids.shape[1], 20)
    report = json.loads((run_dir / "report.json").read_text(encoding="utf-8"))
    assert (report["language_model"], report["history"][0]["discrepancy_kl"]) == ("denoising", 0.0)

    exported = ["--run", str(run_dir), "--checkpoint", "step-10", "--output_dir", str(tmp_path / "exported")]
    done = run([sys.executable, str(TOOLS / "export_student.py"), *exported])
    assert done.code == 0, done.shown
    for part in AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "exported").state_dict().items():
        assert (student.state_dict()[part[0]] - part[1]).abs().max() < 1e-6, part[0]
    refused = run([sys.executable, str(TOOLS / "export_student.py"), *exported[:-1], str(tmp_path / "o"), "--onnx"])
    assert refused.code != 0
    assert "error[CFG-ONNX]" in refused.shown
    page = [str(run_dir), "--output_dir", str(tmp_path / "page"), "--latency"]
    done = run([sys.executable, str(TOOLS / "report.py"), *page])
    assert done.code == 0, done.shown
