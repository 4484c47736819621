"""Masked-language-model training without a teacher: builds or corrects a model that later teaches."""

from __future__ import annotations

from typing import Any

from homodistil_ds.config import RunConfig
from homodistil_ds.distillation.objective import Objective
from homodistil_ds.methods.finish import finish
from homodistil_ds.methods.setting import claim, prepare_setting
from homodistil_ds.models.forward import Student
from homodistil_ds.models.loading import without_dropout
from homodistil_ds.runtime import checkpoint, engine
from homodistil_ds.stage import Stage


def run(config: RunConfig, machine: dict[str, Any], command: str) -> None:
    """Train the model named by --teacher on the corpus; a missing vocabulary head starts as the identity."""
    setting = prepare_setting(config, machine, command, head_may_be_missing=True)
    objective = Objective(config.loss, with_teacher=False)
    plan = setting.plan
    model = without_dropout(setting.source).train()
    student = Student(model, plan.family, objective.student_reads(), teacher_hidden=plan.full.hidden)
    trained = engine.initialize(
        student, config.optimizer, config.learning_rate, setting.ds_config, setting.monitor.line
    )
    stage = Stage(
        config=config,
        engine=trained,
        plan=plan,
        teacher=None,
        objective=objective,
        batches=setting.batches,
        monitor=setting.monitor,
        pruner=None,
        fixed_widths=plan.full,
        save=lambda step: checkpoint.save(trained, setting.run_dir / "checkpoints", step, {"step": step}),
    )
    claim(setting)
    stage.run()
    finish(setting, stage, with_teacher=False)
