"""The process group: who am I, fail together, add up, compare. It works with one process; it knows no model."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TypeVar

import deepspeed
import torch
import torch.distributed as dist

from homodistil_ds.errors import HomodistilError
from homodistil_ds.runtime import launch

Result = TypeVar("Result")
COLLECTIVE_TIMEOUT = timedelta(minutes=30)

_control: dist.ProcessGroup | None = None  # small messages between hosts; None is the default group
_node: dist.ProcessGroup | None = None  # the ranks on this rank's machine, once it was asked for

# How gloo, NCCL and the store, in this order, report a peer that has gone or is silent; in lower case.
_LOST = (
    *("connection closed by peer", "connection reset by peer", "connection timed out", "broken pipe", "read error ["),
    *("writev [", "timed out waiting", "application timeout caused pair closure", "socket timeout"),
    *("ncclremoteerror", "remote process exited", "caught collective operation timeout", "communicator was aborted"),
    *("connection was likely closed", "remote peer closed", "connection refused", "wait timeout", "timed out after"),
)


def start() -> None:
    """Join the process group under deepspeed, torchrun, srun, mpirun or plain python.

    Raises HomodistilError if the ranks cannot find each other.
    """
    if launch.started_by_mpi():
        _discover_by_mpi()
    launch.complete_environment()
    threads = launch.threads_per_rank()
    if threads is not None:
        torch.set_num_threads(threads)
    if torch.cuda.is_available():
        _take_gpu()
    # DeepSpeed compiles a shared-memory all-reduce at this point on every CPU machine. Training never calls it, its
    # build takes a minute, and it ignores the group's timeout; hence it is not built.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    try:
        deepspeed.init_distributed(verbose=False, timeout=COLLECTIVE_TIMEOUT)
    except RuntimeError as error:  # torch's errors of the store and of the network are such
        address, port = (os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise HomodistilError(
            "ENV-MEET",
            f"the ranks cannot meet at {address}:{port}: {reason}",
            "Give a port that is free on the first machine (MASTER_PORT) and an address that all reach (MASTER_ADDR).",
        ) from error
    global _control
    if world_size() > 1 and dist.get_backend() != "gloo":
        # On GPUs: reading an answer back from the device in every step would stall it.
        _control = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)


def _discover_by_mpi() -> None:
    """DeepSpeed's discovery, which needs mpi4py; without it the environment that mpirun sets is enough on one machine.

    It takes the first address of the first machine; MASTER_ADDR and MASTER_PORT win where they are set.
    """
    from mpi4py import MPI  # noqa: PLC0415 - an extra; importing it starts MPI

    counted, started = MPI.COMM_WORLD.Get_size(), int(os.environ.get("OMPI_COMM_WORLD_SIZE") or os.environ["PMI_SIZE"])
    if counted != started:
        raise HomodistilError(
            "ENV-MPI",
            f"mpirun started {started} processes, but mpi4py sees {counted}",
            "mpi4py and mpirun belong to different MPI libraries: use the mpirun of the one that mpi4py finds, or "
            "uninstall mpi4py, which training on one machine does not need.",
        )
    meeting = {name: os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT") if name in os.environ}
    port = MPI.COMM_WORLD.bcast(launch.free_port(), root=0)
    deepspeed.comm.mpi_discovery(distributed_port=port, verbose=False)
    os.environ.update(meeting)
    MPI.Finalize()  # it has said all it knows; a rank that fails later must not wait for the others in MPI's own end


def _take_gpu() -> None:
    count = torch.cuda.device_count()
    if int(os.environ["LOCAL_RANK"]) >= count:
        raise HomodistilError(
            "ENV-GPU",
            f"local rank {os.environ['LOCAL_RANK']} has no GPU of its own: this machine shows {count}",
            "Start one process per GPU, or hide the GPUs (CUDA_VISIBLE_DEVICES=) to train on the CPU.",
        )
    torch.cuda.set_device(device())


def stop() -> None:
    global _control, _node
    _control = _node = None
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def host() -> str:
    return socket.gethostname()


def node() -> dist.ProcessGroup:
    """The ranks on this rank's machine. All ranks call it."""
    global _node
    if _node is None:
        hosts = everyone(host())
        for name in dict.fromkeys(hosts):
            members = [member for member, other in enumerate(hosts) if other == name]
            group = dist.new_group(members, timeout=COLLECTIVE_TIMEOUT)
            if rank() in members:
                _node = group
    assert _node is not None
    return _node


