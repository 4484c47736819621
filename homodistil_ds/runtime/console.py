"""What a rank says: lines that never end a run when nobody reads them any more, and a log of its own for each rank.

Rank 0 shows on the console. From `keep_log` on the descriptors 1 and 2 of every other rank are its log, so that what
C++ code and child processes write lands there too. Rank 0 keeps the console's descriptors, without a pipe in between
that would lose the last words of a crash: what Python writes there is copied to its log.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import os
import socket
import sys
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import TextIO

_NOBODY_READS = (errno.EPIPE, errno.EIO)  # a closed pipe; a terminal that hung up

_log: int | None = None  # descriptor of this rank's log
_console: int | None = None  # the job's stderr, on a rank whose own is its log
_hook = sys.excepthook  # the one before ours: torch has one that names the rank
_stacks = False  # whether crashes are written to the log
_before: list[tuple[int, int]] = []  # descriptors as they were, with where they were saved


def say(text: str, stream: TextIO | None = None) -> None:
    """Print one line on `stream` (stdout by default), or lose it where it cannot be written."""
    stream = sys.stdout if stream is None else stream
    try:
        print(text, file=stream, flush=True)
    except ValueError:
        return  # the stream is closed
    except OSError as error:
        forget(stream, error)


def call_out(text: str) -> bool:
    """Say it on the job's stderr, from whichever rank, and in this rank's log. True: it has been said."""
    if _console is not None:
        _put(_console, f"{text}\n")
    say(text, sys.stderr)
    return True


def note(text: str) -> bool:
    """A line for this rank's log alone; whether there is one."""
    if _log is not None:
        _put(_log, f"{text}\n")
    return _log is not None


def job_stderr() -> TextIO | int:
    """Where the last words of any rank belong."""
    return sys.stderr if _console is None else _console


def forget(stream: TextIO, error: OSError) -> None:
    """After a failed write: if the reader has gone for good, let /dev/null take the rest.

    Otherwise Python would write its buffer again at exit, fail again, and leave with 120 instead of the run's code.
    """
    if error.errno not in _NOBODY_READS and _console is None:
        return
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def keep_log(folder: Path, rank: int, start: str) -> str | None:
    """From now on this rank's lines go to folder/rank<k>.log as well (rank 0) or instead (the others).

    `start` describes this start in the log's header. Returns a line of warning if it cannot be written: that costs the
    log, never the run. A second call changes the file.
    """
    global _log, _console, _hook, _stacks
    close_log()
    path = folder / f"rank{rank}.log"
    try:
        folder.mkdir(exist_ok=True)
        log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        if rank:
            _console = _redirect(log)
        else:
            for stream in (sys.stdout, sys.stderr):
                _copy(stream, log)
    except OSError as error:
        return f"homodistil_ds: warning: no log of rank {rank}, {path}: {error.strerror}"
    _log = log
    when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    note(f"==== {when}  rank {rank}  host {socket.gethostname()}  pid {os.getpid()}  {start} ====")
    _hook, sys.excepthook = sys.excepthook, _uncaught
    if not faulthandler.is_enabled():
        faulthandler.enable(file=log)
        _stacks = True
    return None


def close_log() -> None:
    """Let everything go where it went before."""
    global _log, _console, _stacks
    if _log is None:
        return
    sys.excepthook = _hook
    if _stacks:
        faulthandler.disable()
        _stacks = False
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
        with contextlib.suppress(AttributeError):
            del stream.write
    for descriptor, saved in _before:
        os.dup2(saved, descriptor)
        os.close(saved)
    _before.clear()
    os.close(_log)
    _log = _console = None


def _redirect(log: int) -> int:
    """Descriptors 1 and 2 become the log; returns what 2 was."""
    for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
        _before.append((descriptor, os.dup(descriptor)))
        os.dup2(log, descriptor)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
        _lossy(stream)
    return _before[1][1]


def _lossy(stream: TextIO) -> None:
    """A log on a full disk must not end a library's print, and with it the run."""
    write = stream.write

    def written(text: str) -> int:
        try:
            return write(text)
        except OSError as error:
            forget(stream, error)
            return len(text)

    stream.write = written  # type: ignore[method-assign]


def _copy(stream: TextIO, log: int) -> None:
    """Loggers hold the stream itself, so its own `write` is wrapped. A bar that draws over itself is no line."""
    write = stream.write

    def written(text: str) -> int:
        try:
            return write(text)
        finally:
            if "\r" not in text:
                _put(log, text)

    stream.write = written  # type: ignore[method-assign]


def _put(descriptor: int, text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(descriptor, text.encode(errors="backslashreplace"))


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A rank's traceback is in its log, being its stderr; the console needs it too, as others only lose their peer."""
    _hook(kind, error, trace)
    if _console is not None:
        lines = "".join(traceback.format_exception(kind, error, trace)).splitlines()
        _put(_console, "".join(f"[rank {os.environ.get('RANK', '?')}]: {line}\n" for line in lines))
