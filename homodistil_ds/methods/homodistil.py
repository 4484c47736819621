"""Homotopic distillation: the student starts as the teacher and is pruned a little at a time while it is distilled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from homodistil_ds.config import RunConfig
from homodistil_ds.distillation.objective import Objective
from homodistil_ds.evaluation.heldout import measure_on
from homodistil_ds.machine import Machine
from homodistil_ds.methods import family
from homodistil_ds.methods.assistant import with_assistant
from homodistil_ds.methods.caching import cached_teacher
from homodistil_ds.methods.finish import finish
from homodistil_ds.methods.placing import blank_student, placed_teacher, student_from
from homodistil_ds.methods.running import saved, start_from, train
from homodistil_ds.methods.setting import Setting, prepare_setting
from homodistil_ds.models.forward import Student
from homodistil_ds.models.loading import empty_model
from homodistil_ds.models.width import Widths
from homodistil_ds.planning.descent import check_cache
from homodistil_ds.pruning.milestones import Milestone, place_cuts, relative_cost
from homodistil_ds.pruning.pruner import Pruner
from homodistil_ds.runtime.engine import Engine
from homodistil_ds.stage import Stage


def run(config: RunConfig, machine: Machine, command: str) -> None:
    """One descent, or two: with --assistant a student that the first one leaves behind teaches in the second."""
    with_assistant(config, machine, command, descend)


def descend(config: RunConfig, machine: Machine, command: str, within: Path | None = None) -> None:
    """Prune and distil down to the target widths by `pruning.end`, distil on to the end, save a plain student.

    At the milestones masked neurons leave the running engine.
    """
    check_cache(config, machine.teacher_cache)
    setting = prepare_setting(config, machine, command, head_may_be_missing=False, within=within)
    objective = setting.job.objective
    plan = setting.student_plan
    prunes = config.student.init == "teacher"
    pruner = Pruner(plan, setting.schedule, config.pruning.criterion, config.pruning.beta) if prunes else None

    def build(widths: Widths) -> Engine:
        """An engine around a student of no particular weights."""
        model = blank_student(setting, widths) if prunes else empty_model(setting.student_like, plan, widths)
        return setting.engine_around(student_of(model, setting, objective), widths)

    def first() -> Engine:
        torch.manual_seed(config.seed)
        widths = plan.full if prunes else setting.target
        model = student_from(setting) if prunes else empty_model(setting.student_like, plan, widths)
        return setting.engine_around(student_of(model, setting, objective), widths)

    engine = start_from(setting, pruner, build, first)
    cache = cached_teacher(setting, Path(machine.teacher_cache)) if machine.teacher_cache else None
    teacher = cache or placed_teacher(setting, objective.teacher_reads())
    batches = replace(setting.batches, numbered=cache is not None)

    def save(step: int) -> Path:
        """A checkpoint; the cache first, so that what is done with is never lacking after it."""
        if cache is not None:
            cache.keep()
        return saved(setting, stage, step)

    stage = Stage(
        config=config,
        engine=engine,
        plan=plan,
        teacher=teacher,
        objective=objective,
        batches=batches.split_by(engine.train_micro_batch_size_per_gpu()),
        measure=measure_on(batches, setting.job.parted),
        monitor=setting.monitor,
        pruner=pruner,
        build=build,
        save=save,
        watchdog=setting.watchdog(),
        fixed_widths=setting.target,
        leaves=family.leaves(setting),
        leave=lambda step: family.leave(setting, stage, step),
        milestones={cut.step: cut.widths for cut in milestones(setting)} if prunes else {},
        head_origins=[torch.arange(setting.target.heads)] * plan.layers,
        layer_map=setting.layer_map if plan.layers < setting.plan.layers else (),
    )
    family.bring(setting)
    train(setting, stage)
    finish(setting, stage)


def student_of(model: PreTrainedModel, setting: Setting, objective: Objective) -> Student:
    reads, plan = objective.student_reads(), setting.plan
    return Student(model.requires_grad_(True), plan.family, reads, teacher_hidden=plan.full.hidden)


def milestones(setting: Setting) -> tuple[Milestone, ...]:
    """The cuts that make this run cheapest; says so in a line."""
    config, plan, cost = setting.config, setting.student_plan, setting.job.flops
    cuts = place_cuts(setting.schedule, plan, config.cuts, config.steps, cost)
    for cut in cuts:
        setting.ds_config_for(cut.widths)  # now, not in the middle of the run: it may read the teacher's configuration
    if cuts:
        share = relative_cost(cuts, plan.full, config.steps, cost)
        places = ", ".join(f"{cut.widths} at {cut.step}" for cut in cuts)
        setting.monitor.line(f"cuts: {places}; {share:.2f} of the FLOPs of the same run without cuts")
    return cuts
