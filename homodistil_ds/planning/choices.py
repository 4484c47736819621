"""What else would do: the same run under other ZeRO stages, placements, micro batches and means that save memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from homodistil_ds.planning.around import end_bytes, start_bytes
from homodistil_ds.planning.descent import lost_by_recomputing
from homodistil_ds.planning.devices import Device
from homodistil_ds.planning.job import Job
from homodistil_ds.planning.phases import host_peak, phases_of
from homodistil_ds.runtime import ds_config

ROOM = 0.95  # of a device's memory that a plan may fill: formulas are some per cent off


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The same run under another ZeRO stage, placement of the teacher and micro batch; with layers run once more
    (activation_checkpointing), or Adam's states in host memory (offload_optimizer)."""

    stage: int
    placement: str
    micro_batch: int
    recomputes: bool
    offloads: bool
    peak: int
    host: int
    """Of a node's host memory, beside GPUs."""
    fits: bool
    hours: float
    """Of all devices."""


def choices_of(job: Job) -> Iterator[Choice]:
    """Every stage that this precision trains at with every placement, the cheapest that fits first.

    Each with the largest micro batch that fits, of the one that was asked for, its half and so on. Where none fits,
    the same with means that take time for memory; where such means are asked for, also what fits without them.
    """
    found: list[Choice] = []
    for own in _lighter(job):
        found += [choice for choice in _all_choices(own) if choice.fits]
        if found:
            break
    for own in _ever_smaller(job):
        found += _all_choices(own)
        if any(choice.fits for choice in found):
            break
    yield from sorted(found, key=lambda choice: (not choice.fits, choice.hours if choice.fits else choice.peak))


def _all_choices(job: Job) -> list[Choice]:
    return [_choice(job, stage, placement) for stage in _stages(job) for placement in _placements(job)]


def _without_means(job: Job) -> Job:
    """The job with all states on the GPU and every layer run once."""
    zero = job.machine.get("zero_optimization", {})
    zero = {name: value for name, value in zero.items() if name not in ds_config.OFFLOADED_FROM}
    machine = {name: value for name, value in job.machine.items() if name != "activation_checkpointing"}
    return replace(job, machine=machine | {"zero_optimization": zero}, later=None)


def _lighter(job: Job) -> Iterator[Job]:
    """Where the DeepSpeed configuration takes time for a GPU's memory: the job without these means, then, where it
    offloads, with layers run once more in place of that."""
    if job.device.keeps_freed or not (ds_config.recomputes(job.machine) or job.offloads):
        return
    none = _without_means(job)
    yield none
    if job.offloads:
        yield replace(none, machine=none.machine | {"activation_checkpointing": {}})


def _ever_smaller(job: Job) -> Iterator[Job]:
    """The job as it is, with layers run once more, with Adam in a GPU's host memory, with both."""
    yield job
    again: dict[str, Any] = {} if ds_config.recomputes(job.machine) else {"activation_checkpointing": {}}
    host: dict[str, Any] = {}
    if not job.device.keeps_freed and not ds_config.offloads(job.machine):
        zero = {**job.machine.get("zero_optimization", {}), "offload_optimizer": {"device": "cpu"}}
        host = {"zero_optimization": zero}
    both = again | host if again and host else {}
    for means in filter(None, (again, host, both)):
        yield replace(job, machine=job.machine | means, later=None)


def _stages(job: Job) -> list[int]:
    lost = ds_config.recomputes(job.machine) and lost_by_recomputing(job.objective.student_reads())
    lowest = 0 if job.weight_bytes == 4 and not job.offloads else 1
    return list(range(lowest, 3 if lost else 4))


def _placements(job: Job) -> list[str]:
    found = {job.placement: None}
    if job.runs_teacher and job.ranks > 1 and not job.plan.family.fused:
        nodes = ("node",) if job.nodes > 1 and job.ranks_per_node > 1 else ()
        found |= dict.fromkeys(("replicated", *nodes, "zero3"))
    if job.runs_teacher and job.offloads and not job.plan.family.fused:
        found |= {"cpu_offload": None}
    return list(found)


def _choice(job: Job, stage: int, placement: str) -> Choice:
    zero = {**job.machine.get("zero_optimization", {}), "stage": stage}
    for key, lowest in ds_config.OFFLOADED_FROM.items():
        if stage < lowest:
            zero.pop(key, None)
    micro, times = job.micro_batch, job.accumulation
    while True:
        sizes = {"train_micro_batch_size_per_gpu": micro, "gradient_accumulation_steps": times}
        own = replace(job, machine={**job.machine, **sizes, "zero_optimization": zero}, later=None, placement=placement)
        phases = list(phases_of(own))
        peak = max(start_bytes(own), end_bytes(own), *(phase.footprint.peak for phase in phases))
        host = host_peak(own, phases)
        fits = fits_in(own.device, peak, host)
        if fits or micro == 1:
            break
        part = next(factor for factor in range(2, micro + 1) if micro % factor == 0)
        micro, times = micro // part, times * part
    hours = sum(phase.seconds for phase in phases) * own.ranks / 3600
    return Choice(
        stage=stage,
        placement=placement,
        micro_batch=micro,
        recomputes=ds_config.recomputes(own.machine),
        offloads=own.offloads,
        peak=peak,
        host=host,
        fits=fits,
        hours=hours,
    )


def fits_in(device: Device, peak: int, host: int) -> bool:
    """`peak` bytes in a rank's memory and `host` bytes in a node's, where that is known."""
    return peak <= ROOM * device.memory and (not device.host_memory or host <= ROOM * device.host_memory)
