"""How much memory a rank may use, and how much a student takes: estimates, to choose a layout by."""

from __future__ import annotations

import contextlib
import ctypes
import resource
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from homodistil_ds.runtime import launch

ADAM_STATES = 12  # bytes per parameter: fp32 master and two moments
FP32_GRADIENT = 4
M_MMAP_THRESHOLD = -3  # of mallopt, in malloc.h
MAPPED_FROM = 2**20  # bytes
UNLIMITED = 2**60  # cgroup v1 writes a number near 2**63 where nothing is limited


def student_bytes(parameters: int, stage: int, world_size: int, precision: str, offload: bool = False) -> int:
    """Bytes per rank of a trained model's weights, gradients and Adam states at a ZeRO stage, without activations.

    `precision` is one of ds_config.precision; autocast keeps its weights in float32. With `offload` the Adam states lie
    in host memory and do not count.
    """
    weight = 2 if precision in ("bf16", "fp16") else 4
    whole, shared = {
        0: (weight + FP32_GRADIENT + 8, 0),  # float32 only: the weights are their own masters
        1: (2 * weight, ADAM_STATES + FP32_GRADIENT),
        2: (weight, weight + ADAM_STATES + FP32_GRADIENT),
        3: (0, weight + ADAM_STATES + FP32_GRADIENT),
    }[stage]
    if offload:
        shared -= ADAM_STATES + FP32_GRADIENT
    return parameters * whole + parameters * shared // world_size


def return_freed() -> None:
    """Have this process give freed tensors back to the machine at once, where the C library can be told to.

    Sharded models allocate and free whole parameters all the time. By default glibc soon serves them from its heap,
    which such a pattern fragments: on four ranks, five forwards of a sharded teacher of 678 MiB took 973 MiB per rank
    instead of 275.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MAPPED_FROM)


def resident_bytes() -> int:
    """What this process holds in host memory now."""
    return psutil.Process().memory_info().rss


def forget_peak() -> None:
    """Begin `peak_bytes` anew, where this machine lets a process do so."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> int:
    """The most that this process has held since: on a GPU of its memory, by torch's tensors, else of host memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]) * 2**10


def available_bytes() -> int:
    """What this rank may still take: free memory of its GPU, else the smallest of its limits and of its share of the
    machine's memory."""
    if torch.cuda.is_available():
        kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()  # by torch, for its next tensors
        return torch.cuda.mem_get_info()[0] + kept
    share = psutil.virtual_memory().available
    limit = cgroup_room(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    if limit is not None:
        share = min(share, limit)
    return max(0, min([share // launch.ranks_here(), *_rooms_below_limits()]))


def _rooms_below_limits() -> Iterator[int]:
    """What is left below each limit of this process (ulimit -v, ulimit -d), where one is set."""
    used = psutil.Process().memory_info()
    for kind, taken in ((resource.RLIMIT_AS, used.vms), (resource.RLIMIT_DATA, used.data)):
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY:
            yield limit - taken


def cgroup_room(own: Path, root: Path) -> int | None:
    """Bytes left below the lowest memory limit of this process's control groups, version 1 or 2; None without a limit.

    `own` names the groups, as /proc/self/cgroup does; `root` is where they are mounted. Cached file pages do not count
    as taken: the kernel drops them when memory is short.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    rooms = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, limit, used = root, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            mount, limit, used = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):  # a limit of any group above holds too
            if folder == mount or mount in folder.parents:
                rooms += _room(folder, limit, used)
    return min(rooms, default=None)


def _room(folder: Path, limit: str, used: str) -> list[int]:
    """[limit - used] of one group, or [] where it has no limit or cannot be read."""
    try:
        most = int((folder / limit).read_text(encoding="utf-8"))  # version 2 writes "max" where nothing is limited
        taken = int((folder / used).read_text(encoding="utf-8"))
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        return []
    cached = int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
    return [most - (taken - cached)] if most < UNLIMITED else []
