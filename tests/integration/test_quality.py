"""The comparison of all arms, in small: it runs, goes on where it was, and ends in its tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from learnable_tasks import write_tasks
from quality_table import mixkd_table, write

from integration.processes import TRAIN, run

QUALITY = TRAIN.parent.parent / "benchmarks" / "quality.py"


def test_quality(tiny_teacher: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    data = write_tasks(tmp_path / "glue")
    out = tmp_path / "quality"
    command = [sys.executable, str(QUALITY), "--output_dir", str(out), "--teacher", str(tiny_teacher)]
    command += ["--corpus", str(tiny_corpus), "--data", str(data), "--tasks", "SST-2", "--seeds", "0"]
    command += [
        "--steps",
        "8",
        "--batch",
        "8",
        "--sequence_length",
        "32",
        "--epochs",
        "0.5",
        "--parts",
        "distil",
        "ablate",
        "glue",
    ]
    command += ["--rates", "1e-3", "--only", "homodistil 1/2", "without kl", "pkd"]
    first = run(command)
    assert first.code == 0, first.shown
    facts = json.loads((out / "quality.json").read_text(encoding="utf-8"))
    assert set(facts["distil"]) == {"homodistil_1of2", "without_kl", "pkd"}
    assert facts["distil"]["without_kl"]["learning_rate"] == facts["distil"]["homodistil_1of2"]["learning_rate"]
    assert {name: len(cells["SST-2"]) for name, cells in facts["glue"].items()} == {
        name: 1 for name in ("teacher", "homodistil_1of2", "pkd")
    }
    page = (out / "quality.md").read_text(encoding="utf-8")
    assert page in first.out
    again = run(command)
    assert again.code == 0, again.shown
    assert "done:" not in again.out
    assert page in again.out


def test_the_table_of_mixkd(tmp_path: Path) -> None:
    for arm, scores in {"teacher": (0.5,), "fine-tuning": (0.3, 0.5), "KD": (0.45,), "MixKD": ()}.items():
        for seed, primary in enumerate(scores):
            run_dir = tmp_path / "mixkd" / "CoLA-0.1" / arm / f"CoLA-{seed}"
            run_dir.mkdir(parents=True)
            (run_dir / "report.json").write_text(json.dumps({"task": "CoLA", "primary": primary}))
    page = write(tmp_path)
    assert page.splitlines()[-1] == "| CoLA | 10% | 50.0 | 40.0 ± 14.1 | 45.0 |  |"
    assert mixkd_table({}) == ""
