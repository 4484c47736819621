"""Who shares the preparation of a corpus: this process alone, worker processes of its own, or the ranks of MPI.

A job is a function of Workers; each of them runs it whole, and they meet in `everyone`. One that fails ends them all.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, TypeVar

from homodistil_ds.errors import HomodistilError

Result = TypeVar("Result")
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl
# The size of the job as its launcher tells it; the first that is set counts, since a step inherits those of its job.
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")


class Workers(Protocol):
    rank: int
    size: int

    def everyone(self, value: Any) -> list[Any]:
        """The values of all workers, in their order, once each has given one."""


class Alone:
    rank = 0
    size = 1

    def everyone(self, value: Any) -> list[Any]:
        return [value]


class _Piped:
    """A worker process; its parent passes the values round."""

    def __init__(self, rank: int, size: int, parent: Connection) -> None:
        self.rank = rank
        self.size = size
        self._parent = parent

    def everyone(self, value: Any) -> list[Any]:
        self._parent.send(("everyone", value))
        values: list[Any] = self._parent.recv()
        return values


def in_processes(size: int, job: Callable[[Workers], Result]) -> Result:
    """Run `job` in `size` processes; returns the result of the first. Raises the HomodistilError of any, at once."""
    context = get_context("fork")
    pipes: list[Connection] = []
    processes: list[BaseProcess] = []
    try:
        for rank in range(size):
            ours, theirs = context.Pipe()
            process: BaseProcess = context.Process(
                target=_work, args=(job, rank, size, theirs, os.getpid()), daemon=True
            )
            process.start()
            theirs.close()  # else the end of the process would not be seen
            pipes.append(ours)
            processes.append(process)
        while True:
            kinds, values = zip(*_one_from_each(pipes, processes), strict=True)
            if kinds[0] == "done":
                return values[0]
            for pipe in pipes:
                pipe.send(list(values))
    finally:
        for process in processes:
            process.kill()
            process.join()


def _one_from_each(pipes: list[Connection], processes: list[BaseProcess]) -> list[tuple[str, Any]]:
    messages: dict[int, tuple[str, Any]] = {}
    while len(messages) < len(pipes):
        ready = connection.wait([pipe for rank, pipe in enumerate(pipes) if rank not in messages])
        for rank in (rank for rank, pipe in enumerate(pipes) if pipe in ready):
            try:
                kind, value = pipes[rank].recv()
            except (EOFError, ConnectionError) as error:
                raise _lost(rank, processes[rank]) from error
            if kind == "failed":
                raise value
            messages[rank] = kind, value
    return [messages[rank] for rank in range(len(pipes))]


def _lost(rank: int, process: BaseProcess) -> HomodistilError:
    process.join(5)
    return HomodistilError(
        "DIST-LOST-RANK",
        f"worker process {rank} ended early (exit code {process.exitcode})",
        "If it says nothing above, the system may have ended it for want of memory: use fewer --workers.",
    )


def _work(job: Callable[[Workers], Any], rank: int, size: int, parent: Connection, parent_pid: int) -> None:
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent_pid:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    try:
        parent.send(("done", job(_Piped(rank, size, parent))))
    except HomodistilError as error:
        parent.send(("failed", error))
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


class _Mpi:
    def __init__(self, world: Any) -> None:
        self.rank = int(world.Get_rank())
        self.size = int(world.Get_size())
        self._world = world

    def everyone(self, value: Any) -> list[Any]:
        values: list[Any] = self._world.allgather(value)
        return values


def launched(environment: Mapping[str, str] = os.environ) -> int | None:
    """How many processes a launcher of MPI jobs started as one; None without such a launcher.

    Raises HomodistilError for one that starts processes which MPI knows nothing of.
    """
    size = next((int(environment[name]) for name in _SIZES if name in environment), None)
    if size is None and "SLURM_STEP_ID" in environment:
        size = int(environment.get("SLURM_NTASKS", "1"))
    if size is None and "RANK" in environment and int(environment.get("WORLD_SIZE", "1")) > 1:
        raise HomodistilError(
            "ENV-LAUNCHER",
            f"a launcher started {environment['WORLD_SIZE']} processes, but not by MPI",
            "Start the preparation by mpirun, srun --mpi=..., or plainly with --workers.",
        )
    return size


def under_mpi(expected: int, job: Callable[[Workers], Result], failed: Callable[[BaseException], int]) -> Result:
    """Run `job` on the ranks of MPI. `failed` reports an error and gives the exit code; then all ranks are ended.

    Raises HomodistilError: ENV-MPI without mpi4py, or if its world is not the launcher's.
    """
    try:
        from mpi4py import MPI  # noqa: PLC0415  needed under mpirun and srun only
    except ImportError as error:
        raise HomodistilError(
            "ENV-MPI",
            f"a launcher started {expected} processes, but mpi4py cannot be imported ({error})",
            "pip install 'homodistil_ds[mpi]' with the MPI of the launcher, or start one process with --workers.",
        ) from error
    world = MPI.COMM_WORLD
    if world.Get_size() != expected:
        raise HomodistilError(
            "ENV-MPI",
            f"the launcher started {expected} processes, but MPI sees {world.Get_size()}: each would do all the work",
            "Launcher and MPI do not speak with each other. Try srun --mpi=pmix (Open MPI) or --mpi=pmi2 (MPICH), "
            "or the mpirun that belongs to mpi4py's MPI.",
        )
    try:
        return job(_Mpi(world))
    except BaseException as error:  # the others would wait for this rank for ever
        world.Abort(failed(error))
        raise
