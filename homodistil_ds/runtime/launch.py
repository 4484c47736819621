"""What a launcher tells a process through its environment, before any process group exists. Imports no torch."""

from __future__ import annotations

import os
import socket

from homodistil_ds.errors import HomodistilError

# Rank, world size, local rank and local size as MPI launchers name them; deepspeed and torchrun set RANK itself.
_MPI = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)


def is_first_rank() -> bool:
    names = ("RANK", *(rank for rank, *_ in _MPI))
    return next((os.environ[name] for name in names if name in os.environ), "0") == "0"


def complete_environment() -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK and the rendezvous where the launcher did not: MPI, or no launcher at all."""
    for rank, size, local, local_size in _MPI:
        if "RANK" not in os.environ and rank in os.environ:
            os.environ.update(RANK=os.environ[rank], WORLD_SIZE=os.environ[size])
            os.environ["LOCAL_RANK"] = os.environ.get(local, os.environ[rank])
            if "MASTER_ADDR" not in os.environ and os.environ.get(local_size, os.environ[size]) != os.environ[size]:
                raise HomodistilError(
                    "ENV-MASTER",
                    f"{os.environ[size]} ranks on several machines, and MASTER_ADDR is not set",
                    "Give the address of the first machine, such as mpirun -x MASTER_ADDR=... -x MASTER_PORT=29500.",
                )
            # The ranks of one machine share a parent; two jobs there get two ports.
            os.environ.setdefault("MASTER_PORT", str(20_000 + os.getppid() % 10_000))
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    os.environ.setdefault("LOCAL_RANK", os.environ["RANK"])
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(_free_port()))


def threads_per_rank() -> int | None:
    """This rank's share of the machine's cores; None if OMP_NUM_THREADS already decides."""
    if "OMP_NUM_THREADS" in os.environ:
        return None
    names = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "WORLD_SIZE")
    ranks_here = next((int(os.environ[name]) for name in names if name in os.environ), 1)
    return max(1, len(os.sched_getaffinity(0)) // ranks_here)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
