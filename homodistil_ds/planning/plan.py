"""The plan of a run: its phases between cuts, what they take, what else would do, and what will hurt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from homodistil_ds.models.families import legal_shapes
from homodistil_ds.models.width import Widths
from homodistil_ds.planning import cache, memory
from homodistil_ds.planning.around import end_bytes, start_bytes
from homodistil_ds.planning.choices import ROOM, Choice, choices_of, fits_in
from homodistil_ds.planning.devices import GIB
from homodistil_ds.planning.job import Job, entries
from homodistil_ds.planning.phases import Phase, host_peak, phases_of
from homodistil_ds.planning.speed import in_half
from homodistil_ds.runtime import ds_config

TILE = 64  # widths in these multiples keep tensor cores busy
MEASURED_RANKS = 8  # beyond, a plan says that nothing of it was measured
ENOUGH_TOKENS = 4096  # of a micro batch, from which sharded weights take less time than the work on them


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Bytes are those of the rank that has most; hours those of all devices together."""

    job: Job
    phases: tuple[Phase, ...]
    start_peak: int
    end_peak: int
    host_peak: int
    """Of a node's host memory, beside GPUs."""
    flops: float
    checkpoint_bytes: int
    cache_row_bytes: int
    choices: tuple[Choice, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(_warnings(self))

    @property
    def simulated(self) -> bool:
        return self.job.ranks > MEASURED_RANKS

    @property
    def peak(self) -> int:
        return max(self.start_peak, self.end_peak, *(phase.footprint.peak for phase in self.phases))

    @property
    def fits(self) -> bool:
        return fits_in(self.job.device, self.peak, self.host_peak)

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases)

    @property
    def device_hours(self) -> float:
        return self.seconds * self.job.ranks / 3600

    @property
    def tokens(self) -> int:
        return self.job.config.steps * self.job.config.global_batch_size * self.job.config.sequence_length

    @property
    def cache_bytes(self) -> int:
        """Of a teacher cache of the whole run, held-out rows too."""
        return cache.cache_bytes(self.job)


def plan_of(job: Job) -> Plan:
    phases = tuple(phases_of(job))
    tokens = job.config.global_batch_size * job.config.sequence_length
    return Plan(
        job=job,
        phases=phases,
        start_peak=start_bytes(job),
        end_peak=end_bytes(job),
        host_peak=host_peak(job, phases),
        flops=sum(tokens * phase.steps * job.flops(phase.widths) for phase in phases),
        checkpoint_bytes=memory.checkpoint_bytes(job, phases[0].widths),
        cache_row_bytes=cache.cache_row_bytes(job),
        choices=tuple(choices_of(job)),
    )


def _warnings(plan: Plan) -> Iterator[str]:
    job, device = plan.job, plan.job.device
    best = plan.choices[0]
    if not plan.fits:
        does = "nor does any other choice below"
        if best.fits:
            means = ["activation_checkpointing"] * (best.recomputes and not ds_config.recomputes(job.machine))
            needs = f" ({best.host / GIB:,.0f} GiB of a node's host memory)"
            means += [f"offload_optimizer{needs}"] * (best.offloads and not job.offloads)
            added = f", with {' and '.join(means)}, do" if means else " do"
            does = f"ZeRO {best.stage}, the teacher {best.placement} and a micro batch of {best.micro_batch}{added}"
        needed, has, of = plan.peak / GIB, device.memory / GIB, "per rank"
        if plan.peak <= ROOM * device.memory:
            needed, has, of = plan.host_peak / GIB, device.host_memory / GIB, "of a node's host memory"
        yield f"does not fit: {needed:.1f} of {has:.1f} GiB {of}; {does}"
    if not in_half(job) and not device.keeps_freed:
        half = "bf16 or fp16" if device.bf16 else "fp16"
        share = device.single / device.product
        yield f"products in float32, at {share:.0%} of the rate of half precision: {half} is for this GPU"
    if job.tokens < ENOUGH_TOKENS and job.ranks > 1 and job.stage == 3 and not device.keeps_freed:
        yield (
            f"a micro batch has {job.tokens:,} tokens: under {ENOUGH_TOKENS:,} ZeRO 3 waits for weights longer than it "
            "computes; raise train_micro_batch_size_per_gpu or use a lower stage"
        )
    if job.stage == 2 and job.accumulation > 1 and job.ranks > 1:
        yield f"ZeRO 2 sends every gradient {job.accumulation} times per step, ZeRO 1 once; stage 1 where it fits"
    if "attention" in job.objective.student_reads() and job.config.sequence_length >= 512:
        yield "attention maps of this length are held whole; --loss.attention 0 runs fused attention"
    target = plan.phases[-1].widths
    if job.prunes and target == job.student_plan.full and job.student_plan.layers == job.plan.layers:
        yield "the student is as large as its teacher: name --student sizes"
    uneven = [f"{name} {size}" for name, size in (("hidden", target.hidden), ("ffn", target.ffn)) if size % TILE]
    if uneven and not device.keeps_freed and target != job.student_plan.full:
        yield (
            f"{' and '.join(uneven)} of the student: multiples of {TILE} keep tensor cores busy; the nearest shape of "
            f"them is {_even(job, target)}"
        )
    last = job.flop_parts(target)
    if last["teacher"] > sum(last.values()) / 2:
        yield f"at the end {last['teacher'] / sum(last.values()):.0%} of the work is the teacher's forward pass"
    if job.offloads:
        yield "offloaded Adam: published runs keep a third of the speed that the same model has without"
    if plan.phases[0].pace.communication > plan.phases[0].pace.seconds / 5:
        share = plan.phases[0].pace.communication / plan.phases[0].pace.seconds
        yield f"collectives take {share:.0%} of a step if nothing hides them; {_fewer_collectives(job)}"
    if job.config.assistant != "none":
        yield "the second descent, from the assistant, is not part of this plan"
    if plan.simulated:
        yield f"simulated: nothing of this was measured on {job.ranks:,} ranks"


