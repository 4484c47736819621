"""The process group: who am I, wait for all, add up, agree. It works with one process; it knows no model."""

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
        torch.cuda.set_device(device())
    # DeepSpeed compiles a shared-memory all-reduce at this point on every CPU machine. Training never calls it, its
    # build takes a minute, and it ignores the group's timeout; hence it is not built.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.init_distributed(verbose=False, timeout=COLLECTIVE_TIMEOUT)


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def add_up(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over all ranks, in place: one all-reduce."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def mean(tensor: torch.Tensor) -> torch.Tensor:
    """Mean over all ranks, in place."""
    return add_up(tensor).div_(world_size())


def together(action: Callable[[], Result]) -> Result:
    """Run `action` on every rank. If it raises HomodistilError on any, every rank raises the lowest rank's, so that no
    rank waits for one that has left."""
    error: HomodistilError | None = None
    result: Result | None = None
    try:
        result = action()
    except HomodistilError as raised:
        error = raised
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


def agree(digests: Mapping[str, int], step: int) -> None:
    """Check that every rank holds the same 63-bit digest for each name.

    Raises HomodistilError naming the first group that differs and the ranks that disagree with rank 0.
    """
    if world_size() == 1:
        return
    own = torch.tensor(list(digests.values()), dtype=torch.int64, device=device())
    gathered = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(gathered, own)
    differing = first_difference(list(digests), [row.tolist() for row in gathered])
    if differing is not None:
        name, ranks = differing
        raise HomodistilError(
            "DIST-MASKS-DIFFER",
            f"step {step}: the masks of group '{name}' differ from rank 0 on ranks {ranks}",
            "A rank computed with other data or broken memory. Restart from the last checkpoint; if it happens again, "
            "leave the node of those ranks out.",
            "Checkpoints written before this step are valid.",
        )


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
