"""However a job is stopped or loses a part, all of its ranks end, and none stays behind."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from homodistil_ds.errors import EXIT_CODES
from integration.processes import SCRIPTS, WORKERS, Job, background, free_port

RANKS = (0, 1)
NEVER = 600.0
LAUNCHERS: dict[str, Callable[[], list[str]]] = {
    "torchrun": lambda: [str(SCRIPTS / "torchrun"), "--standalone", "--nproc_per_node", "2"],
    "deepspeed": lambda: [str(SCRIPTS / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port())],
}


@pytest.fixture(autouse=True)
def _sigint_reaches_children() -> Iterator[None]:
    """What is ignored here is ignored by every child; a shell ignores it for what it starts in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def command(launcher: str, out: Path, limit_seconds: float = NEVER) -> list[str]:
    return [*LAUNCHERS[launcher](), str(WORKERS / "guard.py"), str(out), str(limit_seconds)]


def wait_for_ranks(job: Job, out: Path) -> dict[int, int]:
    """Pids by rank, once all ranks train."""

    def training() -> bool:
        assert job.process.poll() is None, job.err.read_text(encoding="utf-8")
        return all((out / f"alive-{rank}.json").exists() for rank in RANKS)

    job.wait_until(training, "all ranks train")
    return {rank: read(out, "alive", rank)["pid"] for rank in RANKS}


def read(out: Path, name: str, rank: int) -> dict[str, Any]:
    return json.loads((out / f"{name}-{rank}.json").read_text(encoding="utf-8"))


def agreed(out: Path) -> str:
    """The reason that all ranks stopped for, in the same step."""
    ends = [read(out, "ended", rank) for rank in RANKS]
    assert len({(end["reason"], end["step"]) for end in ends}) == 1, ends
    return ends[0]["reason"]


@pytest.mark.parametrize(
    ("launcher", "number", "code"),
    [
        ("torchrun", signal.SIGTERM, 1),  # torchrun has one code for all that goes wrong
        ("torchrun", signal.SIGINT, 1),
        ("deepspeed", signal.SIGUSR1, EXIT_CODES["STOP"]),
    ],
)
def test_a_signal_to_one_rank_stops_all_at_the_same_step(
    tmp_path: Path, launcher: str, number: signal.Signals, code: int
) -> None:
    with background(command(launcher, tmp_path), tmp_path) as job:
        os.kill(wait_for_ranks(job, tmp_path)[1], number)
        job.wait_for_end()
        assert agreed(tmp_path) == f"{number.name} (rank 1)"
        assert job.process.returncode == code


def test_torchrun_passes_sigterm_on(tmp_path: Path) -> None:
    with background(command("torchrun", tmp_path), tmp_path) as job:
        wait_for_ranks(job, tmp_path)
        job.process.terminate()
        job.wait_for_end()
        assert agreed(tmp_path).startswith("SIGTERM")
        assert job.process.returncode != 0


@pytest.mark.parametrize(
    ("launcher", "number"),
    [
        ("torchrun", signal.SIGUSR1),
        ("torchrun", signal.SIGKILL),
        ("deepspeed", signal.SIGTERM),
        ("deepspeed", signal.SIGKILL),
    ],
)
def test_ranks_notice_that_their_launcher_is_gone(tmp_path: Path, launcher: str, number: signal.Signals) -> None:
    with background(command(launcher, tmp_path), tmp_path) as job:
        wait_for_ranks(job, tmp_path)
        job.process.send_signal(number)
        assert job.process.stdout is not None
        job.process.stdout.close()  # whoever killed it reads its output no longer
        job.wait_for_end()
        assert agreed(tmp_path).startswith(f"{launcher} (pid {job.process.pid}) is gone")
        assert job.process.returncode == -number


def test_a_stopped_rank_ends_the_job_within_the_limit(tmp_path: Path) -> None:
    limit = 3.0
    with background(command("torchrun", tmp_path, limit), tmp_path) as job:
        stopped = wait_for_ranks(job, tmp_path)[1]
        os.kill(stopped, signal.SIGSTOP)
        begin = time.monotonic()
        job.wait_for_end()
        assert time.monotonic() - begin < limit + 20  # torchrun alone would wait half a minute for the stopped rank
        assert job.process.returncode not in (0, None)
        shown = job.err.read_text(encoding="utf-8")
    assert "error[DIST-HANG]" in shown
    assert "in loop" in shown, "the stack of the waiting main thread"
    reason = json.loads((tmp_path / "exit_reason.json").read_text(encoding="utf-8"))
    assert (reason["code"], reason["id"], reason["rank"]) == (EXIT_CODES["DIST"], "DIST-HANG", 0)


def test_a_killed_rank_is_recognised_by_the_others(tmp_path: Path) -> None:
    with background(command("torchrun", tmp_path), tmp_path) as job:
        os.kill(wait_for_ranks(job, tmp_path)[1], signal.SIGKILL)
        job.wait_for_end()
    failed = read(tmp_path, "failed", 0)
    assert failed["lost"], failed["error"]
