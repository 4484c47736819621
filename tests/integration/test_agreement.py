"""A rank that keeps other neurons than the rest stops the run at the first prune event, before anything is masked."""

from __future__ import annotations

import json
import re
from pathlib import Path

from integration.processes import WORKERS, torchrun


def test_a_corrupted_rank_stops_the_run_with_group_step_and_rank(flags: list[str], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = [*flags, "--global_batch_size", "24", "--output_dir", str(run_dir), "--log_interval", "1"]
    finished = torchrun(3, WORKERS / "corrupted.py", *arguments)
    assert finished.code != 0
    assert "error[DIST-MASKS-DIFFER]" in finished.err, finished.shown
    assert "step 6: the masks of group 'ffn.1' differ from rank 0's on ranks [1]" in finished.err, finished.shown
    assert finished.err.count("error[DIST-MASKS-DIFFER]") == 1, "each rank has it in its log, the console has it once"
    for rank in range(3):
        log = (run_dir / "logs" / f"rank{rank}.log").read_text(encoding="utf-8")
        assert log.startswith("====")
        assert f"rank {rank}  host" in log
        assert log.count("error[DIST-MASKS-DIFFER]") == 1
    assert "Traceback" not in finished.err.split("elastic")[0]
    steps = [int(step) for step in re.findall(r"^step +(\d+)/", finished.out, re.M)]
    assert max(steps) < 6, "training went on"
    reason = json.loads((run_dir / "exit_reason.json").read_text(encoding="utf-8"))
    assert (reason["code"], reason["id"]) == (7, "DIST-MASKS-DIFFER")
    corrupted = re.search(r"corrupted at ([\d.]+)", (run_dir / "logs" / "rank1.log").read_text(encoding="utf-8"))
    assert corrupted is not None
    assert (run_dir / "exit_reason.json").stat().st_mtime - float(corrupted[1]) < 30


def test_agreed_digests_are_in_the_log_the_curves_the_checkpoint_and_the_report(two_ranks: Path) -> None:
    report = json.loads((two_ranks / "report.json").read_text(encoding="utf-8"))
    events = report["prune_events"]
    assert len(events) == report["digests_checked"] > 5
    assert events[-1]["digest"] == report["mask_digest"]
    newest = two_ranks / "checkpoints" / (two_ranks / "checkpoints" / "latest").read_text()
    state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
    assert state["events"] == events
    assert state["mask_digest"] == report["mask_digest"]
    curves = b"".join(path.read_bytes() for path in (two_ranks / "tb").glob("events.*"))
    assert all(event["digest"].encode() in curves for event in events)
    console = (two_ranks.parent / "two_ranks.out").read_text(encoding="utf-8")
    log = (two_ranks / "logs" / "rank0.log").read_text(encoding="utf-8")
    for event in events:
        line = f"pruned at step {event['step']}: {event['widths']}, masks {event['digest']} on every rank"
        assert line in console
        assert line in log
    assert "pruned" not in (two_ranks / "logs" / "rank1.log").read_text(encoding="utf-8")
