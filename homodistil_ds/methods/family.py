"""The students that a run leaves behind on its way down: when, where, and what they are worth."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch

from homodistil_ds.evaluation.heldout import HeldOut
from homodistil_ds.evaluation.report import MemberRow, Report
from homodistil_ds.methods.saving import held_out_in_float32, model_row, plain_student, prove
from homodistil_ds.methods.setting import Setting
from homodistil_ds.models.loading import load_teacher, save_folder, stored_dtype
from homodistil_ds.pruning.family import Member, relative_likelihood, trade_off
from homodistil_ds.runtime import claim, ranks
from homodistil_ds.stage import Stage

FOLDER = "students"


def leaves(setting: Setting) -> dict[int, Member]:
    """Step after which it is left behind -> each member but the last, which is the student of the run's end."""
    return dict(zip(setting.schedule.leaves(), setting.members, strict=False))


def folder_of(setting: Setting, member: Member) -> Path:
    return setting.run_dir / FOLDER / member.name


def leave(setting: Setting, stage: Stage, step: int) -> None:
    """Save the student as it is, as a plain folder. All ranks call it."""
    member = leaves(setting)[step]
    student, kept = plain_student(setting, stage)
    dtype = stored_dtype(setting.config.teacher, setting.config.student.dtype)

    def write() -> None:
        claim.check(setting.run_dir)
        folder = folder_of(setting, member)
        unfinished = folder.with_name(f".{folder.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        save_folder(student, setting.tokenizer, unfinished, dtype, kept)
        shutil.rmtree(folder, ignore_errors=True)  # of a start that went on from an earlier step
        unfinished.replace(folder)
        setting.monitor.line(f"step {step}: left the student of scale {member.name}, {member.widths}, in {folder}")

    ranks.on_first(write)


def measured(setting: Setting, stage: Stage, teacher: torch.nn.Module | None) -> dict[float, HeldOut]:
    """Scale -> held-out figures of each student left behind, in float32, as saved. All ranks call it."""
    return {
        member.scale: held_out_in_float32(setting, stage, load_teacher(str(folder_of(setting, member)))[0], teacher)
        for member in leaves(setting).values()
    }


def rows(setting: Setting, stage: Stage, report: Report, found: Mapping[float, HeldOut]) -> list[MemberRow]:
    """A line per student, the last one included; each folder is proven. Rank 0 calls it."""
    assert report.teacher is not None
    lines = []
    for step, member in leaves(setting).items():
        folder, held_out = folder_of(setting, member), found[member.scale]
        rate = prove(setting, load_teacher(str(folder))[0], folder, with_teacher=False)[0]
        row = model_row(stage.plan, member.widths, folder, held_out.loss, held_out.discrepancy_kl, rate)
        lines.append((asdict(row), step, member.scale, f"{FOLDER}/{member.name}"))
    lines.append((asdict(report.student), report.steps, setting.members[-1].scale, "student"))
    worth = setting.config.trade_off
    return [
        MemberRow(
            **values,
            scale=scale,
            step=step,
            folder=folder,
            trade_off=trade_off(relative_likelihood(values["heldout_loss"], report.teacher.heldout_loss), scale, worth),
        )
        for values, step, scale, folder in lines
    ]


def report_of(report: Report, row: MemberRow) -> Report:
    """The same run as far as this student went."""
    tokens = report.tokens * row.step // report.steps
    return replace(report, name=f"{report.name} {row.scale:g}", student=row, steps=row.step, tokens=tokens, family=[])
