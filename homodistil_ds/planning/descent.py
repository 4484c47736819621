"""What a run goes through, from its configuration and its teacher's alone: tables, sizes to reach, the way down."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from homodistil_ds.config import RunConfig
from homodistil_ds.distillation.attention_maps import in_tiles
from homodistil_ds.distillation.objective import Objective, check_losses
from homodistil_ds.errors import HomodistilError
from homodistil_ds.models.depth import check_depth, layer_map, shallower
from homodistil_ds.models.families import target_widths
from homodistil_ds.models.forward import Read
from homodistil_ds.models.loading import read_plan
from homodistil_ds.models.width import WidthPlan, Widths
from homodistil_ds.pruning.family import Member, members_of, scale_of
from homodistil_ds.pruning.schedule import WidthSchedule
from homodistil_ds.runtime import ds_config


@dataclass(frozen=True, kw_only=True)
class Descent:
    """`plan` is the teacher's table, `first_widths` what a student begins at.

    `members` are the students that the run leaves behind, the last of them at its `target`; `schedule` passes them.
    `student_plan` is the table of a student that has the layers of `layer_map` alone.
    """

    plan: WidthPlan
    first_widths: Widths
    members: tuple[Member, ...]
    schedule: WidthSchedule
    layer_map: tuple[int, ...]
    student_plan: WidthPlan

    @property
    def target(self) -> Widths:
        return self.members[-1].widths


def descent_of(config: RunConfig, *machines: dict[str, Any] | None) -> Descent:
    """Reads the teacher's configuration. `machines` are the DeepSpeed configurations of the run.

    Raises HomodistilError for everything about sizes and losses that a user can get wrong.
    """
    plan = read_plan(config.teacher)
    student = config.student
    members = family_of(config, plan)
    schedule = schedule_of(config, plan, members)
    check_length(config, plan)
    check_depth(plan, student.num_hidden_layers)
    layers = layer_map(plan.layers, student.num_hidden_layers, student.layers)
    target = members[-1].widths
    pruned = student.init == "teacher" and target != plan.full
    check_losses(config.loss, target, plan.full, pruned, plan.family)
    tiled = in_tiles(plan.family, config.sequence_length)
    reads = Objective(config.loss, with_teacher=config.method != "pretrain", tiled=tiled).student_reads()
    for machine in machines:
        if machine is not None and ds_config.recomputes(machine):
            check_recomputed(reads, sharded=ds_config.zero_stage(machine) == 3)
    return Descent(
        plan=plan,
        first_widths=target if student.init == "random" else plan.full,
        members=members,
        schedule=schedule,
        layer_map=layers,
        student_plan=shallower(plan, layers),
    )


def check_cache(config: RunConfig, folder: str) -> None:
    """Raises HomodistilError for a cache in a run whose losses read more of the teacher, or nothing, of its logits."""
    objective = Objective(config.loss, with_teacher=True)
    reads = objective.teacher_reads()
    if not folder or reads == {"logits"}:
        return
    more = ", ".join(sorted(reads - {"logits"}))
    raise HomodistilError(
        "CFG-CACHE",
        "--teacher_cache holds what the teacher's logits are made of, and the losses of this run read "
        + (f"its {more} too" if more else "nothing of the teacher"),
        "Use --preset logit, or set the other weights to 0: --loss.hidden 0 --loss.attention 0 --loss.embedding 0."
        if more
        else "Leave --teacher_cache out.",
    )


def check_recomputed(reads: Collection[Read], sharded: bool) -> None:
    """Raises HomodistilError for what a layer run once more under ZeRO-3 would hand to the losses without gradients."""
    if sharded and (lost := lost_by_recomputing(reads)):
        raise HomodistilError(
            "CFG-RECOMPUTE",
            f"activation_checkpointing at ZeRO stage 3, and losses that read {', '.join(lost)} inside the layers",
            "Use stage 1 or 2, leave that block out, or set those losses (--loss.attention, .scores, ...) to 0.",
        )


def lost_by_recomputing(reads: Collection[Read]) -> list[str]:
    """What losses read inside the layers, which has no gradient where sharded layers run once more."""
    return sorted({"attention", "queries", "keys", "values"} & set(reads))


def family_of(config: RunConfig, plan: WidthPlan) -> tuple[Member, ...]:
    """The students of a run, the largest first; one without --family. Raises HomodistilError."""
    student = config.student
    sizes = (student.hidden_size, student.intermediate_size, student.num_attention_heads)
    target = target_widths(plan, *sizes)
    scale = scale_of(plan, target)
    if not config.family:
        return (Member(scale=scale, kept=scale, widths=target),)
    reference = read_plan(config.scales_of, flag="--scales_of") if config.scales_of else plan
    members = members_of(reference, config.family, within=plan.full)
    if any(size is not None for size in sizes) and members[-1].widths != target:
        side = "above" if members[-1].scale > scale else "below"
        raise HomodistilError(
            "CFG-SCALE",
            f"--family ends at {members[-1].name}, {members[-1].widths}, {side} the target of the --student flags, "
            f"{target}, scale {scale:.3g}",
            "Leave the --student sizes out: the last scale sets them.",
        )
    return members


def schedule_of(config: RunConfig, plan: WidthPlan, members: Sequence[Member]) -> WidthSchedule:
    """The way down through all members, in steps; it never ends before the first one. Raises HomodistilError."""
    return WidthSchedule(
        full=plan.full,
        target=members[-1].widths,
        start=round(config.pruning.start * config.steps),
        end=max(1, round(config.pruning.end * config.steps)),
        interval=config.pruning.interval,
        stops=tuple(member.widths for member in members[:-1]),
        rest=round(config.pruning.rest * config.steps),
    )


def check_length(config: RunConfig, plan: WidthPlan) -> None:
    """Raises HomodistilError for rows longer than the model of this table knows positions."""
    if config.sequence_length > plan.positions:
        raise HomodistilError(
            "CFG-LENGTH",
            f"--sequence_length {config.sequence_length}, but the model knows {plan.positions} positions",
            f"Use {plan.positions} or less.",
        )
