"""A model learns a task of GLUE from a teacher that knows it: MixKD (ICLR 2021), plain distillation, PKD."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from homodistil_ds.config import RunConfig, StudentConfig
from homodistil_ds.data.corpus import vocabulary
from homodistil_ds.data.glue import task_named
from homodistil_ds.errors import HomodistilError
from homodistil_ds.machine import Machine
from homodistil_ds.methods.learning import learn
from homodistil_ds.methods.opening import say
from homodistil_ds.methods.parts import complete_first
from homodistil_ds.methods.start import hold
from homodistil_ds.methods.task_setting import prepare_task
from homodistil_ds.models.depth import layer_map
from homodistil_ds.models.families import plan_for
from homodistil_ds.models.tasks import knows_a_task, load_classifier
from homodistil_ds.models.width import WidthPlan
from homodistil_ds.planning.descent import check_length
from homodistil_ds.runtime import ranks
from homodistil_ds.task_config import TaskLossConfig

TEACHER = "teacher"  # folder of the run in which the teacher learns the task


def run(config: RunConfig, machine: Machine, command: str) -> None:
    """The teacher learns the task first, unless it knows it; then --model learns from it (X5)."""
    teacher, whole = config.teacher, Path(config.output_dir)
    # Before hours go into a teacher that the student could not learn from.
    ranks.together(lambda: check_pair(config))
    if not ranks.together(lambda: knows_a_task(config.teacher)):
        own = teaching(config)
        machine = complete_first(own, machine, whole, lambda its: teach(config, own, its, command))
        teacher = str(whole / TEACHER / "student")
    setting = prepare_task(config, machine, command)
    source, _ = ranks.together(lambda: load_classifier(teacher, setting.data.task.classes, "--teacher"))
    learn(setting, source, plan_for(source.config))


def teaching(config: RunConfig) -> RunConfig:
    """A finetune run of the teacher inside the run directory."""
    return replace(
        config,
        method="finetune",
        model=config.teacher,
        output_dir=str(Path(config.output_dir) / TEACHER),
        save_student=True,
        student=StudentConfig(),
        task=replace(config.task, predict=False),
        task_loss=TaskLossConfig(),
    )


def teach(config: RunConfig, own: RunConfig, machine: Machine, command: str) -> None:
    whole = Path(config.output_dir)
    setting = prepare_task(own, machine, command, within=whole)
    line = f"the teacher {config.teacher} does not know {config.task.name} yet: it learns it first, in {own.output_dir}"
    setting.monitor.line(line)
    # The whole run is under way from here on: it says how it ended, and keeps others out.
    ranks.on_first(lambda: hold(whole, say))
    learn(setting)


def check_pair(config: RunConfig) -> None:
    """Both can be loaded for the task and read its rows. Raises HomodistilError."""
    classes = task_named(config.task.name).classes
    model, own = load_classifier(config.model, classes)
    source, its = load_classifier(config.teacher, classes, "--teacher")
    check_vocabulary(config, own, its)
    plans = plan_for(model.config), plan_for(source.config)
    for plan in plans:
        check_length(config, plan)
    layer_map(plans[1].layers, plans[0].layers, config.student.layers)
    if config.task_loss.patience > 0:
        check_patience(config, *plans)


def check_patience(config: RunConfig, own: WidthPlan, its: WidthPlan) -> None:
    """(B6) has states of one width on both sides, and nothing trained between them."""
    if own.layers < 2:
        raise HomodistilError(
            "CFG-LOSS",
            f"--task_loss.patience compares all layers but the last, and --model {config.model} has one",
            "Set --task_loss.patience 0, or give a model of two layers or more.",
        )
    if own.full.hidden != its.full.hidden:
        raise HomodistilError(
            "CFG-LOSS",
            f"--task_loss.patience compares states of one width, and --model {config.model} has {own.full.hidden}, "
            f"--teacher {config.teacher} {its.full.hidden}",
            "Set --task_loss.patience 0, or give a model of the teacher's hidden size, such as its first layers.",
        )


def check_vocabulary(config: RunConfig, own: PreTrainedTokenizerBase, its: PreTrainedTokenizerBase) -> None:
    """Teacher and student read the same ids."""
    if vocabulary(own) != vocabulary(its):
        raise HomodistilError(
            "DATA-VOCABULARY",
            f"--model {config.model} and --teacher {config.teacher} have different vocabularies",
            "Both read the same token ids: use a teacher and a model with one tokenizer.",
        )
