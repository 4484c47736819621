"""Bytes that a rank needs before the loop and after it, those of a node's host memory, and whether there is room."""

from __future__ import annotations

import math
from collections.abc import Sequence

from homodistil_ds.errors import HomodistilError
from homodistil_ds.planning.devices import GIB
from homodistil_ds.planning.job import Job, entries, shapes
from homodistil_ds.planning.memory import FP32, Footprint, footprint, teacher_bytes

MEASURED_IN = 0.8  # of the free memory that models in float32 may take at the end
PLAN_ERROR = 0.1  # of what a run takes, by which a plan may be off


def host_bytes_around(job: Job) -> int:
    """Beside a GPU, before the loop and after it: models that every rank makes or takes whole, in float32."""
    if job.device.keeps_freed:
        return 0
    whole = entries(shapes(job.plan, job.plan.full))
    source = whole if job.placement == "replicated" else 0
    began = source + (entries(job.trained(job.first_widths)) if job.stage < 3 else 0)
    teacher = source if job.with_teacher else 0  # loaded anew, before it goes to the GPU
    if job.with_teacher and job.placement == "cpu_offload":
        teacher = whole // job.ranks
    return FP32 * max(began, teacher + entries(job.trained(job.last_widths)))


def host_bytes_of_node(job: Job, footprints: Sequence[Footprint]) -> int:
    """The most of a node's host memory that its ranks take together, beside GPUs."""
    return job.ranks_per_node * max(host_bytes_around(job), *(each.host for each in footprints))


def measuring_bytes(taught: int, largest: int, student: int, parts: int, offloaded: bool, width: int) -> int:
    """Of both models while a finished student is measured beside its teacher, at `width` bytes per weight.

    `taught`, `largest` and `student` are entries: of the teacher, of its largest parameter, of the student, which each
    rank has whole; the teacher lies in `parts`, or `offloaded` in host memory.
    """
    pieces = parts > 1 or offloaded
    return width * ((0 if offloaded else taught // parts) + 2 * largest * pieces + student)


def end_bytes(job: Job) -> int:
    """While the student is measured: in float32 where both models fit, else in the format of training. The teacher is
    there with a cache too."""
    taught = [math.prod(shape) for _, shape in shapes(job.plan, job.plan.full)] if job.with_teacher else []
    student = entries(shapes(job.student_plan, job.last_widths))
    offloaded = job.placement == "cpu_offload" and not job.device.keeps_freed
    sizes = [
        measuring_bytes(sum(taught), max(taught, default=0), student, job.teacher_parts, offloaded, width)
        for width in (FP32, job.weight_bytes)
    ]
    free = job.device.memory - job.device.framework
    return job.device.framework + (sizes[0] if sizes[0] <= MEASURED_IN * free else sizes[1])


def start_bytes(job: Job) -> int:
    """While models are loaded and the first engine is built."""
    size = entries(job.trained(job.first_widths))
    whole = job.placement == "replicated" and job.with_teacher
    source = FP32 * entries(shapes(job.plan, job.plan.full)) if whole else 0
    w, framework = job.weight_bytes, job.device.framework
    if not job.device.keeps_freed:  # models are made and rounded in host memory
        masters = 0 if job.stage == 0 else FP32 * size // job.ranks
        weights = 0 if job.offloads_parameters else w * size // (job.ranks if job.stage == 3 else 1)
        return framework + teacher_bytes(job) + masters * (not job.offloads) + weights
    if job.stage == 3:
        return framework + source + teacher_bytes(job) * (not source) + (w + FP32 + w) * size // job.ranks
    masters = 0 if job.stage == 0 else (w + FP32) * size // job.ranks
    return framework + source + FP32 * size + masters


def check_room(job: Job, free: int) -> None:
    """Before anything is loaded. Raises HomodistilError where the run needs more than the `free` bytes of a rank, by
    more than plans are off, while it starts or in its first steps."""
    try:
        own = footprint(job, job.first_widths)
    except RuntimeError:
        return  # a forward pass that cannot do without values is not looked at; the run may still fit
    host = host_bytes_of_node(job, [own])
    if job.device.host_memory and host > (1 + PLAN_ERROR) * job.device.host_memory:
        why, less = "keep Adam, weights or the teacher there", "Offload less, use"
        if host_bytes_around(job) > own.host:
            why = "each make their models there, whole and in float32, when they start or when the student is measured"
            less = "Use --teacher_placement zero3," if job.placement == "replicated" and job.with_teacher else "Use"
        raise HomodistilError(
            "CFG-MEMORY",
            f"this run needs {host / GIB:,.1f} GiB of this node's host memory, which has "
            f"{job.device.host_memory / GIB:,.1f}: {job.ranks_per_node} ranks {why}",
            f"{less} fewer ranks per node and more nodes; tools/plan.py, with the same flags and --host_memory, shows "
            "what would fit.",
        )
    starts = start_bytes(job)
    needed = max(own.peak, starts) - job.device.framework
    if needed <= (1 + PLAN_ERROR) * free:
        return
    when = "while it starts" if starts > own.peak else "in its first steps"
    sizes = ", ".join(f"{name} {size / GIB:,.1f}" for name, size in own.items.items() if name != "framework")
    pieces = "--teacher_placement zero3, " if job.with_teacher and job.placement == "replicated" else ""
    raise HomodistilError(
        "CFG-MEMORY",
        f"this run needs {needed / GIB:,.1f} GiB per rank {when}, of {free / GIB:,.1f} that are free: ZeRO "
        f"{job.stage}, {job.ranks} ranks, micro batch {job.micro_batch}. GiB of a step: {sizes}",
        f"Use a higher ZeRO stage, {pieces}a smaller micro batch, activation_checkpointing or more ranks; "
        "tools/plan.py, with the same flags, shows what would fit.",
    )
