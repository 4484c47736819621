"""Task-specific MiniDisc (EACL 2024): nested students learn a task together, one may teach the smaller ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from homodistil_ds.config import RunConfig
from homodistil_ds.data.glue import task_named
from homodistil_ds.data.glue_files import read_split
from homodistil_ds.distillation.losses import Inputs
from homodistil_ds.distillation.objective import Objective
from homodistil_ds.errors import HomodistilError
from homodistil_ds.evaluation import figures
from homodistil_ds.evaluation.glue_metrics import primary_score
from homodistil_ds.evaluation.heldout import Forward
from homodistil_ds.evaluation.task_report import TaskMember, TaskReport
from homodistil_ds.evaluation.tasks import measure_on
from homodistil_ds.machine import Machine
from homodistil_ds.methods.assistant import with_assistant
from homodistil_ds.methods.family import FOLDER
from homodistil_ds.methods.learning import (
    Scores,
    build_report,
    in_float32,
    parameters_of,
    predictions_of,
    save,
    scores_of,
    warn_of_chance,
    write,
)
from homodistil_ds.methods.opening import say
from homodistil_ds.methods.running import fill, saved, start_from, train
from homodistil_ds.methods.start import hold
from homodistil_ds.methods.task_setting import TaskSetting, prepare_task
from homodistil_ds.models.forward import Teacher
from homodistil_ds.models.loading import empty_model, read_plan, stored_dtype, with_dropout, without_dropout
from homodistil_ds.models.tasks import knows_a_task, load_classifier, task_forward, task_plan
from homodistil_ds.models.width import WidthPlan, Widths
from homodistil_ds.planning.descent import family_of
from homodistil_ds.pruning.family import Member, trade_off
from homodistil_ds.pruning.gates import Gates, descending, digests
from homodistil_ds.pruning.sandwich import Sandwich, first_indices
from homodistil_ds.pruning.shrink import cut, export
from homodistil_ds.runtime import claim, ranks
from homodistil_ds.runtime.engine import Engine, dispose, read_at_once
from homodistil_ds.runtime.pace import Spent
from homodistil_ds.runtime.rounding import in_format, rounded_to
from homodistil_ds.runtime.shards import full_weights
from homodistil_ds.stage import Stage
from homodistil_ds.task_config import TaskLossConfig

RANKED_ON = 64  # batches whose gradients rank the neurons
HELD_OUT_SHARE = 0.1  # of the training examples that chooses the assistant, unless the run names one


def run(config: RunConfig, machine: Machine, command: str) -> None:
    """The teacher's family; with --assistant it is a trial, judged on held-out training examples."""
    ranks.together(lambda: check_teacher(config))
    held_out = config.task.held_out or HELD_OUT_SHARE
    trial = replace(config.task, held_out=held_out, predict=False)
    if config.assistant != "none":  # what chose the assistant is not to judge its student, which may learn from it
        config = replace(config, task=replace(config.task, held_out=0.0))
        ranks.together(lambda: check_splits(config))
    with_assistant(config, machine, command, descend, model=config.teacher, task=trial, save_student=True)


def check_splits(config: RunConfig) -> None:
    """What will judge the assistant's students is there before a trial is paid for. Raises HomodistilError."""
    task = task_named(config.task.name)
    for split in task.evaluation:
        read_split(config.task.data, task, split)


def check_teacher(config: RunConfig) -> None:
    """It knows this task, and no other model is to learn it. Raises HomodistilError."""
    if config.model not in (RunConfig.model, config.teacher):
        raise HomodistilError(
            "CFG-FLAG",
            f"--model {config.model} with --method minidisc, whose students are cut out of --teacher {config.teacher}",
            "Leave --model out.",
        )
    task = config.task.name
    classes = task_named(task).classes
    if not knows_a_task(config.teacher):
        raise HomodistilError(
            "DATA-NO-TASK",
            f"--teacher {config.teacher} has not learnt a task: its students would learn {task} from a head of chance",
            f"Let it learn {task} first: --preset finetune --model {config.teacher} --task.name {task}; "
            "its student/ is the teacher.",
        )
    load_classifier(config.teacher, classes, "--teacher")
    family = read_plan(config.teacher).family
    if not any("qk" in row.axes for row in family.rows):
        raise HomodistilError(
            "CFG-FAMILY",
            f"--teacher {config.teacher} is a {family.model_type}, whose heads keep their size: nested students "
            "need smaller ones",
            "Use another family, or distil one student after the other (--preset task_kd).",
        )


