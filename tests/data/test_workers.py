"""Workers meet in order; one that fails or vanishes ends them all; launchers are understood."""

import os
import signal
import subprocess
import sys
import time

import pytest

from homodistil_ds.data.workers import Alone, Workers, in_processes, launched, under_mpi
from homodistil_ds.errors import HomodistilError


def test_everyone_has_the_values_in_order() -> None:
    def job(these: Workers) -> tuple[int, list[list[int]]]:
        return these.rank, [these.everyone(these.rank * factor) for factor in (1, 10)]

    assert in_processes(3, job) == (0, [[0, 1, 2], [0, 10, 20]])
    assert Alone().everyone("x") == ["x"]


def test_an_error_of_one_ends_all_at_once() -> None:
    def job(these: Workers) -> None:
        if these.rank == 1:
            raise HomodistilError("DATA-CORRUPT", "file.txt: bad", "Fetch it again.")
        time.sleep(60)

    began = time.monotonic()
    with pytest.raises(HomodistilError, match=r"file.txt: bad"):
        in_processes(2, job)
    assert time.monotonic() - began < 20


def test_a_killed_worker_is_named() -> None:
    def job(these: Workers) -> None:
        if these.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        these.everyone(None)

    with pytest.raises(HomodistilError, match=r"worker process 1 .*exit code -9") as caught:
        in_processes(2, job)
    assert caught.value.error_id == "DIST-LOST-RANK"


def test_workers_end_with_their_parent() -> None:
    script = (
        "import os, time\nfrom homodistil_ds.data.workers import in_processes\n"
        "def job(these):\n    these.everyone(None)\n    os.write(1, b'%d\\n' % os.getpid())\n    time.sleep(60)\n"
        "in_processes(2, job)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(parent.stdout.readline()) for _ in range(2)]
    parent.kill()
    assert parent.stdout.read() == "", "the pipe closes when the last worker has gone"
    parent.wait()
    parent.stdout.close()
    assert len(set(pids)) == 2


@pytest.mark.parametrize(
    ("environment", "size"),
    [
        ({}, None),
        ({"WORLD_SIZE": "1", "RANK": "0"}, None),
        ({"WORLD_SIZE": "8"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "4", "SLURM_NTASKS": "8", "SLURM_STEP_ID": "0"}, 4),
        ({"PMI_SIZE": "3"}, 3),
        ({"SLURM_STEP_NUM_TASKS": "6", "SLURM_NTASKS": "8"}, 6),
        ({"SLURM_NTASKS": "8", "SLURM_STEP_ID": "0"}, 8),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, None),  # the script of a batch job: one process
    ],
)
def test_what_a_launcher_started(environment: dict[str, str], size: int | None) -> None:
    assert launched(environment) == size


def test_a_launcher_without_mpi_is_refused() -> None:
    with pytest.raises(HomodistilError) as caught:
        launched({"RANK": "0", "WORLD_SIZE": "2"})
    assert caught.value.error_id == "ENV-LAUNCHER"


def test_without_mpi4py_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(HomodistilError, match="mpi4py cannot be imported") as caught:
        under_mpi(2, lambda _: None, lambda _: 1)
    assert caught.value.error_id == "ENV-MPI"
