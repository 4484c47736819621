"""Report and model card: nothing is lost on the way to disk, ratios are student / teacher, front matter is YAML."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from pathlib import Path

import pytest
import yaml
from matplotlib.figure import Figure

from homodistil_ds.evaluation.card import is_hub_name, model_card
from homodistil_ds.evaluation.report import ModelRow, Report, before_after_table, duration_text, versions, write_report

WIDTHS = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "head_size": 32,
    "num_hidden_layers": 6,
    "vocab_size": 8000,
}
TEACHER = ModelRow(
    parameters=8_000_000,
    parameters_without_embeddings=5_000_000,
    widths=WIDTHS,
    file_bytes=32 * 2**20,
    heldout_loss=4.0,
    discrepancy_kl=0.0,
    tokens_per_second=10_000.0,
)
STUDENT = ModelRow(
    parameters=4_000_000,
    parameters_without_embeddings=2_000_000,
    widths=WIDTHS | {"hidden_size": 192, "intermediate_size": 768, "head_size": 24},
    file_bytes=16 * 2**20,
    heldout_loss=4.4,
    discrepancy_kl=0.31,
    tokens_per_second=18_000.0,
)
REPORT = Report(
    name="demo",
    method="homodistil",
    teacher=TEACHER,
    student=STUDENT,
    steps=300,
    tokens=1_228_800,
    wall_seconds=200.0,
    train_flops=1e15,
    loop_seconds=180.0,
    loop_cpu_seconds=175.0,
    measured_seconds=6.0,
    measured_cpu_seconds=5.0,
    world_size=2,
    zero_stage=2,
    precision="float32",
    seed=0,
    mask_digest="ab12",
    corpus_fingerprint="cd34",
    prune_events=[],
    digests_checked=21,
    versions=versions(),
    history=[{"step": 50.0, "kl": 0.9}, {"step": 300.0, "kl": 0.31}],
)


def cells(table: str, label: str) -> list[str]:
    return next(line for line in table.splitlines() if line.startswith(label)).removeprefix(label).split()


def test_json_round_trip(tmp_path: Path) -> None:
    write_report(REPORT, tmp_path, {"widths": Figure(figsize=(1, 1))})
    assert json.loads((tmp_path / "report.json").read_text()) == dataclasses.asdict(REPORT)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["figures", "report.json", "report.md"]


def test_json_stays_json_when_a_loss_is_not_finite(tmp_path: Path) -> None:
    student = dataclasses.replace(STUDENT, heldout_loss=float("nan"))
    write_report(dataclasses.replace(REPORT, student=student), tmp_path, {})
    assert json.loads((tmp_path / "report.json").read_text())["student"]["heldout_loss"] is None


def test_markdown_links_what_exists_and_says_how_to_load(tmp_path: Path) -> None:
    write_report(REPORT, tmp_path, {"widths": Figure(figsize=(1, 1))})
    text = (tmp_path / "report.md").read_text()
    assert "](figures/widths.png)" in text
    assert (tmp_path / "figures" / "widths.png").stat().st_size > 0
    assert f'AutoModelForMaskedLM.from_pretrained("{tmp_path.as_posix()}/student")' in text
    for fact in ("300", "1,228,800", "3 min 20 s", "ab12", "cd34", "torch "):
        assert fact in text


def test_table_ratios() -> None:
    table = before_after_table(REPORT)
    assert cells(table, "parameters") == ["8,000,000", "4,000,000", "0.500"]
    assert cells(table, "without embeddings") == ["5,000,000", "2,000,000", "0.400"]
    assert cells(table, "hidden_size") == ["256", "192", "0.750"]
    assert cells(table, "weights file (MiB)") == ["32.00", "16.00", "0.500"]
    assert cells(table, "held-out loss (nats)") == ["4.0000", "4.4000", "1.100"]
    assert cells(table, "discrepancy KL (nats)") == ["0.0000", "0.3100", "-"]
    assert cells(table, "CPU inference (tokens/s; ratio = speed-up)") == ["10,000", "18,000", "1.800"]
    assert len({len(line) for line in table.splitlines()}) == 1


def test_table_without_a_teacher() -> None:
    table = before_after_table(dataclasses.replace(REPORT, teacher=None))
    assert cells(table, "parameters") == ["-", "4,000,000", "-"]


def test_versions_name_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    assert list(versions()) == ["python", "torch", "deepspeed", "transformers", "homodistil_ds"]
    monkeypatch.setattr("importlib.metadata.version", absent)
    assert versions()["deepspeed"] == "not installed"


def front_matter(card: str) -> dict[str, object]:
    _, head, _ = card.split("---\n", 2)
    return yaml.safe_load(head)


def test_card_of_a_hub_teacher() -> None:
    card = model_card(
        base_model="google-bert/bert-base-uncased",
        license="apache-2.0",
        corpus=("wikitext", "books.txt"),
        command="homodistil-train --steps 300",
        report=REPORT,
    )
    assert front_matter(card) == {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "license": "apache-2.0",
        "base_model": "google-bert/bert-base-uncased",
        "tags": ["homodistil", "distilled", "pruned"],
    }
    for fact in ("50.0%", "4.4000", "0.3100", "books.txt", "--steps 300", "| hidden_size | 192 | 256 |"):
        assert fact in card


def test_card_leaves_out_what_is_not_known(tmp_path: Path) -> None:
    for teacher in ("builtin", str(tmp_path)):
        card = model_card(base_model=teacher, license=None, corpus=("builtin",), command="x", report=REPORT)
        assert front_matter(card).keys() == {"library_name", "pipeline_tag", "tags"}
    without = dataclasses.replace(REPORT, teacher=None)
    card = model_card(base_model="bert-base-uncased", license=None, corpus=("builtin",), command="x", report=without)
    assert front_matter(card)["tags"] == ["homodistil"]
    assert "without a teacher" in card


@pytest.mark.parametrize(
    ("name", "expected"),
    [("bert-base-uncased", True), ("a/b", True), ("a/b/c", False), ("./teacher", False), ("/m", False), (".", False)],
)
def test_is_hub_name(name: str, expected: bool) -> None:
    assert is_hub_name(name) is expected


def test_duration_text() -> None:
    assert [duration_text(s) for s in (4.2, 200, 7500)] == ["4.2 s", "3 min 20 s", "2 h 05 min"]
