"""Every launcher's environment ends in one that torch.distributed understands."""

import os

import pytest

from homodistil_ds.runtime import launch

NAMES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"),
    *("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    *("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "OMP_NUM_THREADS"),
)


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
        (
            {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
            *("1", "2", "0"),
        ),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, "1", "2", "1"),
    ],
    ids=["plain python", "deepspeed or torchrun", "Open MPI", "MPICH"],
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


def test_the_ranks_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = len(os.sched_getaffinity(0))
    assert launch.threads_per_rank() == cores
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(cores))
    assert launch.threads_per_rank() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert launch.threads_per_rank() is None
