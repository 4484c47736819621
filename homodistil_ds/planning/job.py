"""What is planned: a run, the tables of its models and the ranks it is to run on. No weights, no process group."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from homodistil_ds.config import RunConfig
from homodistil_ds.data.masking import share_for
from homodistil_ds.distillation.attention_maps import in_tiles
from homodistil_ds.distillation.objective import Objective
from homodistil_ds.distillation.vocabulary import parted_by, rows_at_once
from homodistil_ds.errors import HomodistilError
from homodistil_ds.machine import Machine
from homodistil_ds.models.width import TRAINED_PREFIX, WidthPlan, Widths, count
from homodistil_ds.planning.descent import Descent, check_cache, descent_of
from homodistil_ds.planning.devices import NETWORK_GBITS, Device, network_bus
from homodistil_ds.pruning.cost import FORWARD, FORWARD_AND_BACKWARD, body_flops, step_parts, table_flops
from homodistil_ds.pruning.milestones import Milestone, place_cuts
from homodistil_ds.pruning.schedule import WidthSchedule
from homodistil_ds.runtime import ds_config, memory, placement
from homodistil_ds.runtime.engine import check_zero

Parameters = Iterable[tuple[str, tuple[int, ...]]]  # names and shapes
PLANNED = ("homodistil", "pretrain")
UNTIED = "lm_head.weight"
WEIGHT_BYTES = {"bf16": 2, "fp16": 2, "autocast": 4, "fp32": 4}


@dataclass(frozen=True, kw_only=True)
class Job:
    """`plan` is the teacher's table, `student_plan` the student's, `schedule` its way down from `first_widths`.

    `machine` is the DeepSpeed configuration with the batch sizes filled in, `later` the one after cuts. The teacher is
    at `placement`: replicated, node, zero3 or cpu_offload. Each rank has a line of `gbits` Gbit/s to other nodes.
    """

    config: RunConfig
    plan: WidthPlan
    student_plan: WidthPlan
    schedule: WidthSchedule
    first_widths: Widths
    machine: dict[str, Any]
    later: dict[str, Any] | None
    placement: str
    nodes: int
    ranks_per_node: int
    device: Device
    gbits: float = NETWORK_GBITS
    milestones: tuple[Milestone, ...] = ()
    """The cuts of the run, as it will place them: the same on every machine. None while a start is checked."""
    cached: bool = False
    """Whether a cache holds all that the teacher's body would say."""

    @property
    def last_widths(self) -> Widths:
        return self.schedule.target if self.prunes else self.first_widths

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def teacher_parts(self) -> int:
        """Ranks that a teacher in pieces lies on."""
        return placement.parts(self.placement, self.ranks, self.ranks_per_node)

    @property
    def bus(self) -> float:
        """Bytes per second of a collective over all ranks."""
        own = self.device.bus
        return own if self.nodes == 1 else min(own, network_bus(self.ranks_per_node, self.gbits))

    @property
    def stage(self) -> int:
        return ds_config.zero_stage(self.machine)

    def zero(self, key: str, default: Any) -> Any:
        """A value of the file's zero_optimization block."""
        return self.machine.get("zero_optimization", {}).get(key, default)

    @property
    def offloads(self) -> bool:
        """Whether Adam's states lie in host memory that is not the device's own."""
        return ds_config.offloads(self.machine) and not self.device.keeps_freed

    @property
    def offloads_parameters(self) -> bool:
        """Whether weights lie there too."""
        return ds_config.offloads_parameters(self.machine) and not self.device.keeps_freed

    @property
    def weight_bytes(self) -> int:
        return WEIGHT_BYTES[ds_config.precision(self.machine)]

    @property
    def computed_bytes(self) -> int:
        """Bytes of an activation."""
        return 4 if ds_config.precision(self.machine) == "fp32" else 2

    @property
    def micro_batch(self) -> int:
        """Sequences of one rank at a time."""
        return ds_config.micro_batch(self.machine)

    @property
    def accumulation(self) -> int:
        return int(self.machine["gradient_accumulation_steps"])

    @property
    def tokens(self) -> int:
        """Of a micro batch."""
        return self.micro_batch * self.config.sequence_length

    @property
    def predicted(self) -> int:
        """Positions of a micro batch whose logits are computed."""
        return round(self.tokens * self.predicted_share)

    @property
    def predicted_share(self) -> float:
        length = self.config.sequence_length
        return share_for(self.plan.family.language_model, self.config.mask_probability, length)

    @property
    def with_teacher(self) -> bool:
        return self.config.method != "pretrain"

    @property
    def runs_teacher(self) -> bool:
        """Whether the teacher's body runs; its head does with any teacher."""
        return self.with_teacher and not self.cached

    @property
    def teacher_in_pieces(self) -> bool:
        """Whether its forward pass gathers it, module by module."""
        return self.runs_teacher and self.placement != "replicated"

    @property
    def offloads_teacher(self) -> bool:
        return self.runs_teacher and self.placement == "cpu_offload"

    @property
    def prunes(self) -> bool:
        return self.with_teacher and self.config.student.init == "teacher"

    @cached_property
    def objective(self) -> Objective:
        tiled = in_tiles(self.plan.family, self.config.sequence_length)
        return Objective(self.config.loss, with_teacher=self.with_teacher, parted=self.parted, tiled=tiled)

    @property
    def parted(self) -> int:
        """The vocabulary's size where the logits of a micro batch are too many to be there at once; else 0."""
        most = ds_config.largest_micro_batch(self.machine, self.later)
        return parted_by(self.predicted // self.micro_batch * most, self.plan.fixed["vocab"])

    @property
    def rows(self) -> int:
        """Positions whose logits are there at one time."""
        if self.objective.logits == "logits":
            return self.predicted
        return min(self.predicted, rows_at_once(self.predicted, self.plan.fixed["vocab"]))

    def trained(self, widths: Widths) -> Parameters:
        """What a student of these widths trains, its projections to the teacher's states too."""
        yield from ((f"{TRAINED_PREFIX}{name}", shape) for name, shape in shapes(self.student_plan, widths))
        for read in ("hidden", "embedding"):
            if self.with_teacher and read in self.objective.student_reads():
                yield f"projections.{read}.weight", (self.plan.full.hidden, widths.hidden)

    def taught(self) -> Parameters:
        """The teacher's parameters that are there; its head's bias and the like are not counted with a cache."""
        if self.runs_teacher:
            return shapes(self.plan, self.plan.full)
        return [vocabulary_matrix(self.plan, self.plan.full)] if self.with_teacher else ()

    def flops(self, widths: Widths) -> float:
        """Per token of one step at these physical widths."""
        return sum(self.flop_parts(widths).values())

    def flop_parts(self, widths: Widths) -> Mapping[str, float]:
        """The terms of `flops`: teacher, body, head, projections, maps and tables of positions."""
        tables = FORWARD_AND_BACKWARD * table_flops(self.student_plan, widths)
        tables += FORWARD * table_flops(self.plan, self.plan.full) * self.runs_teacher
        parts = step_parts(
            self.student_plan,
            widths,
            sequence_length=self.config.sequence_length,
            predicted_share=self.predicted_share,
            reads=self.objective.student_reads(),
            teacher_reads=self.objective.teacher_reads() if self.with_teacher else None,
            teacher_plan=self.plan,
            tiled_layers=self.objective.tiled_layers(self.student_plan.layers),
        )
        spared = FORWARD * body_flops(self.plan, self.plan.full, self.config.sequence_length, self.predicted_share)
        return {**parts, "teacher": parts["teacher"] - spared * self.cached, "tables": tables / self.tokens}


def job_of(
    config: RunConfig,
    machine: Machine,
    *,
    nodes: int,
    ranks_per_node: int,
    device: Device,
    gbits: float = NETWORK_GBITS,
) -> Job:
    """The run `config` on so many ranks. Raises HomodistilError for what a start of the run would refuse before it
    loads anything, and for a method that is not planned."""
    if config.method not in PLANNED:
        raise HomodistilError(
            "CFG-PLAN", f"--plan of method {config.method}", f"Plans are made for {' and '.join(PLANNED)}."
        )
    ranks, on_gpu = nodes * ranks_per_node, not device.keeps_freed
    first, later = (
        None if values is None else ds_config.with_batch_sizes(values, config.global_batch_size, ranks)
        for values in (machine.ds_config, machine.ds_config_after_cuts)
    )
    assert first is not None
    for values in filter(None, (first, later)):
        check_zero(values)
    ds_config.check_one_precision(first, later)
    if config.method == "homodistil":
        check_cache(config, machine.teacher_cache)
    way = descent_of(config, first, later)
    placed = placement_of(
        config.method,
        machine.teacher_placement,
        way.plan,
        first,
        count(way.student_plan, way.first_widths).with_head,
        device.memory - device.framework,
        ranks,
        ranks_per_node,
        on_gpu,
    )[0]
    places: dict[str, Any] = {"nodes": nodes, "ranks_per_node": ranks_per_node, "device": device, "gbits": gbits}
    job = job_along(config, way, first, later, placement=placed, **places)
    if not job.prunes:
        return job
    cuts = place_cuts(way.schedule, way.student_plan, config.cuts, config.steps, job.flops)
    return replace(job, milestones=cuts)


def job_along(
    config: RunConfig, way: Descent, first: dict[str, Any], later: dict[str, Any] | None, **where: Any
) -> Job:
    """The run that goes this `way` under these configurations; `where` are the other fields of a Job. Without cuts."""
    return Job(
        config=config,
        plan=way.plan,
        student_plan=way.student_plan,
        schedule=way.schedule,
        first_widths=way.first_widths,
        machine=first,
        later=later,
        **where,
    )


def trained_bytes(machine: dict[str, Any], size: int, ranks: int, on_gpu: bool) -> int:
    """Memory per rank to train `size` parameters under a DeepSpeed configuration, without activations."""
    stage, precision = ds_config.zero_stage(machine), ds_config.precision(machine)
    return memory.student_bytes(size, stage, ranks, precision, on_gpu and ds_config.offloads(machine))


def placement_of(
    method: str,
    asked: str,
    plan: WidthPlan,
    machine: dict[str, Any],
    trained: int,
    available: int,
    ranks: int,
    ranks_per_node: int,
    on_gpu: bool,
) -> tuple[str, str]:
    """Where the teacher goes, and the sizes behind it as a line. A model to train goes where its stage says.

    Raises HomodistilError for pieces of a teacher that is not read in pieces.
    """
    if plan.family.fused and method != "pretrain" and asked not in ("auto", "replicated"):
        raise HomodistilError(
            "CFG-PLACEMENT",
            f"--teacher_placement {asked}: a {plan.family.model_type}'s matrices are fused, and not read in pieces",
            "Use --teacher_placement replicated.",
        )
    if plan.family.fused and (asked == "auto" or method == "pretrain"):
        return "replicated", ""
    if method == "pretrain":
        return ("zero3" if ds_config.zero_stage(machine) == 3 else "replicated"), ""
    sizes = placement.Sizes(
        teacher_bytes=count(plan, plan.full).with_head * WEIGHT_BYTES[ds_config.precision(machine)],
        student_bytes=trained_bytes(machine, trained, ranks, on_gpu),
        available_bytes=available,
        world_size=ranks,
        ranks_per_node=ranks_per_node,
        on_gpu=on_gpu,
    )
    placed = placement.choose(asked, sizes)
    return placed, placement.explain(asked, placed, sizes)


def shapes(plan: WidthPlan, widths: Widths) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, row in plan.parameters():
        yield name, tuple(plan.size(axis, widths) for axis in row.axes)


def vocabulary_matrix(plan: WidthPlan, widths: Widths) -> tuple[str, tuple[int, ...]]:
    """Name and shape of the matrix that makes logits, the embedding's own where they are tied."""
    parameters = dict(shapes(plan, widths))
    if UNTIED in parameters:
        return UNTIED, parameters[UNTIED]
    vocabulary = plan.fixed["vocab"]
    return next((name, shape) for name, shape in parameters.items() if shape[:1] == (vocabulary,) and len(shape) > 1)


def entries(parameters: Parameters) -> int:
    return sum(math.prod(shape) for _, shape in parameters)
