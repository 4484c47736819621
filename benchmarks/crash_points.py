"""The training command, killed by itself (SIGKILL) at a named place. A launcher starts it in place of train.py.

    torchrun --nproc_per_node 2 benchmarks/crash_points.py POINT RANK TIMES FLAGS...

The rank RANK dies when it comes to POINT for the TIMES-th time. The package is not changed, its functions are wrapped.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from homodistil_ds import stage
from homodistil_ds.command import main
from homodistil_ds.runtime import checkpoint, checkpoint_writing, guard, ranks
from homodistil_ds.runtime.exit_reason import leave

POINTS = {
    "staging folder made": "rank 0",
    "own file written": "any rank",
    "manifest not yet written": "rank 0",
    "manifest written, not yet on disk": "rank 0",
    "not yet renamed": "rank 0",
    "renamed, latest not yet moved": "rank 0",
    "latest written, not yet moved": "rank 0",
    "older ones not yet removed": "rank 0",
    "older one half removed": "rank 0",
    "cut: old engine gone": "any rank",
    "cut: done, not yet saved": "any rank",
}


def armed(point: str, rank: int, times: int) -> Callable[[str], None]:
    left = [times]

    def reached(name: str) -> None:
        if name == point and ranks.rank() == rank:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return reached


def after(owner: Any, name: str, action: Callable[..., None]) -> None:
    """`action` gets the arguments once the function has returned."""
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        result = original(*arguments, **named)
        action(*arguments)
        return result

    setattr(owner, name, wrapped)


def before(owner: Any, name: str, action: Callable[..., None]) -> None:
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        action(*arguments)
        return original(*arguments, **named)

    setattr(owner, name, wrapped)


def install(reached: Callable[[str], None]) -> None:
    def synced(path: Path) -> None:
        if path.name.startswith(checkpoint.UNFINISHED):
            reached("not yet renamed")
        if path.name == "checkpoints":
            reached("renamed, latest not yet moved")

    def half_removed(path: Path, **_: Any) -> None:
        # The name says whether it is a checkpoint on its way out or the rest of an unfinished one.
        if path.name.startswith(f"{checkpoint.UNFINISHED}step-"):
            sorted(path.iterdir())[0].unlink()
            reached("older one half removed")

    after(checkpoint_writing, "_begin", lambda *_: reached("staging folder made"))
    after(checkpoint_writing, "_write_rank", lambda *_: reached("own file written"))
    before(checkpoint_writing, "_commit", lambda *_: reached("manifest not yet written"))
    before(
        checkpoint_writing,
        "sync",
        lambda path: reached("manifest written, not yet on disk") if path.name == checkpoint.MANIFEST else None,
    )
    after(checkpoint_writing, "sync", synced)
    before(Path, "replace", lambda _, to: reached("latest written, not yet moved") if to.name == "latest" else None)
    before(checkpoint_writing, "_drop_older", lambda *_: reached("older ones not yet removed"))
    before(shutil, "rmtree", half_removed)
    after(stage, "dispose", lambda *_: reached("cut: old engine gone"))
    after(stage.Stage, "cut", lambda *_: reached("cut: done, not yet saved"))


if __name__ == "__main__":
    guard.install()
    # deepspeed puts --local_rank first.
    first = [argument for argument in sys.argv[1:] if argument.startswith("--local")]
    at, of_rank, count, *flags = [argument for argument in sys.argv[1:] if not argument.startswith("--local")]
    install(armed(at, int(of_rank), int(count)))
    leave(main([*first, *flags]))
