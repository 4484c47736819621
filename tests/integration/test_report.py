"""The comparison of runs as users start it: a real run, timed in a fresh process, on one page."""

from __future__ import annotations

import sys
from pathlib import Path

from integration.processes import TRAIN, run

TOOL = TRAIN.parent.parent / "tools" / "report.py"


def test_a_real_run_is_on_the_page_with_its_latency(one_rank: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    page = tmp_path / "page"
    done = run(
        [sys.executable, str(TOOL), str(one_rank), "--output_dir", str(page), "--latency", "--title", "One & all"]
    )
    assert (done.code, done.err) == (0, ""), done.shown
    text = (page / "report.md").read_text(encoding="utf-8")
    timed = [line for line in text.split("## Latency")[1].split("##")[0].splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in timed[2:]] == [f"| teacher {tiny_teacher}", "| one_rank"]
    assert {path.stem for path in (page / "figures").glob("*.png")} == {"progress", "losses", "sizes"}
    markup = (page / "report.html").read_text(encoding="utf-8")
    assert "<h1>One &amp; all</h1>" in markup
    assert markup.count("data:image/png;base64,") == 3


def test_a_folder_without_a_report_is_refused(one_rank: Path, tmp_path: Path) -> None:
    done = run([sys.executable, str(TOOL), str(one_rank), str(tmp_path), "--output_dir", str(tmp_path / "page")])
    assert (done.code, done.out) == (4, ""), done.shown
    assert f"error[DATA-REPORT] {tmp_path}/report.json is missing" in done.err
    assert not (tmp_path / "page").exists()
    refused = run([sys.executable, str(TOOL), str(one_rank), "--output_dir", str(one_rank)])
    assert (refused.code, "is a run directory" in refused.err) == (2, True), refused.shown
