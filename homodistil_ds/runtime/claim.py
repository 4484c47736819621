"""One run per run directory: a lock that the system lifts when its process ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from pathlib import Path
from typing import Any, TextIO

from homodistil_ds.errors import HomodistilError

FILE_NAME = "lock"
_NO_LOCKS_HERE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)

_held: dict[Path, TextIO] = {}  # a file that nobody refers to is closed, which would lift its lock


def hold(run_dir: Path) -> str | None:
    """Claim `run_dir` until this process ends or releases it; rank 0 does so for all.

    An earlier start of the same Slurm job that still runs, on a node that was cut off, is fenced out: it finds itself
    `superseded` and writes no more. Returns None, or one line of warning if the file system has no locks. Raises
    HomodistilError while another run holds the directory, OSError if the lock file cannot be written.
    """
    path = run_dir.resolve() / FILE_NAME
    file: TextIO = path.open("a+", encoding="utf-8")
    warning = None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        while not _is_at(path, file):  # whoever held it gave up and removed the file in between
            file.close()
            file = path.open("a+", encoding="utf-8")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        with file:
            if not _is_earlier_start(file):
                raise _running(run_dir, holder(file)) from error
        _held[path] = _take_over(path)
        return None
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:
            file.close()
            raise
        warning = f"homodistil_ds: warning: two runs in {run_dir} would not be noticed, it has no file locks: {error}"
    _sign(file)
    _held[path] = file
    return warning


def _is_at(path: Path, file: TextIO) -> bool:
    """Whether the file under that name is this one."""
    try:
        return path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False


def _sign(file: TextIO) -> None:
    job, restart = _own_start()
    file.truncate(0)
    file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "job": job, "restart": restart}))
    file.flush()


def _own_start() -> tuple[str, int]:
    """The Slurm job, "" outside of one, and which of its starts this is; a requeue counts up."""
    return os.environ.get("SLURM_JOB_ID", ""), int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def _is_earlier_start(file: TextIO) -> bool:
    job, restart = _own_start()
    owner = _owner(file)
    return bool(job) and owner.get("job") == job and int(owner.get("restart", 0)) < restart


def _take_over(path: Path) -> TextIO:
    """Another file under the same name: its lock is free, whoever holds the old one."""
    new = path.with_name(f".{FILE_NAME}.{socket.gethostname()}.{os.getpid()}")
    file = new.open("a+", encoding="utf-8")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _sign(file)  # before it counts: whoever is fenced out must never read an empty one
    new.replace(path)
    return file


def superseded(run_dir: Path) -> bool:
    """Whether a later start of this rank's own Slurm job has claimed `run_dir`; any rank may ask."""
    job, restart = _own_start()
    if not job:
        return False
    try:
        with (run_dir / FILE_NAME).open(encoding="utf-8") as file:
            owner = _owner(file)
    except OSError:
        return False
    return owner.get("job") == job and int(owner.get("restart", 0)) > restart


def check(run_dir: Path) -> None:
    """Raises HomodistilError if a later start of this job goes on with the run, so that this one must not write."""
    if superseded(run_dir):
        raise HomodistilError(
            "DIST-SUPERSEDED",
            f"a later start of Slurm job {_own_start()[0]} goes on with {run_dir}",
            "Nothing is to be done: this one was cut off, and has left.",
            "The later start has all that was saved.",
        )


def release(run_dir: Path) -> None:
    """Let another run use `run_dir`. The file stays: removing it would let two runs hold locks on two files."""
    file = _held.pop(run_dir.resolve() / FILE_NAME, None)
    if file is not None:
        file.close()


def holder(file: TextIO) -> str:
    """Who wrote the lock file, as text."""
    owner = _owner(file)
    return f"pid {owner['pid']} on {owner['host']}" if {"pid", "host"} <= set(owner) else "another process"


def _owner(file: TextIO) -> dict[str, Any]:
    file.seek(0)
    try:
        owner = json.loads(file.read())
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _running(run_dir: Path, owner: str) -> HomodistilError:
    return HomodistilError(
        "CFG-RUNNING",
        f"{run_dir} is in use by a run that goes on: {owner}",
        "Wait for it to end, stop it, or choose another --output_dir.",
    )


def is_held(run_dir: Path) -> bool:
    """Whether this process holds `run_dir`."""
    return run_dir.resolve() / FILE_NAME in _held
