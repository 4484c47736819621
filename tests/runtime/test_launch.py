"""Every launcher's environment ends in one that torch.distributed understands."""

import os
from pathlib import Path

import pytest

from homodistil_ds.errors import HomodistilError
from homodistil_ds.runtime import launch

NAMES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"),
    *("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    *("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "OMP_NUM_THREADS"),
    *("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_GTIDS", "SLURM_STEP_NODELIST"),
    *("SLURM_JOB_ID", "SLURM_STEP_ID"),
)


SLURM_TASK = {"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0", "SLURM_GTIDS": "2,3"}
SLURM_JOB = {"SLURM_JOB_ID": "71", "SLURM_STEP_ID": "2", "SLURM_STEP_NODELIST": "node[3-4]"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that what the tested code sets is undone as well
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("given", "rank", "size", "local"),
    [
        ({}, "0", "1", "0"),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, "3", "4", "1"),
        (OPEN_MPI, "1", "2", "0"),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, "1", "2", "1"),
        (SLURM_TASK | SLURM_JOB | {"MASTER_ADDR": "node3"}, "2", "4", "0"),
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_GTIDS": "0", "SLURM_JOB_ID": "71"}, "0", "1", "0"),
        (SLURM_TASK | SLURM_JOB | OPEN_MPI, "1", "2", "0"),
        (SLURM_TASK | SLURM_JOB | {"PMI_RANK": "2", "PMI_SIZE": "4", "MASTER_ADDR": "node3"}, "2", "4", "0"),
        (SLURM_TASK | SLURM_JOB | {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, "3", "8", "1"),
    ],
    ids=[
        *("plain python", "deepspeed or torchrun", "Open MPI", "MPICH", "srun", "Slurm batch script"),
        *("Open MPI inside Slurm", "srun --mpi=pmi2", "torchrun inside Slurm"),
    ],
)
def test_every_launcher_gives_rank_and_size(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], rank: str, size: str, local: str
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert launch.is_first_rank() == (rank == "0")
    launch.complete_environment()
    assert [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")] == [rank, size, local]
    assert os.environ["MASTER_ADDR"]
    assert 0 < int(os.environ["MASTER_PORT"]) < 65536


def test_slurm_tasks_meet_on_the_first_host_of_their_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames node[3-4]" ] && printf "node3\\nnode4\\n"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for name, value in (SLURM_TASK | SLURM_JOB).items():
        monkeypatch.setenv(name, value)
    launch.complete_environment()
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("node3", "12073")
    assert launch.ranks_here() == 2


@pytest.mark.parametrize(
    "given",
    [SLURM_TASK | SLURM_JOB, OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}],
    ids=["no scontrol", "no mpi4py"],
)
def test_ranks_on_several_machines_need_a_place_to_meet(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: dict[str, str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(HomodistilError) as raised:
        launch.complete_environment()
    assert raised.value.error_id == "ENV-MASTER"


def test_the_ranks_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = len(os.sched_getaffinity(0))
    assert launch.threads_per_rank() == cores
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(cores))
    assert launch.threads_per_rank() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert launch.threads_per_rank() is None
