"""What a run takes is what its plan says: bytes of collectives to the byte, FLOPs, the peak of its memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import plan_memory
import pytest
from family_models import save_teacher
from plan_memory import BESIDE, CASES, measure
from tiny_run import WORDS, write_corpus, write_teacher
from transformers import LlamaConfig

from homodistil_ds.config import load_run_config
from homodistil_ds.machine import Machine
from homodistil_ds.planning.devices import GPUS
from homodistil_ds.planning.job import job_of
from homodistil_ds.planning.plan import plan_of
from homodistil_ds.runtime import ds_config
from integration.processes import TRAIN, machine, run, work

RANKS = 2
# ZeRO-3 last: it changes torch's linear for the whole process.
TRAFFIC: dict[str, dict[str, Any]] = {
    "zero0": {"machine": machine(0), "placement": "replicated"},
    "zero1": {"machine": machine(1), "placement": "replicated"},
    "zero2": {"machine": machine(2), "placement": "replicated"},
    "zero2-at-once": {"machine": machine(2) | {"train_micro_batch_size_per_gpu": 8}, "placement": "replicated"},
    "zero2-bf16": {"machine": machine(2) | {"bf16": {"enabled": True}}, "placement": "replicated"},
    "zero2-teacher-in-pieces": {"machine": machine(2), "placement": "zero3"},
    "zero3": {"machine": machine(3), "placement": "replicated"},
    "zero3-teacher-in-pieces": {"machine": machine(3), "placement": "zero3"},
    "zero3-small-ones-whole": {"machine": machine(3), "placement": "replicated"},
    "zero3-let-go": {"machine": machine(3), "placement": "replicated"},
}
TRAFFIC["zero3-small-ones-whole"]["machine"]["zero_optimization"]["stage3_param_persistence_threshold"] = 100
TRAFFIC["zero3-let-go"]["machine"]["zero_optimization"] |= {
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 0,
}


# A decoder with a vocabulary head of its own, logits in parts; layers run once more.
DECODER: dict[str, Any] = {"loss": {"mlm": 0.5, "hidden": 1.0, "attention": 0.0}, "most_entries": 500}
RECOMPUTED: dict[str, Any] = {"activation_checkpointing": {}}
WITHOUT_MAPS = {"attention": 0.0}
TRAFFIC |= {
    "decoder-zero2": DECODER | {"machine": machine(2), "placement": "zero3"},
    "recomputed-zero2": {"machine": machine(2) | RECOMPUTED, "placement": "replicated"},
    "decoder-zero3": DECODER | {"machine": machine(3), "placement": "zero3"},
    "recomputed-zero3": {"machine": machine(3) | RECOMPUTED, "placement": "zero3", "loss": WITHOUT_MAPS},
    "decoder-recomputed-zero3": DECODER | {"machine": machine(3) | RECOMPUTED, "placement": "zero3"},
}


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("traffic")
    teacher, corpus = write_teacher(folder / "teacher"), write_corpus(folder / "words.txt")
    decoder = save_teacher("llama", WORDS, folder / "decoder")
    cases = {name: case | ({"teacher": decoder} if "most_entries" in case else {}) for name, case in TRAFFIC.items()}
    return work(RANKS, "planned_traffic", folder / "out", teacher=teacher, corpus=corpus, cases=cases)


@pytest.mark.parametrize("case", TRAFFIC)
def test_planned_bytes_are_those_that_are_counted(counted: dict[str, Any], case: str) -> None:
    found = counted[case]
    assert len(found["phases"]) == 2
    for phase in found["phases"]:
        # DeepSpeed learns in a first step at which places it needs what, and sends more.
        for step in range(phase["first"] + 1, phase["last"] + 1):
            traffic = dict(phase["traffic"])
            if step > found["end"]:
                traffic.pop("scores", None)
            assert found["counted"][str(step)] == sum(traffic.values()), (step, traffic)


def test_planned_flops_and_cuts_are_those_that_a_run_reports(two_ranks: Path, fp32_config: Path) -> None:
    config = load_run_config(two_ranks / "run_config.json")
    report = json.loads((two_ranks / "report.json").read_text(encoding="utf-8"))
    stated = Machine(ds_config=ds_config.read(fp32_config))
    plan = plan_of(job_of(config, stated, nodes=1, ranks_per_node=2, device=GPUS["h100"]))
    assert report["train_flops"] == pytest.approx(plan.flops, rel=1e-9)
    told = (two_ranks / "logs" / "rank0.log").read_text(encoding="utf-8")
    for cut in plan.job.milestones:
        assert f"cut at step {cut.step}: " in told
    assert report["peak_bytes"] > 0


@pytest.mark.alone
@pytest.mark.parametrize("case", ["bert-0-1", "bert-1-2", "llama-3-2-offload"])
def test_planned_memory_is_near_the_peak_that_is_measured(case: str, tmp_path: Path) -> None:
    row = measure(next(one for one in CASES if one.name == case), tmp_path)
    assert abs(row["off_by"]) <= BESIDE, plan_memory.line(row)


@pytest.mark.parametrize(("hidden", "code", "verdict"), [(32, 0, ": fits."), (16384, 1, ": DOES NOT FIT.")])
def test_the_plan_flag_prints_the_plan_of_the_run_and_starts_nothing(
    hidden: int, code: int, verdict: str, tmp_path: Path
) -> None:
    """Of the teacher there is a configuration and nothing else; 100 layers of 16,384 fit no test machine."""
    layers = 2 if hidden == 32 else 100
    LlamaConfig(
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        vocab_size=185,
        max_position_embeddings=64,
    ).save_pretrained(tmp_path / "teacher")
    flags = ["--plan", "--teacher", str(tmp_path / "teacher"), "--student.num_attention_heads", "2"]
    flags += ["--sequence_length", "32", "--output_dir", str(tmp_path / "run"), "--preset", "logit", "--steps", "10"]
    done = run([sys.executable, str(TRAIN), *flags, "--student.intermediate_size", "16", "--global_batch_size", "8"])
    assert done.code == code, done.shown
    assert verdict in done.out
    assert not (tmp_path / "run").exists()
