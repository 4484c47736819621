"""Checks of a machine before anything is queued on it: one small function each. It prints nothing and starts no run.

Every check imports what it needs by itself, so that a broken installation costs its own line only.
"""

from __future__ import annotations

import functools

from homodistil_ds.runtime import toolchain
from homodistil_ds.runtime.doctor.findings import Asked, Check, Finding, examine
from homodistil_ds.runtime.doctor.installation import (
    apex,
    compilers,
    gpus,
    imported,
    locks,
    nccl,
    ops,
    package,
    python,
    requirements,
)
from homodistil_ds.runtime.doctor.places import clock, disk, hub, network, op_disk, open_files, shared_memory
from homodistil_ds.runtime.doctor.programs import mpi, slurm

__all__ = ["Asked", "Finding", "all_checks", "examine"]
LOADED = ("torch", "deepspeed")


def all_checks() -> list[tuple[str, Check]]:
    """Every check by the name of its line."""
    toolchain.prepare_op_folder()
    names = list(requirements()[1])
    versions: list[tuple[str, Check]] = [
        (name, functools.partial(imported if name in LOADED else package, name=name)) for name in names
    ]
    return [
        ("python", python),
        *versions,
        *(("GPUs", gpus), ("NCCL", nccl), ("compiler", compilers), ("compiled ops", ops), ("compile locks", locks)),
        *(("apex", apex), ("MPI", mpi), ("Slurm", slurm), ("output folder", disk), ("ops folder", op_disk)),
        *(("shared memory", shared_memory), ("open files", open_files), ("network", network)),
        *(("Hugging Face", hub), ("clock", clock)),
    ]
