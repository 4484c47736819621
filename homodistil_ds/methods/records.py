"""What a run was started with: run.json, run_config.json and the DeepSpeed configurations in the run directory."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

from homodistil_ds.evaluation.report import versions
from homodistil_ds.methods.opening import Run
from homodistil_ds.runtime import ranks
from homodistil_ds.runtime.whole_files import replace_text


def record(run: Run) -> None:
    """Write what this run is, once its engine stands: from here on the folder holds a run. All ranks call it."""
    ranks.on_first(lambda: _write_records(run))


def _write_records(run: Run) -> None:
    starts = _earlier_starts(run.run_dir / "run.json") if run.checkpoint is not None else []
    starts.append(
        {
            "command": run.command,
            "host": platform.node(),
            "world_size": ranks.world_size(),
            "after_step": run.checkpoint.step if run.checkpoint else 0,
            "teacher_placement": run.placement,
            "versions": versions(),
        }
    )
    after = run.ds_config_after_cuts
    later = [("ds_config_after_cuts.json", json.dumps(after, indent=2) + "\n")] if after else []
    for name, text in (
        ("run.json", json.dumps({"starts": starts}, indent=2) + "\n"),
        ("ds_config.json", json.dumps(run.ds_config, indent=2) + "\n"),
        *later,
        ("run_config.json", run.config.to_json()),
    ):
        for left_over in run.run_dir.glob(f".{name}.*"):  # of a start that was killed at this very moment
            left_over.unlink(missing_ok=True)
        replace_text(run.run_dir / name, text)


def _earlier_starts(path: Path) -> list[dict[str, Any]]:
    """Empty if the file is missing or damaged: a record must not keep a run from going on."""
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["starts"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