def _fewer_collectives(job: Job) -> str:
    """What makes them rarer: those of every micro batch, or those of every step."""
    if job.accumulation > 1 and (job.stage > 1 or job.teacher_in_pieces):
        return "raise the micro batch"
    return "use fewer ranks, a larger --global_batch_size or a lower stage"


def _even(job: Job, target: Widths) -> str:
    """The nearest shape that the teacher can be cut to with widths in multiples of TILE."""

    def apart(shape: tuple[int, int]) -> int:
        return abs(shape[0] - target.hidden) + 4 * abs(shape[1] - target.heads)

    hidden, heads = min((shape for shape in legal_shapes(job.plan) if shape[0] % TILE == 0), key=apart, default=(0, 0))
    ffn = min(max(1, round(target.ffn / TILE)), job.plan.full.ffn // TILE) * TILE or target.ffn
    return f"hidden {hidden} with {heads} heads, ffn {ffn}" if hidden else f"ffn {ffn}; none has such a hidden size"


def as_json(plan: Plan) -> dict[str, Any]:
    """What programs read: numbers in bytes, seconds and FLOPs."""
    job = plan.job
    return {
        "teacher": job.config.teacher,
        "method": job.config.method,
        "device": job.device.name,
        "device_memory_bytes": job.device.memory,
        "nodes": job.nodes,
        "ranks": job.ranks,
        "zero_stage": job.stage,
        "teacher_placement": job.placement,
        "teacher_cached": job.cached,
        "micro_batch": job.micro_batch,
        "accumulation": job.accumulation,
        "fits": plan.fits,
        "peak_bytes": plan.peak,
        "start_peak_bytes": plan.start_peak,
        "end_peak_bytes": plan.end_peak,
        "host_peak_bytes_of_a_node": plan.host_peak,
        "tokens": plan.tokens,
        "flops": plan.flops,
        "seconds": plan.seconds,
        "device_hours": plan.device_hours,
        "checkpoint_bytes": plan.checkpoint_bytes,
        "teacher_cache_bytes": plan.cache_bytes,
        "checkpoints_kept": job.config.save_total_limit,
        "simulated": plan.simulated,
        "phases": [_phase_json(job, phase) for phase in plan.phases],
        "choices": [vars(choice) for choice in plan.choices],
        "warnings": list(plan.warnings),
    }


def _phase_json(job: Job, phase: Phase) -> dict[str, Any]:
    return {
        "first_step": phase.first,
        "last_step": phase.last,
        "widths": vars(phase.widths),
        "zero_stage": phase.stage,
        "recomputes": phase.recomputes,
        "parameters": phase.parameters,
        "trained_parameters": entries(job.trained(phase.widths)),
        "memory_bytes": dict(phase.footprint.items),
        "peak_bytes": phase.footprint.peak,
        "host_bytes": phase.footprint.host,
        "traffic_bytes": dict(phase.traffic),
        "wire_bytes": dict(phase.wire),
        "flops_per_token": job.flops(phase.widths),
        "step_seconds": phase.pace.seconds,
        "communication_seconds": phase.pace.communication,
        "tokens_per_second": phase.pace.tokens_per_second,
        "mfu": phase.pace.utilisation,
    }
