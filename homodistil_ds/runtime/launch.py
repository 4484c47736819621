"""What a launcher tells a process through its environment, before any process group exists. Imports no torch."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess

from homodistil_ds.errors import HomodistilError

# Rank, world size, local rank and local size as launchers of MPI programs name them; deepspeed and torchrun set RANK.
_OPEN_MPI = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")
_MPICH = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
# Not SLURM_NTASKS: a batch script has it too, and is one process.
_SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_GTIDS")


def is_first_rank() -> bool:
    names = _names()
    return os.environ.get("RANK" if names is None else names[0], "0") == "0"


def _names() -> tuple[str, str, str, str] | None:
    """The variables of whoever started this process; None for deepspeed, torchrun and plain python.

    Open MPI's own daemons are Slurm tasks, so its names come first; `srun --mpi=pmi2` sets two of MPICH's, so Slurm's
    come before those.
    """
    if "RANK" in os.environ:
        return None
    if _OPEN_MPI[0] in os.environ:
        return _OPEN_MPI
    if _SLURM[1] in os.environ and _MPICH[2] not in os.environ:
        return _SLURM
    return _MPICH if _MPICH[0] in os.environ else None


def started_by_mpi() -> bool:
    """Whether mpirun started this process and mpi4py can tell it about the others."""
    return _names() in (_OPEN_MPI, _MPICH) and importlib.util.find_spec("mpi4py") is not None


def complete_environment() -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK and the rendezvous where the launcher did not.

    Raises HomodistilError if ranks on several machines cannot know where to meet.
    """
    names = _names()
    if names is not None:
        rank, size, local, _ = names
        os.environ.update(RANK=os.environ[rank], WORLD_SIZE=os.environ[size])
        os.environ["LOCAL_RANK"] = os.environ.get(local, os.environ[rank])
        if names == _SLURM:
            _meet_in_slurm()
        elif "MASTER_ADDR" not in os.environ and ranks_here() != int(os.environ["WORLD_SIZE"]):
            raise HomodistilError(
                "ENV-MASTER",
                f"{os.environ[size]} ranks on several machines, and MASTER_ADDR is not set",
                "Install mpi4py, or give the address of the first machine, such as "
                "mpirun -x MASTER_ADDR=... -x MASTER_PORT=29500.",
            )
        # The ranks of one machine share a parent; two jobs there get two ports.
        os.environ.setdefault("MASTER_PORT", str(20_000 + os.getppid() % 10_000))
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    os.environ.setdefault("LOCAL_RANK", os.environ["RANK"])
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(free_port()))


def _meet_in_slurm() -> None:
    """The step's first host, and a port that follows from job and step: below the ephemeral range."""
    if "MASTER_ADDR" not in os.environ:
        nodes = os.environ.get("SLURM_STEP_NODELIST", "")
        try:
            shown = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise HomodistilError(
                "ENV-MASTER",
                f"the first of the hosts {nodes} is not known: scontrol show hostnames failed ({error})",
                "Set MASTER_ADDR to its name.",
            ) from error
        os.environ["MASTER_ADDR"] = shown.stdout.split()[0]
    number = int(os.environ["SLURM_JOB_ID"]) + int(os.environ["SLURM_STEP_ID"])
    os.environ.setdefault("MASTER_PORT", str(12_000 + number % 20_000))


def threads_per_rank() -> int | None:
    """This rank's share of the machine's cores; None if OMP_NUM_THREADS already decides."""
    if "OMP_NUM_THREADS" in os.environ:
        return None
    return max(1, len(os.sched_getaffinity(0)) // ranks_here())


def ranks_here() -> int:
    """Ranks on this machine."""
    names = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", _OPEN_MPI[3], _MPICH[3])
    found = next((int(os.environ[name]) for name in names if name in os.environ), None)
    if found is None and _SLURM[1] in os.environ and os.environ[_SLURM[1]] == os.environ.get("WORLD_SIZE"):
        return len(os.environ[_SLURM[3]].split(","))
    return found or int(os.environ.get("WORLD_SIZE", "1"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
