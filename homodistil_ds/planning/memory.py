"""Bytes that a rank needs to train a student of given widths, item by item, and at the moments when they are most.

P entries are trained, on N ranks, in w bytes each; T are the tokens of a micro batch. What DeepSpeed 0.19 keeps and
copies at each stage was read in its source and compared with the peaks of real runs (benchmarks/plan_memory.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from homodistil_ds.distillation.attention_maps import SHORTEST, rows_at_once
from homodistil_ds.models.width import WidthPlan, Widths
from homodistil_ds.planning.activations import Shape, kept_bytes
from homodistil_ds.planning.job import Job, entries
from homodistil_ds.pruning.cost import Stacks, speaks, stacks
from homodistil_ds.runtime import ds_config
from homodistil_ds.runtime.memory import ADAM_STATES

FP32 = 4
DTYPES = {"bf16": torch.bfloat16, "autocast": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
BUCKET = 500_000_000  # entries that DeepSpeed reduces at a time, unless the file says so
LIVE = 1_000_000_000  # entries of sharded parameters that may stay whole at a time
SUB_GROUP = 1_000_000_000  # entries that ZeRO-3 updates at a time
KERNELS = 48 * 2**20  # what kernels and collectives keep for themselves from the first step on
LOGIT_COPIES = 28  # bytes per logit: of both models, in float32, normalised, and a gradient
PART_COPIES = 12
TILE_COPIES = 4  # of a tile of attention maps: both models' maps, how they differ, a gradient
SCORE_COPIES = 6  # of queries and keys: scaled, filled up, their differences
LOG_TILE_COPIES = 8  # of relations: products, logarithms, one's exponential, difference, its product, a gradient
FRAGMENTS = 1.06  # of a GPU's memory, lost between blocks


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes per rank. `items` are there at one moment or another; `peak` is the most that is there at once."""

    items: Mapping[str, int]
    peak: int
    host: int = 0
    """In host memory beside a GPU's."""


def footprint(job: Job, widths: Widths, after: Widths | None = None) -> Footprint:
    """Of the steps at these physical widths, and of the cut to the widths `after` that ends them."""
    framework = {"framework": job.device.framework + KERNELS}
    always = framework | {"teacher": teacher_bytes(job)} | states(job, widths)
    pass_through = activations(job, widths) | {"logits": logits(job)}
    gradients = {"gradients": gradient_bytes(job, widths) + offloaded_gradients(job, widths)}
    then = {"optimizer step": step_bytes(job, widths), "cut": cut_bytes(job, widths, after) if after else 0}
    items = always | gradients | pass_through | then
    passing, stepping = sum(pass_through.values()), max(then.values())
    # At stage 1 the bucket goes with the backward pass; at stage 2 peaks are those with it.
    released = bucket_bytes(job, widths) if job.stage == 1 else 0
    # Small tensors that a process keeps when they are freed are still there at the optimizer step.
    most = passing + max(released, stepping) if _keeps_freed(job) else max(released + passing, stepping)
    peak = sum(always.values()) + sum(gradients.values()) - released + most
    if not job.device.keeps_freed:
        peak = round(FRAGMENTS * (peak - framework["framework"])) + framework["framework"]
    return Footprint(items=items, peak=peak, host=host_bytes(job, widths))


def job_at(job: Job, widths: Widths) -> Job:
    """The same job under the DeepSpeed configuration that it has at these physical widths: the one after cuts as soon
    as a rank takes no more memory under it than the run began with."""
    if widths == job.first_widths or job.later is None:
        return job
    later = replace(job, machine=job.later, later=job.machine)  # it is still a run of both
    return later if footprint(later, widths).peak <= footprint(job, job.first_widths).peak else job


def _keeps_freed(job: Job) -> bool:
    """Sharded models have the C library give freed memory back (runtime.memory.return_freed)."""
    return job.device.keeps_freed and job.stage < 3 and job.placement == "replicated"


def teacher_bytes(job: Job) -> int:
    size = entries(job.taught()) * job.weight_bytes
    if not job.teacher_in_pieces:
        return size
    largest = max((entries([parameter]) for parameter in job.taught()), default=0) * job.weight_bytes
    own = 0 if job.placement == "cpu_offload" and not job.device.keeps_freed else size // job.teacher_parts
    return own + 2 * largest  # what is gathered for one module and fetched for the next


