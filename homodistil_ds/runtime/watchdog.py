"""Watchdog of the training loop: a rank without progress says where it stands and leaves. It saves nothing."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import traceback
from collections.abc import Callable
from types import TracebackType

import psutil

from homodistil_ds.errors import HomodistilError
from homodistil_ds.runtime import console, guard

TICK_SECONDS = 1.0
ORPHAN_LIMIT_SECONDS = 60.0
LAST_WORDS_SECONDS = 20.0


class Watchdog:
    """Ends this process when no beat comes for `limit_seconds` between entering and leaving the `with` block.

    `on_hang(error, step)` runs in the watchdog's thread just before the end. `kept` is the line on earlier work in the
    error's block; the loop sets it after each checkpoint. An orphaned rank, whose peers may be dead, gets at most
    ORPHAN_LIMIT_SECONDS, or three times the longest silence so far, until `agreed` has been called.
    """

    def __init__(self, limit_seconds: float, rank: int, on_hang: Callable[[HomodistilError, int], None]) -> None:
        self.kept = "No checkpoint was written."
        self._limit_seconds = limit_seconds
        self._rank = rank
        self._on_hang = on_hang
        self._beats = 0
        self._step = 0
        self._agreed = False
        self._ended = threading.Event()
        self._siblings: list[psutil.Process] = []

    def __enter__(self) -> Watchdog:
        self._siblings = guard.siblings()  # all of them run by now; later they may have no common parent any more
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()

    def beat(self, step: int) -> None:
        """There is progress, in step `step`."""
        self._step = step
        self._beats += 1

    def agreed(self) -> None:
        """All ranks live and have agreed to stop: the last checkpoint may take as long as any other."""
        self._beats += 1
        self._agreed = True

    def _watch(self) -> None:
        seen, silent, longest, orphaned = -1, 0.0, 0.0, False
        tick = min(TICK_SECONDS, self._limit_seconds / 4)
        while not self._ended.wait(tick):
            gone = guard.gone_launcher() is not None
            # Ticks are counted, no clock is read: a job that was suspended as a whole is not hung when it wakes.
            silent += tick
            if self._beats != seen or gone != orphaned:
                longest = max(longest, silent)
                seen, silent, orphaned = self._beats, 0.0, gone
            limit = self._limit_seconds
            if orphaned and not self._agreed:
                limit = min(limit, max(ORPHAN_LIMIT_SECONDS, 3 * longest))
            if silent >= limit:
                self._end(silent)

    def _end(self, silent: float) -> None:
        error = hung(silent, self._step, self._rank, self.kept)
        # What follows may block: a pipe that nobody empties, a file system that does not answer.
        deadline = threading.Timer(LAST_WORDS_SECONDS, os._exit, (error.exit_code,))
        deadline.daemon = True
        deadline.start()
        try:
            with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError):  # no stderr with a descriptor
                faulthandler.dump_traceback(console.job_stderr(), all_threads=True)
            console.call_out(error.block())
            console.note(stacks())  # not by faulthandler, which would keep the deadline waiting with a file system
            with contextlib.suppress(Exception):
                self._on_hang(error, self._step)
            # Last, because the death of a peer frees this rank's main thread, which would then leave its own way.
            kill_stopped(self._siblings)
        finally:
            os._exit(error.exit_code)


def hung(silent_seconds: float, step: int, rank: int, kept: str) -> HomodistilError:
    """The error of a rank that has made no progress for so long."""
    gone = guard.gone_launcher()
    return HomodistilError(
        "DIST-HANG",
        f"no progress for {silent_seconds:.0f} s in step {step} on rank {rank}" + (f"; {gone}" if gone else ""),
        "The stacks above show where this rank waits. Look for a rank that was stopped or killed, a machine that is\n"
        "gone, or a file system that does not answer. With a checkpoint, --resume auto goes on.",
        kept,
    )


def stacks() -> str:
    """Where every thread of this process stands."""
    return "\n".join(
        f"thread {name}:\n{''.join(traceback.format_stack(at))}" for name, at in sys._current_frames().items()
    )


def kill_stopped(processes: list[psutil.Process]) -> None:
    """End those that are stopped (SIGSTOP): they answer no other signal, and launchers wait half a minute for them."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.status() == psutil.STATUS_STOPPED:
                process.kill()
