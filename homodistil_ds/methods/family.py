"""The students that a run leaves behind on its way down: when, where, and what they are worth."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from homodistil_ds.errors import HomodistilError
from homodistil_ds.evaluation.heldout import HeldOut
from homodistil_ds.evaluation.report import MemberRow, Report
from homodistil_ds.methods.measuring import held_out_of
from homodistil_ds.methods.saving import model_row, plain_student, prove
from homodistil_ds.methods.setting import Setting
from homodistil_ds.methods.start import TRIAL
from homodistil_ds.models.loading import load_teacher, save_folder, stored_dtype
from homodistil_ds.pruning.family import Member, relative_likelihood, trade_off
from homodistil_ds.runtime import claim, ranks
from homodistil_ds.runtime.whole_files import sync
from homodistil_ds.stage import Stage

FOLDER = "students"
WHOLE = "config.json"  # in a folder that was renamed into its place


def leaves(setting: Setting) -> dict[int, Member]:
    """Step after which it is left behind -> each member but the last, which is the student of the run's end."""
    return dict(zip(setting.schedule.leaves(), setting.members, strict=False))


def folder_of(setting: Setting, member: Member) -> Path:
    return setting.run_dir / FOLDER / member.name


def bring(setting: Setting) -> None:
    """Have the students left before the checkpoint that a run goes on from. All ranks call it.

    Raises HomodistilError where they are not.
    """
    found = setting.checkpoint
    if found is None:
        return
    source = found.folder.parent.parent / FOLDER

    def copy() -> None:
        for step, member in leaves(setting).items():
            folder, its = folder_of(setting, member), source / member.name
            if step > found.step or (folder / WHOLE).exists():
                continue
            if not (its / WHOLE).exists():
                raise HomodistilError(
                    "CKPT-FAMILY",
                    f"--resume: {found.folder} comes after the student of scale {member.name}, and {source} lacks it",
                    "Put that folder back, or resume from an earlier checkpoint.",
                )
            with _placed(folder) as unfinished:
                shutil.copytree(its, unfinished)

    ranks.on_first(copy)


def leave(setting: Setting, stage: Stage, step: int) -> None:
    """Save the student as it is, as a plain folder. All ranks call it."""
    member = leaves(setting)[step]
    student, kept = plain_student(setting, stage)
    dtype = stored_dtype(setting.config.teacher, setting.config.student.dtype)

    def write() -> None:
        claim.check(setting.run_dir)
        folder = folder_of(setting, member)
        with _placed(folder) as unfinished:
            save_folder(student, setting.tokenizer, unfinished, dtype, kept)
        setting.monitor.line(f"step {step}: left the student of scale {member.name}, {member.widths}, in {folder}")

    ranks.on_first(write)


@contextlib.contextmanager
def _placed(folder: Path) -> Iterator[Path]:
    """Where to write what is in `folder` afterwards, all of it in one move."""
    unfinished = folder.with_name(f".{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    yield unfinished
    for path in (*unfinished.iterdir(), unfinished):
        sync(path)
    shutil.rmtree(folder, ignore_errors=True)  # of a start that went on from an earlier step
    unfinished.replace(folder)
    sync(folder.parent)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Held-out figures: of each member as saved, the last one included, and the loss of what all of them
    are shares of."""

    members: tuple[HeldOut, ...]
    whole_loss: float


def measure(
    setting: Setting, stage: Stage, teacher: torch.nn.Module | None, last: HeldOut, dtype: torch.dtype
) -> Measured | None:
    """All ranks call it; None for a run without a family."""
    if not setting.config.family:
        return None
    assert last.teacher_loss is not None

    def figures(folder: str, taught_by: torch.nn.Module | None) -> HeldOut:
        model = ranks.together(lambda: load_teacher(folder, flag="the student")[0])
        return held_out_of(setting, stage, model, taught_by, dtype)

    before = [figures(str(folder_of(setting, member)), teacher) for member in leaves(setting).values()]
    whole_loss = last.teacher_loss
    if setting.config.scales_of:
        trial, source = setting.run_dir / TRIAL, setting.config.scales_of
        known = ranks.told_by(0, _teachers_loss(trial, source) if ranks.rank() == 0 else None)
        whole_loss = figures(setting.config.scales_of, None).loss if known is None else known
    return Measured(members=(*before, last), whole_loss=whole_loss)


def _teachers_loss(trial: Path, source: str) -> float | None:
    """Of `source` if it taught the first descent; it may be too large to be whole here."""
    try:
        config, report = (json.loads((trial / f"{name}.json").read_text("utf-8")) for name in ("run_config", "report"))
        return report["teacher"]["heldout_loss"] if config["teacher"] == source else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def rows(setting: Setting, stage: Stage, report: Report, found: Measured) -> list[MemberRow]:
    """A line per student, the last one included; each folder is proven. Rank 0 calls it."""
    lines = []
    for (step, member), held_out in zip(leaves(setting).items(), found.members, strict=False):
        folder = folder_of(setting, member)
        rate = prove(setting, load_teacher(str(folder))[0], folder, with_teacher=False)[0]
        row = model_row(stage.plan, member.widths, folder, held_out.loss, held_out.discrepancy_kl, rate)
        lines.append((row, step, member, f"{FOLDER}/{member.name}"))
    lines.append((report.student, report.steps, setting.members[-1], "student"))
    return [
        MemberRow(
            **vars(row),
            scale=member.scale,
            kept=member.kept,
            step=step,
            folder=folder,
            trade_off=trade_off(
                relative_likelihood(row.heldout_loss, found.whole_loss), member.kept, setting.config.trade_off
            ),
        )
        for row, step, member, folder in lines
    ]


def report_of(report: Report, row: MemberRow) -> Report:
    """The same run as far as this student went."""
    tokens = report.tokens * row.step // report.steps
    return replace(report, name=f"{report.name} {row.scale:g}", student=row, steps=row.step, tokens=tokens, family=[])
