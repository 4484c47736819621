"""The GLUE tool: a grid judged on held-out training examples, seeds, a table that goes on where it was, submissions."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from learnable_tasks import write_tasks

from integration.processes import TRAIN, run

GLUE = TRAIN.parent.parent / "tools" / "evaluate_glue.py"


def command(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    flags = ["--model", str(model), "--data", str(data), "--output_dir", str(out), "--sequence_length", "32"]
    return [sys.executable, str(GLUE), *flags, "--epochs", "2", *more]


def test_a_table_of_seeds_that_goes_on_where_it_was(tiny_teacher: Path, tmp_path: Path) -> None:
    data, out = write_tasks(tmp_path / "glue"), tmp_path / "out"
    first = run(command(tiny_teacher, data, out, "--tasks", "sst2", "--seeds", "1", "--learning_rates", "1e-5", "3e-3"))
    assert first.code == 0, first.shown
    trials = {path.name: json.loads((path / "report.json").read_text()) for path in (out / "trials").iterdir()}
    assert all(list(trial["metrics"]) == ["held_out"] and trial["train_examples"] == 180 for trial in trials.values())
    assert all(trial["seed"] == 0 for trial in trials.values()), "every seed's start would choose alike"
    best = max(trials.values(), key=lambda trial: trial["primary"])
    chosen = json.loads((out / "SST-2-1" / "report.json").read_text())
    assert chosen["learning_rate"] == best["learning_rate"] == 3e-3
    assert (chosen["train_examples"], list(chosen["metrics"])) == (200, ["dev"])

    more = command(tiny_teacher, data, out, "--tasks", "SST-2", "STS-B", "--seeds", "0", "1", "--learning_rate", "3e-3")
    second = run(more)
    assert second.code == 0, second.shown
    assert "out/SST-2-1/report.md" not in second.out, "a complete run is not repeated"
    table = json.loads((out / "glue.json").read_text())
    assert [(task["task"], task["seeds"]) for task in table["tasks"]] == [("SST-2", [0, 1]), ("STS-B", [0, 1])]
    assert set(table["tasks"][1]["metrics"]) == {"dev pearson", "dev spearman"}
    assert sorted(path.name for path in (out / "submission").iterdir()) == ["SST-2.tsv", "STS-B.tsv"]
    assert not list(out.glob("*/checkpoints")) + list(out.glob("*/student"))
    assert (out / "glue.md").read_text(encoding="utf-8") in second.out

    other = run([*more, "--task.dropout", "0.0"])
    assert other.code == 2, other.shown
    assert "CFG-RESUME" in other.err
    assert "--task.dropout was 0.1, is 0.0" in other.err


def test_what_learns_no_task_is_refused(tiny_teacher: Path, tmp_path: Path) -> None:
    refused = run(command(tiny_teacher, tmp_path, tmp_path / "out", "--preset", "demo"))
    assert refused.code == 2, refused.shown
    assert "--preset demo learns no task" in refused.err
    assert not (tmp_path / "out").exists()