def states(job: Job, widths: Widths) -> dict[str, int]:
    """Weights, masters and moments."""
    size = entries(job.trained(widths))
    weights, sharded = job.weight_bytes * size, ADAM_STATES * size // job.ranks
    if job.stage == 0:
        return {"student": weights, "optimizer": 2 * FP32 * size}
    if job.stage == 3:
        live = min(size, job.zero("stage3_max_live_parameters", LIVE))
        there = job.ranks == 1 and job.placement == "zero3" and not job.offloads_parameters
        gathered = 0 if there else job.weight_bytes * live
        own = 0 if job.offloads_parameters else weights // job.ranks
        return {"student": own + gathered, "optimizer": 0 if job.offloads else sharded}
    return {"student": weights, "optimizer": 0 if job.offloads else sharded}


def offloaded_gradients(job: Job, widths: Widths) -> int:
    """What offloading keeps of them in float32 beside the masters, where host memory is all there is."""
    if not (job.device.keeps_freed and ds_config.offloads(job.machine)):
        return 0
    return FP32 * entries(job.trained(widths)) // job.ranks


def gradient_bytes(job: Job, widths: Widths) -> int:
    """Gradients as they are when the backward pass ends, with the bucket they are reduced in."""
    size, w, bucket = entries(job.trained(widths)), job.weight_bytes, bucket_bytes(job, widths)
    if job.stage in (0, 1):
        return w * size + bucket
    own = 0 if job.offloads else w * size // job.ranks
    if job.stage == 3:
        return own + 2 * bucket  # reduced from a second copy
    return own * (2 if job.accumulation > 1 else 1) + bucket  # what was reduced of the micro batches before stays


def bucket_bytes(job: Job, widths: Widths) -> int:
    """What gradients are reduced in."""
    size, most = entries(job.trained(widths)), job.zero("reduce_bucket_size", BUCKET)
    # DeepSpeed makes it whole; what nobody writes to is no memory of a process on a CPU.
    used = min(size, most) if job.device.keeps_freed or job.stage == 0 else most
    return job.weight_bytes * used * (2 if job.stage < 3 and job.zero("overlap_comm", False) else 1)


