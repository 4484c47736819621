"""Two runs never share a run directory; a dead one is no obstacle."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from homodistil_ds.errors import HomodistilError
from homodistil_ds.runtime import claim

HOLDER = """
import sys
from pathlib import Path
from homodistil_ds.runtime import claim
print(claim.hold(Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the directory until its stdin closes or it is killed."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "None\n"
        try:
            yield process
        finally:
            process.kill()


def test_the_second_run_is_refused_with_pid_and_host_of_the_first(
    tmp_path: Path, elsewhere: subprocess.Popen[str]
) -> None:
    with pytest.raises(HomodistilError) as caught:
        claim.hold(tmp_path)
    assert caught.value.error_id == "CFG-RUNNING"
    assert f"pid {elsewhere.pid} on {socket.gethostname()}" in caught.value.what


def test_the_file_of_a_killed_run_is_no_obstacle(tmp_path: Path, elsewhere: subprocess.Popen[str]) -> None:
    elsewhere.kill()
    elsewhere.wait()
    assert claim.hold(tmp_path) is None
    assert json.loads((tmp_path / claim.FILE_NAME).read_text(encoding="utf-8"))["pid"] == os.getpid()
    claim.release(tmp_path)


def test_a_released_directory_can_be_claimed_again_and_one_held_cannot(tmp_path: Path) -> None:
    claim.hold(tmp_path)
    with pytest.raises(HomodistilError):
        claim.hold(tmp_path / "." / "")
    claim.release(tmp_path)
    claim.hold(tmp_path)
    claim.release(tmp_path)
    claim.release(tmp_path)


def test_an_unreadable_file_of_a_holder_still_refuses(tmp_path: Path, elsewhere: subprocess.Popen[str]) -> None:
    (tmp_path / claim.FILE_NAME).write_text("", encoding="utf-8")
    with pytest.raises(HomodistilError, match="another process"):
        claim.hold(tmp_path)


def test_a_file_system_without_locks_costs_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(claim.fcntl, "flock", flock)
    warning = claim.hold(tmp_path)
    assert warning is not None
    assert "\n" not in warning


def test_a_folder_that_is_not_there_is_a_fault_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        claim.hold(tmp_path / "missing")


JOB = {"SLURM_JOB_ID": "71", "SLURM_RESTART_COUNT": "0"}


@pytest.fixture
def earlier_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    """The first start of Slurm job 71, still alive on a node that was cut off."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | JOB
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "None\n"
        yield process
        process.kill()


def become(monkeypatch: pytest.MonkeyPatch, job: str, restart: str) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", restart)


def test_a_later_start_of_the_same_job_takes_over(
    tmp_path: Path, earlier_start: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    become(monkeypatch, "71", "1")
    assert claim.hold(tmp_path) is None
    assert not claim.superseded(tmp_path)
    claim.check(tmp_path)
    assert not list(tmp_path.glob(".lock*"))
    become(monkeypatch, "71", "0")  # as the one that was cut off sees it
    assert claim.superseded(tmp_path)
    with pytest.raises(HomodistilError, match="a later start of Slurm job 71"):
        claim.check(tmp_path)
    claim.release(tmp_path)


@pytest.mark.parametrize(("job", "restart"), [("71", "0"), ("72", "1"), ("", "1")])
def test_nobody_else_takes_over(
    tmp_path: Path, earlier_start: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch, job: str, restart: str
) -> None:
    become(monkeypatch, job, restart)
    with pytest.raises(HomodistilError) as caught:
        claim.hold(tmp_path)
    assert caught.value.error_id == "CFG-RUNNING"
    assert not claim.superseded(tmp_path)
