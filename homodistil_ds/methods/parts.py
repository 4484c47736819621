"""A run inside a run directory that must be complete before the run around it begins: a teacher, a trial."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from homodistil_ds.config import RunConfig, load_run_config
from homodistil_ds.errors import HomodistilError
from homodistil_ds.machine import Machine
from homodistil_ds.methods.opening import say
from homodistil_ds.methods.start import check_same_values, refuse_used
from homodistil_ds.runtime import ranks
from homodistil_ds.runtime.checkpoint import find, newest_first


def complete_first(own: RunConfig, machine: Machine, whole: Path, do: Callable[[Machine], None]) -> Machine:
    """`do` the part with the configuration `own`, or go on with it, unless it is complete; then it must be this one.

    Returns the facts of the machine for the run around it, in the run directory `whole`: to resume while only the part
    had begun is to begin the rest. All ranks call it. Raises HomodistilError.
    """
    part = Path(own.output_dir)
    only_part = ranks.told_by(0, (part / "run.json").exists() and not newest_first(whole / "checkpoints"))
    resumed = ""
    if machine.resume == "never":
        ranks.on_first(lambda: refuse_used(whole))
    elif only_part:
        resumed = ranks.together(lambda: _inside(Path(machine.resume), whole, part))
    else:
        find(machine.resume, whole / "checkpoints", say)
    if ranks.told_by(0, (part / "report.json").exists()):
        ranks.on_first(lambda: _check_complete(own, part))
        say(f"{part} is complete and is taken as it is")
    else:
        begun = ranks.told_by(0, bool(newest_first(part / "checkpoints")))
        do(replace(machine, resume=resumed or ("auto" if begun else "never")))
    return replace(machine, resume="never") if only_part else machine


def _inside(resume: Path, whole: Path, part: Path) -> str:
    """The checkpoint of the part that is asked for, empty for its newest. Raises HomodistilError for any other path."""
    if resume == Path("auto") or resume.resolve() == whole.resolve():
        return ""
    if part.resolve() in (resume.resolve(), *resume.resolve().parents):
        return str(resume)
    raise HomodistilError(
        "CKPT-NONE",
        f"--resume {resume}: of {whole} only {part.name}/ has begun",
        "Use --resume auto, or the path of one of its checkpoints.",
        f"{part} is as it was.",
    )


def _check_complete(own: RunConfig, part: Path) -> None:
    """What an earlier start has made must be what this run would make."""
    before = load_run_config(part / "run_config.json")
    wanted = replace(own, steps=own.steps or before.steps)
    remedy = f"Give the flags it was started with: the command is in {part / 'run.json'}."
    check_same_values(wanted, asdict(before), f"--resume: {part}", remedy)
