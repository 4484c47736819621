"""When the watchdog fires, and what it says; the end of a real job is in tests/integration/test_guard.py."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable

import psutil
import pytest

from homodistil_ds.errors import HomodistilError
from homodistil_ds.runtime import guard, watchdog
from homodistil_ds.runtime.watchdog import Watchdog, hung, kill_stopped

BEATING = """
import sys, threading, time
from homodistil_ds.runtime.watchdog import Watchdog
with Watchdog(1.0, 0, lambda error, step: None) as dog:
    asked = threading.Thread(target=sys.stdin.read, daemon=True)
    asked.start()
    print("beating", flush=True)
    while asked.is_alive():
        dog.beat(1)
        time.sleep(0.02)
"""


class Alarm(Watchdog):
    """Notes the end instead of meeting it."""

    silent: float | None = None

    def _end(self, silent: float) -> None:
        self.silent = silent
        self._ended.set()


def alarm(limit_seconds: float) -> Alarm:
    def on_hang(error: HomodistilError, step: int) -> None:
        raise AssertionError

    return Alarm(limit_seconds, 0, on_hang)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_orphan_gets_three_times_its_longest_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with long steps must reach the edge of one, to save there."""
    monkeypatch.setattr(watchdog, "ORPHAN_LIMIT_SECONDS", 0.1)
    monkeypatch.setattr(watchdog, "TICK_SECONDS", 0.02)
    gone: list[str] = []
    monkeypatch.setattr(guard, "gone_launcher", lambda: gone[0] if gone else None)
    with alarm(60.0) as dog:
        dog.beat(1)
        time.sleep(0.5)
        dog.beat(2)
        gone.append("torchrun is gone")
        wait_until(lambda: dog.silent is not None)
        assert 0.3 < dog.silent < 3.0


def test_silence_for_the_limit_ends_the_process() -> None:
    with alarm(0.2) as dog:
        dog.beat(1)
        wait_until(lambda: dog.silent is not None)
        assert dog.silent == pytest.approx(0.2)


def test_beats_keep_it_quiet_and_so_does_leaving_the_block() -> None:
    with alarm(4.0) as dog:  # looks once a second
        for step in range(5):
            dog.beat(step)
            time.sleep(0.02)
    wait_until(lambda: not any(thread.name == "watchdog" for thread in watchdog.threading.enumerate()))
    assert dog.silent is None


def test_an_orphan_gets_less_time_until_all_ranks_have_agreed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "TICK_SECONDS", 0.05)
    monkeypatch.setattr(watchdog, "ORPHAN_LIMIT_SECONDS", 0.3)
    monkeypatch.setattr(guard, "gone_launcher", lambda: "torchrun (pid 1) is gone")
    with alarm(600.0) as dog:
        dog.agreed()
        time.sleep(1.0)
        assert dog.silent is None
    with alarm(600.0) as dog:
        wait_until(lambda: dog.silent is not None)


def test_a_job_that_was_suspended_goes_on_when_it_wakes() -> None:
    child = subprocess.Popen([sys.executable, "-c", BEATING], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"beating\n"
        child.send_signal(signal.SIGSTOP)
        time.sleep(2.0)
        child.send_signal(signal.SIGCONT)
        time.sleep(0.5)
        child.communicate(timeout=60)
        assert child.returncode == 0
    finally:
        child.kill()
        child.communicate()


def test_the_error_names_time_step_rank_and_what_is_kept() -> None:
    error = hung(300.0, 41, 3, "The checkpoint of step 40 is valid.")
    assert error.exit_code == 7
    assert "300 s in step 41 on rank 3" in error.what
    assert error.block().endswith("  The checkpoint of step 40 is valid.")


def test_stopped_processes_are_killed_and_others_are_not() -> None:
    children = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(2)]
    processes = [psutil.Process(child.pid) for child in children]
    try:
        children[0].send_signal(signal.SIGSTOP)
        wait_until(lambda: processes[0].status() == psutil.STATUS_STOPPED)
        kill_stopped(processes)
        assert children[0].wait(30) == -signal.SIGKILL
        kill_stopped(processes)  # one of them is dead by now
        assert children[1].poll() is None
    finally:
        for child in children:
            child.kill()
            child.communicate()