def step_bytes(job: Job, widths: Widths) -> int:
    """Copies of this rank's gradients while Adam works: gathered, in a row, in float32."""
    size, w = entries(job.trained(widths)), job.weight_bytes
    if job.stage == 0 or ds_config.offloads(job.machine):
        return 0
    if job.stage == 3:
        return FP32 * min(size // job.ranks, job.zero("sub_group_size", SUB_GROUP))
    return ((2 if job.stage == 1 else 1) * w + FP32) * size // job.ranks  # at stage 2 one copy is there already


def cut_bytes(job: Job, before: Widths, after: Widths) -> int:
    """What is left of this rank's state, and what of it goes to others and comes from them; beside a GPU's memory."""
    if not job.device.keeps_freed:
        return 0
    own = ADAM_STATES * entries(job.trained(after)) // job.ranks
    exchanged = 2 * own * (job.ranks - 1) // job.ranks
    if not _keeps_freed(job):  # by then the new engine has taken the old one's place
        gone = sum(states(job, before).values()) + gradient_bytes(job, before) + offloaded_gradients(job, before)
        exchanged = max(0, exchanged + sum(states(job, after).values()) - gone)
    return own + exchanged


def activations(job: Job, widths: Widths) -> dict[str, int]:
    """What the backward pass needs of the forward passes, and what the losses compare."""
    reads, taught = job.objective.student_reads(), job.objective.teacher_reads()
    c, tokens, plan = job.computed_bytes, job.tokens, job.student_plan
    layers, maps = (in_layers(job, plan, power) for power in (1, 2))
    its_layers, its_maps = (in_layers(job, job.plan, power) for power in (1, 2))
    row_of_maps = tokens * job.config.sequence_length
    kept = kept_bytes(plan, shape_of(job, widths), job.micro_batch)
    found = {"activations": round(kept)}
    if ds_config.recomputes(job.machine):
        found["activations"] = round(kept / plan.layers + layers * c * tokens * widths.hidden)
    losses = 0.0
    if "attention" in taught:
        losses += its_maps * row_of_maps * job.plan.full.heads * c
        losses += 2 * FP32 * maps * row_of_maps * widths.heads
    states = len({"queries", "keys", "values"} & taught)
    losses += states * its_layers * tokens * job.plan.full.heads * job.plan.full.head_size * c
    losses += FP32 * (_in_relations(job, widths) + layers * tokens * _in_scores(job, widths))
    if job.objective.tiled:
        length, heads = job.config.sequence_length, job.plan.full.heads
        rows = rows_at_once(job.micro_batch, heads, length)
        losses += TILE_COPIES * FP32 * job.micro_batch * heads * rows * length
    if "hidden" in taught or "embedding" in taught:
        losses += c * tokens * job.plan.full.hidden * (its_layers + 1)
    compared = layers * ("hidden" in reads) + ("embedding" in reads)
    losses += compared * tokens * job.plan.full.hidden * (c + 2 * FP32) * job.with_teacher
    return found | {"losses": round(losses)}


def _in_relations(job: Job, widths: Widths) -> int:
    """Numbers that losses on relations hold in float32: maps, two for each relation until its gradient is known and
    three more while the last one is compared, or a tile of them."""
    weights, length = job.objective.weights, job.config.sequence_length
    of_values = widths.heads * ("value_relation" in weights)
    of_all = job.config.loss.relation_heads * ("relation" in weights)
    most = max(of_values, of_all)
    if most and length >= SHORTEST:
        return LOG_TILE_COPIES * job.tokens * most * rows_at_once(job.micro_batch, most, length)
    return job.tokens * length * (2 * of_values + 3 * 2 * of_all + 3 * most)


def _in_scores(job: Job, widths: Widths) -> int:
    """Numbers per token and layer that the loss on attention scores holds in float32."""
    size = max(widths.head_size, job.plan.full.head_size)
    return SCORE_COPIES * widths.heads * size * ("scores" in job.objective.weights)


def shape_of(job: Job, widths: Widths) -> Shape:
    """What the student's layers are counted as. A decoder behind an encoder reads what is predicted."""
    length, shares = job.config.sequence_length, [share for _, _, share in stacks_of(job, job.student_plan)]
    return Shape(
        teacher=job.config.teacher,
        layers=job.student_plan.layers,
        widths=widths,
        reads=job.objective.student_reads() - {"logits", "predicted"},
        ids=round(shares[0] * length),
        decoder_ids=round(shares[1] * length) if len(shares) > 1 else 0,
        dtype=DTYPES[ds_config.precision(job.machine)],
    )


def stacks_of(job: Job, plan: WidthPlan) -> Stacks:
    return stacks(plan, job.config.sequence_length, job.predicted_share)


def in_layers(job: Job, plan: WidthPlan, power: int) -> float:
    """Layers of a model, each counted with what it reads of a row's tokens to this power."""
    return sum(layers * share**power for _, layers, share in stacks_of(job, plan))


def logits(job: Job) -> int:
    vocabulary = job.plan.fixed["vocab"]
    if not speaks(job.objective.student_reads()):
        return 0
    copies = LOGIT_COPIES if job.objective.logits == "logits" else PART_COPIES * 2
    return job.rows * vocabulary * copies // (1 if job.with_teacher else 2)


def host_bytes(job: Job, widths: Widths) -> int:
    """Masters, moments and gradients beside a GPU, weights and a teacher that lie there."""
    if job.device.keeps_freed:
        return 0
    size = entries(job.trained(widths))
    each = (ADAM_STATES + FP32) * job.offloads + job.weight_bytes * job.offloads_parameters
    taught = entries(job.taught()) * job.weight_bytes // job.ranks if job.offloads_teacher else 0
    return each * size // job.ranks + taught


def checkpoint_bytes(job: Job, widths: Widths) -> int:
    """Master weights and moments, in the files of all ranks together."""
    return ADAM_STATES * entries(job.trained(widths))
