"""Where the teacher lies changes nothing but memory; sharded, it may be several times larger than a rank's limit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig

from homodistil_ds.models.bert import BERT
from homodistil_ds.models.pieces import outline
from integration.conftest import succeeded
from integration.processes import TRAIN, torchrun, work

LIMIT = 240 * 2**20
RANKS = 4


@pytest.fixture(scope="module")
def compared(tiny_teacher: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("placement")
    return work(2, "placement", out, teacher=tiny_teacher, corpus=tiny_corpus)


@pytest.mark.parametrize("placement", ["zero3", "cpu_offload", "zero3 bf16", "zero3 autocast"])
def test_a_teacher_computes_the_same_wherever_it_lies(compared: dict[str, Any], placement: str) -> None:
    assert compared["differences"][placement]["training"] <= 1e-6
    assert compared["differences"][placement]["final"] <= 2e-6  # of logits around 5, by another attention kernel


@pytest.mark.parametrize("run", ["2 zero3", "0 zero3", "3 replicated", "3 zero3"])
def test_a_run_has_the_same_losses_wherever_its_teacher_and_its_student_lie(compared: dict[str, Any], run: str) -> None:
    losses, _ = compared["runs"][run]
    expected, _ = compared["runs"]["2 replicated"]
    assert losses == pytest.approx(expected, abs=1e-5)


def test_a_teacher_outlives_the_engine_of_its_student(compared: dict[str, Any]) -> None:
    assert [moved for _, moved in compared["runs"].values()] == [0.0] * 5


def test_a_teacher_in_pieces_on_each_of_two_nodes(tiny_teacher: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    found = work(RANKS, "node_teacher", tmp_path, teacher=tiny_teacher, corpus=tiny_corpus)
    assert found["largest"] == found["smallest"] == 0.5
    assert found["differences"]["training"] <= 1e-6
    assert found["differences"]["final"] <= 2e-6
    assert found["runs"]["node"] == pytest.approx(found["runs"]["replicated"], abs=1e-5)


def test_a_run_of_the_command_is_the_same_with_a_sharded_teacher(
    flags: list[str], two_ranks: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    arguments = ["--teacher_placement", "zero3", "--output_dir", str(run_dir)]
    succeeded(torchrun(2, TRAIN, *flags, *arguments), run_dir)
    expected, report = (json.loads((folder / "report.json").read_text()) for folder in (two_ranks, run_dir))
    assert json.loads((run_dir / "run.json").read_text())["starts"][-1]["teacher_placement"] == "zero3"
    assert report["mask_digest"] == expected["mask_digest"]
    for row, expected_row in zip(report["history"], expected["history"], strict=True):
        assert row == pytest.approx(expected_row, abs=1e-5)
    for model in ("teacher", "student"):
        assert report[model]["heldout_loss"] == pytest.approx(expected[model]["heldout_loss"], abs=1e-5)
    assert report["teacher"]["tokens_per_second"] is None


@pytest.fixture(scope="module")
def large_teacher(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random BERT in float32, written one layer at a time: 54 layers, hidden 512, 650 MiB."""
    folder = Path(shutil.copytree(tiny_teacher, tmp_path_factory.mktemp("large") / "teacher"))
    (folder / "model.safetensors").unlink()
    config = BertConfig(
        vocab_size=185,
        hidden_size=512,
        num_hidden_layers=54,
        num_attention_heads=8,
        intermediate_size=2048,
        max_position_embeddings=64,
    )
    config.save_pretrained(folder)
    files: dict[str, list[tuple[str, torch.Size]]] = {}
    for name, parameter in outline(config, BERT).named_parameters():
        layer = name.split(".layer.")[1].split(".")[0] if ".layer." in name else "rest"
        files.setdefault(f"model-{layer}.safetensors", []).append((name, parameter.shape))
    for file, tensors in files.items():
        save_file({name: 0.02 * torch.randn(shape) for name, shape in tensors}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, tensors in files.items() for name, _ in tensors}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def load_below_limit(
    large_teacher: Path, tiny_teacher: Path, corpus: Path, out: Path, placement: str
) -> list[dict[str, Any]]:
    settings = {"teacher": large_teacher, "corpus": corpus, "placement": placement, "limit": LIMIT}
    work(RANKS, "teacher_memory", out, **settings, tiny=tiny_teacher)
    return [json.loads((out / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in range(RANKS)]


def test_a_teacher_far_above_the_limit_of_a_rank_is_served_in_shards(
    large_teacher: Path, tiny_teacher: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    size = sum(path.stat().st_size for path in large_teacher.glob("*.safetensors"))
    assert size > 2.5 * LIMIT
    results = load_below_limit(large_teacher, tiny_teacher, tiny_corpus, tmp_path, "auto")
    assert [result.get("placement") for result in results] == ["zero3"] * RANKS, results
    peaks = [result["peak"] for result in results]
    assert all(size / RANKS < peak < LIMIT for peak in peaks), peaks


def test_the_same_teacher_whole_on_every_rank_does_not_fit(
    large_teacher: Path, tiny_teacher: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    results = load_below_limit(large_teacher, tiny_teacher, tiny_corpus, tmp_path, "replicated")
    assert all("GiB per rank" in result["error"] for result in results), results  # told before it is loaded