def add_up(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over all ranks, in place: one all-reduce."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def mean(tensor: torch.Tensor) -> torch.Tensor:
    """Mean over all ranks, in place."""
    return add_up(tensor).div_(world_size())


def rows(values: Sequence[float]) -> torch.Tensor:
    """The numbers of all ranks [W, n], in host memory; n is the same everywhere."""
    own = torch.tensor(values)
    if world_size() == 1:
        return own[None]
    gathered = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(gathered, own, group=_control)
    return torch.stack(gathered)


def told_by(source: int, value: Result) -> Result:
    """What rank `source` gives, on every rank; the others' values are ignored."""
    told = [value]
    if world_size() > 1:
        dist.broadcast_object_list(told, src=source, group=_control)
    return told[0]


def lowest(value: Result | None) -> tuple[int, Result] | None:
    """The lowest rank that has a value, with it; None if no rank has one, which costs one all-reduce of an integer."""
    if world_size() == 1:
        return None if value is None else (0, value)
    # The largest number names the lowest rank; 0 says that none has a value.
    first = torch.tensor([0 if value is None else world_size() - rank()])
    dist.all_reduce(first, op=dist.ReduceOp.MAX, group=_control)
    source = world_size() - int(first)
    if source == world_size():
        return None
    told = told_by(source, value)
    assert told is not None
    return source, told


def smallest(value: int) -> int:
    """The least of all ranks' numbers."""
    number = torch.tensor([value])
    if world_size() > 1:
        dist.all_reduce(number, op=dist.ReduceOp.MIN, group=_control)
    return int(number)


def to_first(text: str) -> list[str]:
    """The texts of all ranks in their order, on rank 0; the others get an empty list and no one's text."""
    if world_size() == 1:
        return [text]
    own = text.encode()
    longest = -smallest(-len(own))
    padded = torch.frombuffer(bytearray(own.ljust(longest)), dtype=torch.uint8)
    rows = [torch.empty_like(padded) for _ in range(world_size())] if rank() == 0 else None
    dist.gather(padded, rows, group=_control)
    return [bytes(row.numpy()).decode().rstrip(" ") for row in rows or []]


def everyone(value: Result) -> list[Result]:
    """The values of all ranks, in their order."""
    if world_size() == 1:
        return [value]
    values: list[Result] = [value] * world_size()
    dist.all_gather_object(values, value)
    return values


def together(action: Callable[[], Result]) -> Result:
    """Run `action` on every rank. If it raises HomodistilError or OSError on any, every rank raises the lowest rank's,
    so that no rank waits for one that has left."""
    error: HomodistilError | None = None
    result: Result | None = None
    try:
        result = action()
    except HomodistilError as raised:
        error = raised
    except OSError as raised:
        error = HomodistilError("ENV-FILE", str(raised), "Check that the folder exists, is writable and has room.")
    if (first := lowest(error)) is not None:
        failed = [place for place, (bad,) in enumerate(rows([float(error is not None)]).tolist()) if bad]
        told = first[1]
        if len(failed) < world_size():
            told.kept += f"\nThis happened on ranks {failed} of {world_size()}."
        raise told
    return result  # type: ignore[return-value]


def on_first(action: Callable[[], object]) -> None:
    """Run `action` on rank 0 alone; the others wait, and raise what it raises."""
    together(lambda: action() if rank() == 0 else None)


def agree_to_stop(reason: str | None) -> str | None:
    """Every rank calls it at a step edge with why it should stop; all get the lowest such rank's reason, or None.

    Costs one all-reduce of one integer between hosts; the text travels only when there is one.
    """
    if world_size() == 1:
        return reason
    told = lowest(reason)
    return None if told is None else f"{told[1]} (rank {told[0]})"


def lost(error: BaseException) -> bool:
    """Whether a collective failed because another rank has gone or no longer answers."""
    if not isinstance(error, RuntimeError):
        return False
    return any(sign in str(error).lower() for sign in _LOST)


def differing(digests: Mapping[str, int]) -> tuple[str, list[int]] | None:
    """Compare 63-bit digests over ranks: the first name that differs from rank 0, and the ranks where it does."""
    if world_size() == 1:
        return None
    own = torch.tensor(list(digests.values()), dtype=torch.int64)
    # The largest and, by the sign, the smallest of each: equal where all agree, which is the case that is paid for.
    ends = torch.cat([own, -own])
    dist.all_reduce(ends, op=dist.ReduceOp.MAX, group=_control)
    if torch.equal(ends[: len(own)], -ends[len(own) :]):
        return None
    gathered = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(gathered, own, group=_control)
    return first_difference(list(digests), [row.tolist() for row in gathered])


def first_difference(names: Sequence[str], rows: Sequence[Sequence[int]]) -> tuple[str, list[int]] | None:
    """First column in which any row differs from row 0, with the rows that do."""
    for column, name in enumerate(names):
        ranks = [row for row, values in enumerate(rows) if values[column] != rows[0][column]]
        if ranks:
            return name, ranks
    return None


def device() -> torch.device:
    """The device of this rank."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")
