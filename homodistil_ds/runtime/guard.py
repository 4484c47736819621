"""Why this rank should stop: a signal, or a launcher that has gone. It answers; the loop stops.

It imports no torch, so that the handlers can stand before the slow imports.
"""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from homodistil_ds.errors import EXIT_CODES
from homodistil_ds.runtime import claim

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
# What starts ranks and should outlive them. A shell does not count: a run survives the terminal it was started from.
LAUNCHERS = frozenset(
    (
        *("torchrun", "torch.distributed.run", "torch.distributed.launch"),
        *("deepspeed", "ds", "deepspeed.launcher.runner", "deepspeed.launcher.launch"),
        *("mpirun", "mpiexec", "orterun", "orted", "prterun", "prte", "prted"),
        *("mpiexec.hydra", "hydra_pmi_proxy", "hydra_bstrap_proxy", "pmi_proxy", "slurmstepd"),
    )
)


@dataclass(frozen=True)
class Launcher:
    """A process whose end should end this rank; `child` is what it started: this rank, or a launcher nearer to it."""

    name: str
    process: psutil.Process
    child: psutil.Process

    def gone(self) -> bool:
        # A dead process may stay in the table until somebody waits for it, but its children get a new parent at once.
        try:
            return self.child.ppid() != self.process.pid
        except psutil.Error:
            return True


STOP_FILE = "stop"  # in the run directory; a launcher that dies of a signal need not pass one on
LOOK_EVERY_SECONDS = 1.0

_signal: str | None = None
_run_dirs: tuple[Path, ...] = ()
_looked_at = 0.0
_leave_at_once = False
_launchers: tuple[Launcher, ...] = ()


def install(leave_at_once: bool = False) -> None:
    """Set the handlers and remember the launchers above this process. Call it first, in the main thread.

    With `leave_at_once` a signal ends the process with the code of a stop, until `defer` says that a loop looks at it.
    """
    global _launchers, _leave_at_once
    _leave_at_once = leave_at_once
    _launchers = launchers_above(psutil.Process())
    for number in SIGNALS:
        # nohup, and a script that starts a job in the background, ask for these two to be ignored.
        if number in (signal.SIGHUP, signal.SIGINT) and signal.getsignal(number) is signal.SIG_IGN:
            continue
        signal.signal(number, _note)


def defer() -> None:
    """From now on a signal is only noted."""
    global _leave_at_once
    _leave_at_once = False


def act_at_once() -> None:
    """A signal ends this process, with the code of a stop; one that was only noted does so now."""
    global _leave_at_once
    _leave_at_once = True  # before the look: a signal in between would be noted and forgotten
    if _signal is not None:
        raise SystemExit(EXIT_CODES["STOP"])


def leaves_at_once() -> bool:
    """Whether a signal would end this process now, because no loop looks at it yet."""
    return _leave_at_once


def watch(*run_dirs: Path) -> None:
    """From now on `reason` also looks into these run directories, about once a second; one rank does so for all.

    The first look is a second away: a start that came late still gets a step further, and its next one too.
    """
    global _run_dirs, _looked_at
    _run_dirs, _looked_at = run_dirs, time.monotonic()


def _note(number: int, frame: FrameType | None) -> None:
    if _leave_at_once:
        raise SystemExit(EXIT_CODES["STOP"])  # no Exception, which many places catch
    # Only this: a signal, or a second one, must never break into a checkpoint that is being written.
    global _signal
    _signal = _signal or signal.Signals(number).name


def reason() -> str | None:
    """Why this rank should save and leave with EXIT_CODES["STOP"], or None."""
    return _signal or gone_launcher() or _asked_in_run_dir()


def _asked_in_run_dir() -> str | None:
    global _looked_at
    if not _run_dirs or time.monotonic() - _looked_at < LOOK_EVERY_SECONDS:
        return None
    _looked_at = time.monotonic()
    if any(map(claim.superseded, _run_dirs)):
        return "a later start of this job has taken over"
    found = (folder / STOP_FILE for folder in _run_dirs if (folder / STOP_FILE).exists())
    return next((f"{path} exists" for path in found), None)


def gone_launcher() -> str | None:
    """Which launcher has gone, such as `torchrun (pid 123) is gone`, or None."""
    for launcher in _launchers:
        if launcher.gone():
            return f"{launcher.name} (pid {launcher.process.pid}) is gone"
    return None


def siblings() -> list[psutil.Process]:
    """What this rank's launcher started on this machine beside it; empty without a launcher."""
    if not _launchers:
        return []
    try:
        return [child for child in _launchers[0].process.children() if child != _launchers[0].child]
    except psutil.Error:
        return []


def launchers_above(process: psutil.Process) -> tuple[Launcher, ...]:
    """The unbroken line of launchers from the parent of `process` upward.

    `deepspeed` starts a launcher of its own, which stays behind with all ranks when `deepspeed` is killed.
    """
    found: list[Launcher] = []
    try:
        while (parent := process.parent()) is not None and (name := program(parent.cmdline())) in LAUNCHERS:
            found.append(Launcher(name, parent, process))
            process = parent
    except psutil.Error:
        pass  # a parent of another user, or one that has just ended
    return tuple(found)


def program(command: list[str]) -> str:
    """What a command line runs: the module or script of a Python, otherwise the executable; "" for an empty one."""
    # Slurm's step daemon renames itself to "slurmstepd: [12.0]".
    name = Path(command[0].partition(":")[0]).name if command else ""
    if not name.startswith("python"):
        return name
    rest = iter(command[1:])
    for argument in rest:
        if argument == "-m":
            return next(rest, name)
        if not argument.startswith("-"):
            script = Path(argument)
            return ".".join(script.with_suffix("").parts[-3:]) if script.suffix == ".py" else script.name
    return name
