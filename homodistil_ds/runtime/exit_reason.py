"""exit_reason.json in the run directory: why the last run ended, for scripts whose launcher hides the exit code."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from homodistil_ds.runtime import claim

FILE_NAME = "exit_reason.json"
VARIABLE = "HOMODISTIL_EXIT_REASON"  # a file that a job script reads


def write_exit_reason(
    run_dir: Path, code: int, error_id: str, what: str, rank: int, step: int | None, checkpoint: str | None
) -> None:
    """Replace the file in one move. A folder that cannot be written is passed over: the reason itself matters more.

    So is one that a later start of this job goes on with.
    """
    if claim.superseded(run_dir):
        return
    reason = {"code": code, "id": error_id, "what": what, "rank": rank, "step": step, "checkpoint": checkpoint}
    _write(run_dir / FILE_NAME, reason, str(rank))


def tell_launcher(code: int, error_id: str, what: str) -> None:
    """Where VARIABLE names a file, say there how this start ended, also if it could not claim its run directory."""
    if VARIABLE in os.environ:
        _write(Path(os.environ[VARIABLE]), {"code": code, "id": error_id, "what": what}, "0")


def _write(path: Path, reason: dict[str, Any], rank: str) -> None:
    unfinished = path.with_name(f".{path.name}.{rank}")  # several ranks may write at the same time
    try:
        unfinished.write_text(json.dumps(reason, indent=2) + "\n", encoding="utf-8")
        os.replace(unfinished, path)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
