"""A stage that learns a task, with a teacher or without, and its end: scores, predictions, the trained folder."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from homodistil_ds.data.glue import write_predictions
from homodistil_ds.data.task_batches import Encoded, padded
from homodistil_ds.distillation.objective import Objective
from homodistil_ds.evaluation import proof
from homodistil_ds.evaluation.glue_metrics import primary_score
from homodistil_ds.evaluation.heldout import Forward
from homodistil_ds.evaluation.report import versions
from homodistil_ds.evaluation.task_report import TaskReport, score_table, task_card, write_task_report
from homodistil_ds.evaluation.tasks import best_constant, measure_on, predict, scores_on
from homodistil_ds.methods.running import fill, saved, start_from, train
from homodistil_ds.methods.task_setting import TaskSetting
from homodistil_ds.models.depth import layer_map
from homodistil_ds.models.forward import Student, Teacher
from homodistil_ds.models.loading import save_folder, stored_dtype, with_dropout, without_dropout
from homodistil_ds.models.pieces import unfilled
from homodistil_ds.models.tasks import task_forward
from homodistil_ds.models.width import WidthPlan, Widths
from homodistil_ds.runtime import claim, ds_config, ranks
from homodistil_ds.runtime.engine import Engine, dispose
from homodistil_ds.runtime.rounding import in_format, rounded_to
from homodistil_ds.runtime.shards import full_weights
from homodistil_ds.stage import Stage

Scores = dict[str, dict[str, float]]


def learn(setting: TaskSetting, source: PreTrainedModel | None = None, taught: WidthPlan | None = None) -> None:
    """Train the setting's model on its task, and finish the run. `source` is a teacher of the table `taught`."""
    config, plan = setting.config, setting.plan
    objective = Objective(config.task_loss, with_teacher=source is not None)
    taught = taught or plan

    def build(widths: Widths) -> Engine:
        torch.manual_seed(config.seed)
        model = with_dropout(setting.model, config.task.dropout).train().requires_grad_(True)
        student = Student(model, plan.family, objective.student_reads(), teacher_hidden=None, run=task_forward)
        return setting.engine_of(student, setting.ds_config)

    engine = start_from(setting, None, build, lambda: build(plan.full))
    teacher, its = None, None
    if source is not None:
        its = scores_of(setting, in_float32(without_dropout(source).eval(), taught))
        warn_of_chance(setting, its)
        teacher = Teacher(source, taught.family, objective.teacher_reads(), run=task_forward)
        in_format(teacher.to(ranks.device()), setting.train_dtype)
    stage = Stage(
        config=config,
        engine=engine,
        plan=plan,
        teacher=teacher,
        objective=objective,
        batches=setting.batches,
        measure=measure_on(setting.data.task, setting.data.evaluation, setting.batches.pad_id),
        monitor=setting.monitor,
        pruner=None,
        build=build,
        save=lambda step: saved(setting, stage, step),
        watchdog=setting.watchdog(),
        fixed_widths=plan.full,
        layer_map=layer_map(taught.layers, plan.layers, config.student.layers) if source is not None else (),
    )
    train(setting, stage)
    finish(setting, stage, its)


def finish(setting: TaskSetting, stage: Stage, its: Scores | None) -> None:
    """Write predictions/, report.json, report.md and, unless it is not wanted, student/. All ranks call it.

    `its` are the teacher's scores.
    """
    seconds = time.perf_counter() - setting.started
    weights, zero_stage = full_weights(stage.engine), stage.engine.zero_optimization_stage()
    dispose(stage.engine)
    stage.teacher = None
    model = unfilled(setting.model)
    fill(model, weights)
    # What is measured is what is saved.
    rounded_to(model, stored_dtype(setting.config.model, setting.config.student.dtype))
    own = in_float32(model, setting.plan)
    metrics = scores_of(setting, own)
    tests = {split: predictions_of(setting, own, examples) for split, examples in setting.data.tests.items()}
    report = build_report(setting, stage, parameters_of(model), metrics, its, seconds, zero_stage)
    ranks.on_first(lambda: write(setting, report, model.cpu(), tests))
    setting.monitor.close()


