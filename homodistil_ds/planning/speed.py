"""Seconds of an optimizer step by a roofline: matrix products at the largest measured rate, the rest by bandwidth.

An estimate. Operations do not overlap, nor does communication; what good systems reach of the roofline is REACHED.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from homodistil_ds.models.width import INTO_HEADS, Stack, WidthPlan, Widths
from homodistil_ds.planning.devices import REACHED
from homodistil_ds.planning.job import Job, entries
from homodistil_ds.planning.memory import in_layers, stacks_of
from homodistil_ds.planning.traffic import host_traffic, messages
from homodistil_ds.pruning.cost import body_flops, crossed, head_flops, speaks
from homodistil_ds.runtime import ds_config

LATENCY = 15e-6  # of a collective, per doubling of the ranks
MOVED = 6.0  # times that what a layer keeps is read and written in a forward and a backward pass
MOVED_FORWARD = 2.0
ADAM_BYTES = 30  # moved per parameter by a fused Adam
# Bytes/s of a node's host memory that an Adam there reaches, a guess on the safe side: with it 3 G parameters take
# 0.9 s, and a whole step of Qwen2.5-3B on two A100 took 2.4 s (DeepSpeed's pull request 7474).
HOST_ADAM = 100e9
LOGIT_BYTES = 62  # moved per logit by losses that are not fused, of both models


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Of one optimizer step."""

    seconds: float
    communication: float
    """The part of `seconds` that collectives and copies from and to host memory take, if nothing hides them."""
    tokens_per_second: float
    """Of all ranks."""
    utilisation: float
    """Model FLOPs over what the devices could do by their data sheets (MFU)."""


def pace(job: Job, widths: Widths, wire: Mapping[str, int]) -> Pace:
    """At these physical widths; `wire` are the bytes that go over a rank's line in a step, by what they carry."""
    device = job.device
    reached = 1.0 if device.keeps_freed else REACHED  # a CPU's rate is measured, not the data sheet's
    tokens = job.tokens * job.accumulation
    body = body_flops(job.student_plan, widths, job.config.sequence_length, job.predicted_share)
    again = body * ds_config.recomputes(job.machine)
    rate = device.product if in_half(job) else device.single  # nothing here turns TF32 on
    fused = not device.keeps_freed and "attention" not in job.objective.student_reads()
    left_out = _left_out(job, widths, 3 + ds_config.recomputes(job.machine)) if fused else 0.0
    products = tokens * (job.flops(widths) + again - left_out) / rate
    adam = ADAM_BYTES * entries(job.trained(widths)) / (job.ranks if job.stage else 1)
    moved = tokens * _moved(job, widths) + (0 if job.offloads else adam)
    computing = (products + moved / device.bandwidth) / reached
    if job.offloads:
        computing += adam * job.ranks_per_node / HOST_ADAM
    in_node = wire.get("teacher", 0) if job.placement == "node" else 0
    moving = (sum(wire.values()) - in_node) / job.bus + in_node / device.bus
    communication = moving + messages(job) * LATENCY * math.log2(job.ranks) if job.ranks > 1 else 0.0
    communication += host_traffic(job, widths) / device.host_link
    seconds = computing + communication
    return Pace(
        seconds=seconds,
        communication=communication,
        tokens_per_second=tokens * job.ranks / seconds,
        utilisation=tokens * useful_flops(job, widths) / (seconds * device.peak),
    )


def in_half(job: Job) -> bool:
    """Whether products run on the device's units for half precision."""
    return job.computed_bytes == 2 and (job.device.bf16 or ds_config.precision(job.machine) == "fp16")


def useful_flops(job: Job, widths: Widths) -> float:
    """Per token: the teacher's forward pass, of its body unless a cache spares that, the student's forward and
    backward, heads where logits are read, half of a decoder's maps."""
    length, share = job.config.sequence_length, job.predicted_share * speaks(job.objective.student_reads())
    models = [(job.student_plan, widths, 3, True)] + [(job.plan, job.plan.full, 1, job.runs_teacher)] * job.with_teacher
    all_of = sum(
        times * (body_flops(plan, own, length, job.predicted_share) * has_body + share * head_flops(plan, own))
        for plan, own, times, has_body in models
    )
    return all_of - _left_out(job, widths, 3)


def _left_out(job: Job, widths: Widths, times: int) -> float:
    """FLOPs per token of the half of a decoder's maps that nobody attends to, which fused kernels leave out: in so many
    passes of the student and in the teacher's."""
    if job.plan.family.language_model != "causal":
        return 0.0
    full = job.plan.full
    own = job.student_plan.layers * widths.heads * widths.head_size
    its = job.plan.layers * full.heads * full.head_size * job.runs_teacher
    return 2 * job.config.sequence_length * (times * own + its)


def _moved(job: Job, widths: Widths) -> float:
    """Bytes per token of everything that is no matrix product."""
    c = job.computed_bytes
    student = MOVED * per_token(job, job.student_plan, widths)
    teacher = MOVED_FORWARD * per_token(job, job.plan, job.plan.full) * job.runs_teacher
    maps = 0.0
    if "attention" in job.objective.student_reads():
        own, its = (in_layers(job, plan, 2) + crossed(stacks_of(job, plan)) for plan in (job.student_plan, job.plan))
        maps = 18 * own * widths.heads + 15 * its * job.plan.full.heads
    spoken = job.predicted_share * job.plan.fixed["vocab"] * speaks(job.objective.student_reads())
    logits = LOGIT_BYTES * spoken / (1 if job.with_teacher else 2)
    return c * (student + teacher + maps * job.config.sequence_length) + logits


def per_token(job: Job, plan: WidthPlan, widths: Widths) -> float:
    """Entries per token that matrices, attention, activations and norms read in all layers."""
    return sum(layers * share * _in_layer(plan, stack, widths) for stack, layers, share in stacks_of(job, plan))


def _in_layer(plan: WidthPlan, stack: Stack, widths: Widths) -> int:
    into = [row.axes[0] for row in plan.family.rows if row.axes[1:] == ("hidden",) and row.stack == stack]
    gated = into.count("ffn") > 1
    gives = sum(plan.size(axis, widths) for axis in into if axis in (*INTO_HEADS, "crossing"))
    crosses = "crossing" in into
    context = widths.heads * widths.head_size * (1 + crosses)
    return gives + context + widths.hidden * (5 + gated + 2 * crosses) + widths.ffn * (3 if gated else 2)
