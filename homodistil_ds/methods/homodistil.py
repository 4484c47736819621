"""Homotopic distillation: the student starts as the teacher and is pruned a little at a time while it is distilled."""

from __future__ import annotations

from typing import Any

import torch

from homodistil_ds.config import RunConfig
from homodistil_ds.distillation.objective import Objective
from homodistil_ds.methods.finish import finish
from homodistil_ds.methods.setting import Setting, claim, prepare_setting
from homodistil_ds.models.forward import Student, choose_attention
from homodistil_ds.models.loading import empty_model, twin, without_dropout
from homodistil_ds.pruning.pruner import Pruner
from homodistil_ds.pruning.schedule import WidthSchedule
from homodistil_ds.runtime import checkpoint, engine, ranks
from homodistil_ds.stage import Stage


def run(config: RunConfig, machine: dict[str, Any], command: str) -> None:
    """Prune and distil down to the target widths by `pruning.end`, distil on to the end, save a plain student."""
    setting = prepare_setting(config, machine, command, head_may_be_missing=False)
    objective = Objective(config.loss, with_teacher=True)
    plan = setting.plan
    teacher = without_dropout(setting.source).eval().requires_grad_(False)
    random_start = config.student.init == "random"
    choose_attention(teacher, objective.teacher_reads())
    torch.manual_seed(config.seed)
    model = empty_model(teacher, plan, setting.target) if random_start else twin(teacher, plan)
    model.requires_grad_(True)
    student = Student(model, plan.family, objective.student_reads(), teacher_hidden=plan.full.hidden)
    trained = engine.initialize(
        student, config.optimizer, config.learning_rate, setting.ds_config, setting.monitor.line
    )
    pruner = (
        None if random_start else Pruner(plan, width_schedule(setting), config.pruning.criterion, config.pruning.beta)
    )

    def save(step: int) -> None:
        state = {"step": step, "pruner": pruner.state_dict() if pruner else None}
        checkpoint.save(trained, setting.run_dir / "checkpoints", step, state)

    stage = Stage(
        config=config,
        engine=trained,
        plan=plan,
        teacher=teacher.to(ranks.device(), setting.train_dtype),
        objective=objective,
        batches=setting.batches,
        monitor=setting.monitor,
        pruner=pruner,
        save=save,
        fixed_widths=setting.target,
        head_origins=[torch.arange(setting.target.heads)] * plan.layers,
    )
    claim(setting)
    stage.run()
    finish(setting, stage, with_teacher=True)


def width_schedule(setting: Setting) -> WidthSchedule:
    """The run's schedule in steps; pruning never ends before the first step."""
    config = setting.config
    return WidthSchedule(
        full=setting.plan.full,
        target=setting.target,
        start=round(config.pruning.start * config.steps),
        end=max(1, round(config.pruning.end * config.steps)),
        interval=config.pruning.interval,
    )
