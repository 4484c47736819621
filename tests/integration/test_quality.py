"""The comparison of all arms, in small: it runs, goes on where it was, and ends in its tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from learnable_tasks import write_tasks
from quality_arms import FULL_METHOD
from quality_table import ablation_table, caption, mixkd_table, on_tasks, write

from integration.processes import TRAIN, run

QUALITY = TRAIN.parent.parent / "benchmarks" / "quality.py"
ARMS = ("fine-tuning", "KD", "KD-twice", "MixKD")


def test_quality(tiny_teacher: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    data, out = write_tasks(tmp_path / "glue"), tmp_path / "quality"
    command = [sys.executable, str(QUALITY), "--output_dir", str(out), "--teacher", str(tiny_teacher)]
    command += ["--corpus", str(tiny_corpus), "--data", str(data), "--tasks", "SST-2", "--seeds", "0"]
    command += ["--steps", "8", "--batch", "8", "--sequence_length", "32", "--held_out_sequences", "16"]
    command += ["--epochs", "0.45", "--rates", "1e-3", "2e-3", "--mixkd_seeds", "0", "--mixkd_shares", "0.1"]
    command += ["--only", FULL_METHOD, "without kl", "first layers"]
    first = run(command)
    assert first.code == 0, first.shown
    facts = json.loads((out / "quality.json").read_text(encoding="utf-8"))
    arms = facts["distil"]
    assert set(arms) == {"homodistil_1of2", "without_kl", "first_layers"}
    assert arms["without_kl"]["learning_rate"] == arms["homodistil_1of2"]["learning_rate"] in (1e-3, 2e-3)
    assert [path.name for path in sorted((out / "trials").glob("*/"))] == [f"homodistil_1of2-0.00{n}" for n in (1, 2)]
    assert not list((out / "trials").glob("*/student"))
    curve = arms["homodistil_1of2"]["curve"]
    assert [step for step, _ in curve] == list(range(9))
    assert abs(curve[0][1]) < 1e-6
    assert {name: len(cells["SST-2"]) for name, cells in facts["glue"].items()} == {
        name: 1 for name in ("teacher", "homodistil_1of2", "first_layers", "pkd")
    }
    assert set(facts["mixkd"]) == {f"SST-2-0.1 {name}" for name in ("teacher", *ARMS)}
    epochs = {name: facts["mixkd"][f"SST-2-0.1 {name}"]["SST-2"][0]["epochs"] for name in ARMS}
    # 0.45 makes whole steps of both: a step and two.
    assert epochs["KD-twice"] == 2 * epochs["KD"] == 2 * epochs["MixKD"] == 2 * epochs["fine-tuning"]
    assert facts["mixkd"]["SST-2-0.1 fine-tuning"] == facts["glue"]["homodistil_1of2"], "made once"
    page = (out / "quality.md").read_text(encoding="utf-8")
    assert page in first.out
    again = run(command)
    assert again.code == 0, again.shown
    assert "done:" not in again.out
    assert page in again.out
    check_page(page)


def check_page(page: str) -> None:
    said, main, ablations, mixed, _ = page.split("\n\n")
    assert "every student has 8 steps of 8 x 32 tokens" in said
    rows = {cells[1]: cells for cells in ([cell.strip() for cell in row.split("|")] for row in main.splitlines())}
    assert "pkd (distilled on the task)" in rows
    assert rows["teacher"][3] != rows["teacher"][4], "parameters with and without embeddings"
    assert rows["first layers"][-4:-1] == ["-", "-", "-"]
    assert [row.split(" | ")[0] for row in ablations.splitlines()[2:]] == ["| nothing", "| without kl"]
    assert "KD, twice the epochs" in mixed
    assert len(mixed.splitlines()) == 3


def test_the_caption_says_what_all_rows_have_in_common() -> None:
    settings = {
        **{"teacher": "runs/t/student", "corpus": ["a/wiki.txt"], "data": "glue", "steps": 300, "batch": 16},
        **{"sequence_length": 128, "held_out_sequences": 64, "rates": [1e-3, 2e-3], "learning_rate": 2e-4},
        **{"seeds": [0, 1], "shares": {"SST-2": 0.1}, "epochs_on_tasks": {"SST-2": 10 / 3, "MRPC": 5.0}},
    }
    text = caption(settings)
    for part in (
        *("Teacher t,", "corpus wiki.txt", "300 steps of 16 x 128 tokens (0.61 M)", "rates 0.001, 0.002."),
        *("64 sequences", "seeds 0, 1", "development sets", "SST-2 with 10% of its training examples"),
        *("rate 0.0002", "SST-2 3.33, MRPC 5"),
    ):
        assert part in text
    assert "GLUE" not in caption({**settings, "data": None})


def test_the_mean_of_the_tasks_waits_for_all_of_them() -> None:
    runs = {"SST-2": [{"primary": 0.75}, {"primary": 0.25}], "CoLA": [{"primary": 0.25}]}
    assert on_tasks(runs, ["SST-2", "CoLA"]) == ["50.0 ± 35.4", "25.0", "37.5"]
    assert on_tasks({"CoLA": runs["CoLA"]}, ["SST-2", "CoLA"]) == ["", "25.0", ""]
    assert on_tasks({}, []) == []


def test_the_ablations_stand_beside_the_spread_of_seeds() -> None:
    cost = {"train_flops": 2e15, "train_cpu_seconds": 31.0, "train_seconds": 35.0, "learning_rate": 1e-3}
    arms = {
        name: {**cost, "name": name, "kind": kind, "heldout_loss": 2 + kl, "discrepancy_kl": kl}
        for name, kind, kl in (
            ("homodistil_1of2", "arm", 0.5),
            ("seed 1", "seed", 0.75),
            ("seed 2", "seed", 1.0),
            ("without kl", "ablation", 0.625),
            ("one-shot 1/2", "arm", 9.0),
        )
    }
    rest = "2,000.0 | 31 | 35 |"
    assert ablation_table(arms).splitlines()[2:] == [
        f"| nothing, 3 seeds: mean ± standard deviation | 0.001 | 2.750 ± 0.250 | 0.750 ± 0.250 |  | {rest}",
        f"| without kl | 0.001 | 2.625 | 0.625 | +0.125 | {rest}",
    ]


def test_the_table_of_mixkd(tmp_path: Path) -> None:
    found = {"teacher": (0.5,), "fine-tuning": (0.3, 0.5), "KD": (0.45, 0.5), "KD-twice": (), "MixKD": (0.5, 0.45, 0.3)}
    for arm, scores in found.items():
        for seed, primary in enumerate(scores):
            run_dir = tmp_path / "mixkd" / "CoLA-0.1" / arm / f"CoLA-{seed}"
            run_dir.mkdir(parents=True)
            cost = {"loop_cpu_seconds": 31.0 + seed, "measured_cpu_seconds": 1.0}
            report = {"task": "CoLA", "primary": primary, "seed": seed, "epochs": 1.0, "steps": 10, **cost}
            (run_dir / "report.json").write_text(json.dumps(report))
    page = write(tmp_path)
    expected = "| CoLA | 10% | 50.0 (30) | 40.0 ± 14.1 (30) | 47.5 ± 3.5 (30) | 41.7 ± 10.4 (31) | 0.0 ± 7.1 |"
    assert expected in page.splitlines(), "an arm that never ran has no column; a gain is that of the same seeds"
    assert "each seed has a teacher of its own" in page
    assert mixkd_table({}) == ""
