"""The process group: who am I, fail together, add up, compare. It works with one process; it knows no model."""

from __future__ import annotations

import logging
import os
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


def start() -> None:
    """Join the process group under deepspeed, torchrun, mpirun or plain python.

    The environment is completed first, so that DeepSpeed's own MPI discovery, which needs mpi4py and picks a network
    address itself, never runs.
    """
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
    deepspeed.init_distributed(verbose=False, timeout=COLLECTIVE_TIMEOUT)


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
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def add_up(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over all ranks, in place: one all-reduce."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def mean(tensor: torch.Tensor) -> torch.Tensor:
    """Mean over all ranks, in place."""
    return add_up(tensor).div_(world_size())


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
    errors: list[HomodistilError | None] = [error]
    if world_size() > 1:
        errors = [None] * world_size()
        dist.all_gather_object(errors, error)
    failed = [place for place, raised in enumerate(errors) if raised is not None]
    if failed:
        first = errors[failed[0]]
        assert first is not None
        if len(failed) < world_size():
            first.kept += f"\nThis happened on ranks {failed} of {world_size()}."
        raise first
    return result  # type: ignore[return-value]


def differing(digests: Mapping[str, int]) -> tuple[str, list[int]] | None:
    """Compare 63-bit digests over ranks: the first name that differs from rank 0, and the ranks where it does."""
    if world_size() == 1:
        return None
    own = torch.tensor(list(digests.values()), dtype=torch.int64, device=device())
    gathered = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(gathered, own)
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
