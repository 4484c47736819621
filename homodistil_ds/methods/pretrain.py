"""Training of a language model without a teacher: builds or corrects one that later teaches."""

from __future__ import annotations

from homodistil_ds.config import RunConfig
from homodistil_ds.evaluation.heldout import measure_on
from homodistil_ds.machine import Machine
from homodistil_ds.methods.finish import finish
from homodistil_ds.methods.placing import student_from
from homodistil_ds.methods.running import saved, start_from, train
from homodistil_ds.methods.setting import prepare_setting
from homodistil_ds.models.forward import Student
from homodistil_ds.models.width import Widths
from homodistil_ds.runtime.engine import Engine
from homodistil_ds.stage import Stage


def run(config: RunConfig, machine: Machine, command: str) -> None:
    """Train the model named by --teacher on the corpus; a missing vocabulary head starts as the identity."""
    setting = prepare_setting(config, machine, command, head_may_be_missing=True)
    objective = setting.job.objective
    plan = setting.plan

    def build(widths: Widths) -> Engine:
        model = student_from(setting, copied=False)
        student = Student(model, plan.family, objective.student_reads(), teacher_hidden=plan.full.hidden)
        return setting.engine_around(student, widths)

    engine = start_from(setting, None, build, lambda: build(plan.full))
    stage = Stage(
        config=config,
        engine=engine,
        plan=plan,
        teacher=None,
        objective=objective,
        batches=setting.batches,
        measure=measure_on(setting.batches, setting.job.parted),
        monitor=setting.monitor,
        pruner=None,
        build=build,
        save=lambda step: saved(setting, stage, step),
        watchdog=setting.watchdog(),
        fixed_widths=plan.full,
    )
    train(setting, stage)
    finish(setting, stage)
