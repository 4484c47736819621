"""A loop of sleeps and all-reduces under the guard. Each rank writes where it is, and how it ended."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from homodistil_ds.errors import EXIT_CODES, HomodistilError
from homodistil_ds.runtime import console, exit_reason, guard, ranks
from homodistil_ds.runtime.watchdog import Watchdog


def write(out: Path, name: str, values: dict[str, Any]) -> None:
    unfinished = out / f".{name}-{ranks.rank()}"
    unfinished.write_text(json.dumps(values), encoding="utf-8")
    unfinished.rename(out / f"{name}-{ranks.rank()}.json")


def loop(out: Path, watchdog: Watchdog) -> tuple[str, int]:
    """Why and in which step all ranks stopped."""
    step, agreed = 0, None
    while agreed is None:
        step += 1
        watchdog.beat(step)
        ranks.add_up(torch.ones(1))
        time.sleep(0.02)
        console.say(f"step {step}")
        if step == 3:
            write(out, "alive", {"pid": os.getpid()})
        agreed = ranks.agree_to_stop(guard.reason())
    watchdog.agreed()
    return agreed, step


def main() -> int:
    guard.install()
    out, limit_seconds = Path(sys.argv[-2]), float(sys.argv[-1])
    ranks.start()
    rank = ranks.rank()

    def on_hang(error: HomodistilError, step: int) -> None:
        exit_reason.write_exit_reason(out, error.exit_code, error.error_id, error.what, rank, step, None)

    try:
        with Watchdog(limit_seconds, rank, on_hang) as watchdog:
            reason, step = loop(out, watchdog)
    except RuntimeError as error:
        write(out, "failed", {"lost": ranks.lost(error), "error": str(error)})
        return EXIT_CODES["DIST"]
    write(out, "ended", {"reason": reason, "step": step, "own": guard.reason()})
    ranks.stop()
    return EXIT_CODES["STOP"]


if __name__ == "__main__":
    exit_reason.leave(main())
