"""How a rank ends: exit_reason.json, for scripts whose launcher hides the exit code, and the very last step."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from homodistil_ds.runtime import claim

FILE_NAME = "exit_reason.json"
UNWRITTEN = 120  # Python's own code
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


def leave(code: int) -> NoReturn:
    """End this process with this code, once all is written and closed, without the interpreter's own tear-down.

    DeepSpeed holds its process groups to the end, and their threads with them. One that gives a tensor back while the
    interpreter is torn down aborts the process, and the launcher counts a complete run as failed. As Python does, it
    turns success into UNWRITTEN if a stream cannot take the rest.
    """
    try:
        atexit._run_exitfuncs()
        for stream in filter(None, (sys.stdout, sys.stderr)):
            try:
                stream.flush()
            except (OSError, ValueError):
                code = code or UNWRITTEN
        ctypes.CDLL(None).fflush(None)  # what C++ has printed
    finally:  # a signal may still raise
        os._exit(code)
