"""The end of every method: full weights from the ranks, the plain student folder, its proof, the report."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from homodistil_ds.config import BUILTIN
from homodistil_ds.evaluation import figures
from homodistil_ds.evaluation.card import model_card
from homodistil_ds.evaluation.heldout import HeldOut
from homodistil_ds.evaluation.report import Report, before_after_table, versions, write_report
from homodistil_ds.methods import family, flops
from homodistil_ds.methods.measuring import held_out_of, measured_teacher, measuring_dtype
from homodistil_ds.methods.saving import model_row, plain_student, prove
from homodistil_ds.methods.setting import Setting
from homodistil_ds.models.loading import folder_of, save_folder, stored_dtype
from homodistil_ds.runtime import claim, ds_config, ranks
from homodistil_ds.runtime.engine import dispose
from homodistil_ds.runtime.rounding import rounded_to
from homodistil_ds.stage import Stage


def finish(setting: Setting, stage: Stage) -> None:
    """Write student/, report.md, report.json and figures/, and print the table. All ranks call it."""
    seconds = time.perf_counter() - setting.started
    dtype = stored_dtype(setting.config.teacher, setting.config.student.dtype)
    student, kept = plain_student(setting, stage)
    zero_stage = stage.engine.zero_optimization_stage()
    dispose(stage.engine)
    rounded_to(student, dtype)
    folder, has_teacher = setting.run_dir / "student", stage.teacher is not None
    rates: list[float] = []

    def save() -> None:
        claim.check(setting.run_dir)
        setting.monitor.line("saving the student and loading it back in a fresh process")
        save_folder(student, setting.tokenizer, folder, dtype, kept)
        rates.extend(prove(setting, student, folder, has_teacher))

    ranks.on_first(save)  # first: whatever becomes of the figures, the student is there
    measured_in = measuring_dtype(setting, stage, student)
    teacher = measured_teacher(setting, stage, measured_in) if has_teacher else None
    held_out = held_out_of(setting, stage, student, teacher, measured_in)
    members = family.measure(setting, stage, teacher, held_out, measured_in)
    if teacher is not None and setting.read is not None:
        dispose(teacher)  # an engine, whose shards a second descent would still hold
    teacher = None

    def write() -> None:
        claim.check(setting.run_dir)
        report = build_report(setting, stage, held_out, rates, seconds, zero_stage)
        report = replace(report, measured_in=str(measured_in).removeprefix("torch."))
        write_card(setting, report, folder)
        if members is not None:
            report = replace(report, family=family.rows(setting, stage, report, members))
            for row in report.family[:-1]:
                write_card(setting, family.report_of(report, row), setting.run_dir / row.folder)
        write_report(report, setting.run_dir, draw(setting, stage, report))
        setting.monitor.line(
            f"\n{before_after_table(report)}\n\nstudent: {folder}\nreport:  {setting.run_dir}/report.md"
        )

    ranks.on_first(write)
    setting.monitor.close()


def write_card(setting: Setting, report: Report, folder: Path) -> None:
    card = model_card(
        base_model=setting.config.teacher,
        license="apache-2.0" if setting.config.teacher == BUILTIN else None,
        corpus=setting.config.corpus,
        command=setting.command,
        report=report,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def build_report(
    setting: Setting, stage: Stage, held_out: HeldOut, rates: list[float], seconds: float, zero_stage: int
) -> Report:
    config, machine = setting.config, setting.ds_config
    student = model_row(
        stage.plan, stage.widths(), setting.run_dir / "student", held_out.loss, held_out.discrepancy_kl, rates[0]
    )
    teacher = None
    if held_out.teacher_loss is not None:
        source = Path(folder_of(config.teacher))
        teacher = model_row(setting.plan, setting.plan.full, source, held_out.teacher_loss, 0.0, *rates[1:])
    return Report(
        name=setting.run_dir.name,
        method=config.method,
        teacher=teacher,
        student=student,
        steps=config.steps,
        tokens=config.steps * config.global_batch_size * config.sequence_length,
        wall_seconds=seconds,
        train_flops=flops.of_run(setting, stage),
        loop_seconds=stage.loop.seconds,
        loop_cpu_seconds=stage.loop.cpu_seconds,
        measured_seconds=stage.measured.seconds,
        measured_cpu_seconds=stage.measured.cpu_seconds,
        peak_bytes=stage.peak_bytes,
        world_size=ranks.world_size(),
        zero_stage=zero_stage,
        precision=ds_config.precision(machine),
        seed=config.seed,
        mask_digest=stage.pruner.masks.digest() if stage.pruner else "",
        corpus_fingerprint=setting.fingerprint,
        digests_checked=len(stage.pruner.events) if stage.pruner else 0,
        prune_events=stage.pruner.events if stage.pruner else [],
        versions=versions(),
        history=stage.history,
        language_model=setting.plan.family.language_model,
    )


def draw(setting: Setting, stage: Stage, report: Report) -> dict:
    """The figures of the report; they go to the curves too."""
    losses = [row for row in stage.history if "total" in row]
    names = [name for name in ("total", *stage.objective.weights) if losses and name in losses[0]]
    steps = [int(row["step"]) for row in losses]
    drawn = {"losses": figures.loss_curves(steps, {name: [row[name] for row in losses] for name in names})}
    if stage.pruner is not None:
        sizes = ("hidden", "ffn", "heads", "head_size")
        evaluations = [row for row in stage.history if "discrepancy_kl" in row]
        drawn["widths"] = figures.width_curve(
            steps, {name: [int(row[f"kept_{name}"]) for row in losses] for name in sizes}, vars(setting.target)
        )
        drawn["masks"] = figures.mask_heatmap({group: mask.numpy() for group, mask in stage.pruner.masks.kept.items()})
        drawn["discrepancy"] = figures.discrepancy_curve(
            [int(row["step"]) for row in evaluations],
            [row["discrepancy_kl"] for row in evaluations],
            [int(row["kept_hidden"]) for row in evaluations],
        )
    if report.family:
        drawn["family"] = figures.family_curve(report.teacher, report.family)
    for name, figure in drawn.items():
        setting.monitor.figure(setting.config.steps, name, figure)
    return drawn