def descend(config: RunConfig, machine: Machine, command: str, within: Path | None) -> None:
    """Rank the teacher's neurons, nest the students, train them together, save them all."""
    plan = ranks.together(lambda: read_plan(config.teacher, only="masked"))
    members = ranks.together(lambda: family_of(config, plan))
    setting = prepare_task(replace(config, model=config.teacher), machine, command, within)
    if within is not None:
        ranks.on_first(lambda: hold(within, say))
    plan, source = task_plan(setting.model.config), without_dropout(setting.model).eval()
    its = scores_of(setting, in_float32(source, plan))
    warn_of_chance(setting, its)
    ranked = Spent()
    ranked.begin()
    order = order_of(setting, source, plan)
    ranked.lap()
    source.cpu()
    ordered, stored = cut(source, plan, plan.full, order).eval(), members[0].widths
    objective = Objective(setting.config.task_loss, with_teacher=True)

    def build(widths: Widths) -> Engine:
        torch.manual_seed(setting.config.seed)
        model = cut(ordered, plan, widths, first_indices(plan, plan.full, widths))
        model = with_dropout(model, setting.config.task.dropout).train().requires_grad_(True)
        nested = Sandwich(
            model,
            plan,
            widths,
            [member.widths for member in members],
            objective.student_reads(),
            plan.full.hidden,
            task_forward,
            setting.config.task.dropout,
        )
        return setting.engine_of(read_at_once(nested), for_all(setting.ds_config, len(members)))

    engine = start_from(setting, None, build, lambda: build(stored))
    teacher = Teacher(ordered, plan.family, objective.teacher_reads(), run=task_forward)
    stage = Stage(
        config=setting.config,
        engine=engine,
        plan=plan,
        teacher=in_format(teacher.to(ranks.device()), setting.train_dtype),
        objective=objective,
        batches=setting.batches,
        measure=measure_all(setting, members),
        monitor=setting.monitor,
        pruner=None,
        build=build,
        save=lambda step: saved(setting, stage, step, order),
        watchdog=setting.watchdog(),
        fixed_widths=stored,
        runs=tuple({"member": place} for place in range(len(members))),
        ranked=ranked,
    )
    train(setting, stage)
    finish(setting, stage, members, its)


def for_all(machine: dict[str, Any], students: int) -> dict[str, Any]:
    """One optimizer step after every student's backward pass of every micro batch: the mean over students (M4)."""
    return {
        **machine,
        "train_batch_size": machine["train_batch_size"] * students,
        "gradient_accumulation_steps": machine["gradient_accumulation_steps"] * students,
    }


def order_of(setting: TaskSetting, source: PreTrainedModel, plan: WidthPlan) -> dict[str, torch.Tensor]:
    """Group -> the teacher's neurons from the most to the least valuable to the task's loss (M3), on training examples.

    A run that goes on has the order it began with. Raises HomodistilError if ranks differ.
    """
    if setting.checkpoint is not None:
        return ranks.together(setting.checkpoint.tensors)
    gates, objective, forward = Gates(plan), Objective(TaskLossConfig(), with_teacher=False), in_float32(source, plan)
    model = source.requires_grad_(True)
    for step in range(1, min(RANKED_ON, setting.config.steps) + 1):
        model.zero_grad(set_to_none=True)
        batches = list(setting.batches.micro_batches(step))
        for batch in (batch.to(ranks.device()) for batch in batches):
            own = forward(*batch.shown)
            loss, _ = objective(Inputs(student=own, teacher=own, labels=batch.labels, pairs=batch.pairs))
            (loss / len(batches)).backward()
        gates.add(model)
    model.zero_grad(set_to_none=True)
    model.requires_grad_(False)
    order = descending(plan, gates.values())
    if (difference := ranks.differing(digests(order))) is not None:
        group, others = difference
        raise HomodistilError(
            "DIST-MASKS-DIFFER",
            f"the order of the neurons of group '{group}' differs from rank 0's on ranks {others}",
            "A rank computed with other data or broken memory: start again, without the node of those ranks.",
        )
    return order