def build_report(
    setting: TaskSetting,
    stage: Stage,
    parameters: int,
    metrics: Scores,
    its: Scores | None,
    seconds: float,
    zero_stage: int,
) -> TaskReport:
    config, task = setting.config, setting.data.task
    return TaskReport(
        name=setting.run_dir.name,
        method=config.method,
        task=task.name,
        data=config.task.data,
        model=config.model,
        teacher=None if its is None else config.teacher,
        parameters=parameters,
        metrics=metrics,
        primary=primary_score(task, metrics),
        teacher_metrics=its,
        steps=config.steps,
        epochs=config.steps * config.global_batch_size / len(setting.data.train),
        train_examples=len(setting.data.train),
        seed=config.seed,
        learning_rate=config.learning_rate,
        wall_seconds=seconds,
        loop_seconds=stage.loop.seconds,
        loop_cpu_seconds=stage.loop.cpu_seconds,
        measured_cpu_seconds=stage.measured.cpu_seconds,
        ranked_cpu_seconds=stage.ranked.cpu_seconds,
        world_size=ranks.world_size(),
        zero_stage=zero_stage,
        precision=ds_config.precision(setting.ds_config),
        versions=versions(),
        history=stage.history,
    )


def write(setting: TaskSetting, report: TaskReport, model: PreTrainedModel, tests: dict[str, torch.Tensor]) -> None:
    """On rank 0: everything but report.json first, whose presence says that the run is complete."""
    claim.check(setting.run_dir)
    task = setting.data.task
    if tests:
        (setting.run_dir / "predictions").mkdir(exist_ok=True)
    for split, logits in tests.items():
        said = logits.argmax(dim=1) if task.classes else logits[:, 0]
        path = setting.run_dir / "predictions" / task.submissions[split]
        write_predictions(path, task, setting.data.tests[split].indices, said.numpy())
    if setting.config.save_student:
        save(setting, report, model, setting.run_dir / "student")
    write_task_report(report, setting.run_dir)
    table = score_table(report.metrics, report.teacher_metrics)
    setting.monitor.line(f"\n{table}\n\n{task.name}: {report.primary:.4f}   report: {setting.run_dir}/report.md")


def save(setting: TaskSetting, report: TaskReport, model: PreTrainedModel, folder: Path) -> None:
    """A plain folder with its card, proven."""
    dtype = stored_dtype(setting.config.model, setting.config.student.dtype)
    save_folder(model, setting.tokenizer, folder, dtype, None)
    prove(setting, model, folder)
    (folder / "README.md").write_text(task_card(report, setting.command), encoding="utf-8")


def prove(setting: TaskSetting, model: PreTrainedModel, folder: Path) -> None:
    """The saved folder gives the trained model's logits where only torch and transformers are known."""
    few = setting.data.train.take(np.arange(min(8, len(setting.data.train))))
    ids, mask, types = padded(few, setting.batches.pad_id)
    inputs = {"input_ids": ids, "attention_mask": mask} | ({} if types is None else {"token_type_ids": types})
    with torch.no_grad():
        expected = model(**inputs).logits
    proof.prove(folder, [inputs], [expected], f"The checkpoint in {setting.run_dir}/checkpoints is valid.")


def parameters_of(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def in_float32(model: PreTrainedModel, plan: WidthPlan) -> Forward:
    torch.nn.Module.to(model, ranks.device())
    return lambda *shown: task_forward(model, plan.family, *shown, reads={"logits"})


def predictions_of(setting: TaskSetting, model: Forward, examples: Encoded) -> torch.Tensor:
    return predict(model, examples, setting.batches.pad_id)


def scores_of(setting: TaskSetting, model: Forward) -> Scores:
    data = setting.data
    return scores_on(data.task, data.evaluation, lambda examples: predictions_of(setting, model, examples))


def warn_of_chance(setting: TaskSetting, its: Scores) -> None:
    """Say so where the teacher's scores are those of a model that has not learnt this task."""
    task, known = setting.data.task, primary_score(setting.data.task, its)
    constant = best_constant(task, setting.data.evaluation)
    if known <= constant:
        setting.monitor.line(
            f"warning: --teacher {setting.config.teacher} scores {known:.3f} on {task.name}, and one answer to every "
            f"example {constant:.3f}: has it learnt this task?"
        )
