"""Which signals are noted, which processes count as launchers, and when one is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from homodistil_ds.errors import EXIT_CODES
from homodistil_ds.runtime import guard


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(guard, "_signal", None)
    monkeypatch.setattr(guard, "_launchers", ())
    handlers = {number: signal.getsignal(number) for number in guard.SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_becomes_the_reason_and_a_second_one_changes_nothing(number: signal.Signals) -> None:
    guard.install()
    assert guard.reason() is None
    os.kill(os.getpid(), number)
    assert guard.reason() == number.name
    os.kill(os.getpid(), signal.SIGTERM)
    assert guard.reason() == number.name


def test_a_signal_ends_the_process_at_once_where_no_loop_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_leave_at_once", False)
    guard.install()
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(SystemExit) as noted_before:
        guard.act_at_once()
    monkeypatch.setattr(guard, "_signal", None)
    guard.act_at_once()
    with pytest.raises(SystemExit) as sent_later:
        os.kill(os.getpid(), signal.SIGUSR1)
    assert noted_before.value.code == sent_later.value.code == EXIT_CODES["STOP"]


def test_what_nohup_or_a_script_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    guard.install()
    os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGINT)
    assert guard.reason() is None


def test_a_file_in_the_run_directory_asks_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_run_dirs", ())
    (tmp_path / guard.STOP_FILE).touch()
    assert guard.reason() is None
    guard.watch(tmp_path)
    assert guard.reason() is None, "a step must be made first"
    monkeypatch.setattr(guard, "_looked_at", 0.0)
    assert guard.reason() == f"{tmp_path / 'stop'} exists"
    assert guard.reason() is None, "looked at again within the second"


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["/venv/bin/python3.11", "/venv/bin/torchrun", "--standalone", "train.py"], "torchrun"),
        (["python", "-m", "torch.distributed.run", "train.py"], "torch.distributed.run"),
        (["python", "-u", "-m", "deepspeed.launcher.launch", "train.py"], "deepspeed.launcher.launch"),
        (["python", "-u", "/lib/deepspeed/launcher/launch.py", "train.py"], "deepspeed.launcher.launch"),
        (["/usr/bin/mpirun", "-n", "2", "python", "train.py"], "mpirun"),
        (["slurmstepd: [12.0]"], "slurmstepd"),
    ],
)
def test_launchers_are_known_by_what_they_run(command: list[str], name: str) -> None:
    assert guard.program(command) == name
    assert name in guard.LAUNCHERS


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["-bash"],
        ["/bin/sh", "-c", "torchrun train.py"],
        ["timeout", "60", "torchrun", "train.py"],
        ["python"],
        ["python", "pipeline.py", "torchrun"],
        ["python", "launch.py"],
        ["python", "-m", "pytest"],
    ],
)
def test_what_may_end_without_its_children_is_no_launcher(command: list[str]) -> None:
    assert guard.program(command) not in guard.LAUNCHERS


def test_this_process_has_no_launcher_and_hence_no_siblings() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert guard.launchers_above(psutil.Process(child.pid)) == ()
        assert guard.siblings() == []
    finally:
        child.communicate()


def test_a_launcher_is_gone_when_its_child_has_another_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    own = psutil.Process()
    parent = own.parent()
    assert parent is not None
    near = guard.Launcher("torchrun", parent, own)
    far = guard.Launcher("deepspeed", own, parent)  # this process never was the parent of its parent
    monkeypatch.setattr(guard, "_launchers", (near,))
    assert guard.reason() is None
    monkeypatch.setattr(guard, "_launchers", (near, far))
    assert guard.reason() == f"deepspeed (pid {own.pid}) is gone"


def test_the_module_imports_no_torch() -> None:
    code = "import sys, homodistil_ds.runtime.guard; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