def measure_all(
    setting: TaskSetting, members: Sequence[Member]
) -> Callable[[Forward, Forward | None], dict[str, float]]:
    """`measure` of the stage: score and trade-off of every student."""
    each = measure_on(setting.data.task, setting.data.evaluation, setting.batches.pad_id)

    def measure(students: Forward, teacher: Forward | None) -> dict[str, float]:
        found = {}
        for place, member in enumerate(members):
            score = each(partial(students, member=place), None)["score"]
            found[f"score/{member.name}"] = score
            found[f"trade_off/{member.name}"] = trade_off(score, member.kept, setting.config.trade_off)
        return found

    return measure


def finish(setting: TaskSetting, stage: Stage, members: Sequence[Member], its: Scores) -> None:
    """Write students/, student/, predictions/, figures/, report.md and report.json. All ranks call it."""
    seconds = time.perf_counter() - setting.started
    weights, zero_stage = full_weights(stage.engine), stage.engine.zero_optimization_stage()
    dispose(stage.engine)
    stage.teacher = None
    nested = empty_model(setting.model, stage.plan, stage.fixed_widths, random=False)
    fill(nested, weights)
    dtype = stored_dtype(setting.config.teacher, setting.config.student.dtype)
    models, scores = [], []
    for member in members:
        indices = first_indices(stage.plan, stage.fixed_widths, member.widths)
        model = export(nested, stage.plan, member.widths, indices)
        rounded_to(model, dtype)
        scores.append(scores_of(setting, in_float32(model, stage.plan)))
        models.append(model)
    own = in_float32(models[-1], stage.plan)
    tests = {split: predictions_of(setting, own, examples) for split, examples in setting.data.tests.items()}
    report = build_report(setting, stage, parameters_of(models[-1]), scores[-1], its, seconds, zero_stage)
    report = replace(report, family=list(rows(setting, members, models, scores)))
    ranks.on_first(lambda: write_all(setting, report, models, scores, tests))
    setting.monitor.close()


def rows(
    setting: TaskSetting, members: Sequence[Member], models: Sequence[PreTrainedModel], scores: Sequence[Scores]
) -> Iterator[TaskMember]:
    for member, model, found in zip(members, models, scores, strict=True):
        score = primary_score(setting.data.task, found)
        yield TaskMember(
            scale=member.scale,
            kept=member.kept,
            widths=vars(member.widths),
            parameters=parameters_of(model),
            score=score,
            trade_off=trade_off(score, member.kept, setting.config.trade_off),
            folder="student" if member is members[-1] else f"{FOLDER}/{member.name}",
        )


def write_all(
    setting: TaskSetting,
    report: TaskReport,
    models: Sequence[PreTrainedModel],
    scores: Sequence[Scores],
    tests: dict[str, torch.Tensor],
) -> None:
    """On rank 0; report.json comes last."""
    claim.check(setting.run_dir)
    if setting.config.save_student:
        for row, model, found in zip(report.family[:-1], models, scores, strict=False):
            own = replace(
                report, name=f"{report.name} {row.scale:g}", parameters=row.parameters, metrics=found, primary=row.score
            )
            save(setting, own, model.cpu(), setting.run_dir / row.folder)
    (setting.run_dir / "figures").mkdir(exist_ok=True)
    figures.members_curve(report.family, report.history).savefig(setting.run_dir / "figures" / "family.png")
    write(setting, report, models[-1].cpu(), tests)
