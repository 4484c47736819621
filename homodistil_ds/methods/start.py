"""Where a run begins: an unused folder or a checkpoint, one run per folder, and nothing of worth written over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from homodistil_ds.config import RunConfig
from homodistil_ds.errors import HomodistilError
from homodistil_ds.runtime import checkpoint, claim, exit_reason, guard, ranks
from homodistil_ds.runtime.checkpoint import Checkpoint

TRIAL = "trial"  # folder, inside a run directory, of the run that leaves an assistant behind
# What may differ between a run and its continuation: where and how often it writes, and how long it waits.
FREE = frozenset({"output_dir", "log_interval", "eval_interval", "save_interval", "save_total_limit", "step_timeout"})


def where_to_start(config: RunConfig, resume: str, report: Callable[[str], None]) -> Checkpoint | None:
    """None for a new run, else the verified checkpoint to go on from. All ranks call it and fail together.

    Raises HomodistilError: for a folder that holds another run's work, for a resume that finds nothing, for a
    checkpoint of another run configuration.
    """
    run_dir = Path(config.output_dir)
    if resume == "never":
        ranks.on_first(lambda: refuse_used(run_dir))
        return None
    # Rank 0 looks alone: what others see of a network file system may be older.
    ranks.on_first(lambda: hold(run_dir, report) if run_dir.is_dir() else None)
    found = checkpoint.find(resume, run_dir / "checkpoints", report)
    ranks.together(lambda: check_same_run(config, found))
    if not is_own(found, run_dir):
        ranks.on_first(lambda: refuse_used(run_dir))
    return found


def is_own(found: Checkpoint, run_dir: Path) -> bool:
    """Whether the checkpoint lies in the run directory, so that this start continues that very run."""
    return found.folder.resolve().parent == (run_dir / "checkpoints").resolve()


def hold(run_dir: Path, report: Callable[[str], None]) -> None:
    """Keep other runs out of the folder while this process lives."""
    if claim.is_held(run_dir):
        return
    warning = claim.hold(run_dir)
    if warning:
        report(warning)
    for name in (exit_reason.FILE_NAME, guard.STOP_FILE):  # of the start before
        (run_dir / name).unlink(missing_ok=True)


def refuse_used(run_dir: Path) -> None:
    """A folder may be begun again only if what lies there can be had again: no checkpoint, no student, no report."""
    used = [name for name in ("student", "report.json") if (run_dir / name).exists()]
    used += [path.name for path in checkpoint.newest_first(run_dir / "checkpoints")]
    if used:
        raise HomodistilError(
            "CFG-USED-DIR",
            f"--output_dir {run_dir} already holds a run ({', '.join(used)})",
            "Go on with it by --resume auto, choose another --output_dir, or move that one away.",
        )


def check_same_run(config: RunConfig, found: Checkpoint) -> None:
    """Every value that decides the student must be what it was."""
    what, remedy = f"--resume: {found.folder}", own_values(found.folder.parent.parent)
    check_same_values(config, found.state["config"], what, remedy)


def own_values(run_dir: Path) -> str:
    """The remedy for flags that are not those of the run in `run_dir`."""
    return f"Give the flags it was started with, or start from its own values: --config {run_dir / 'run_config.json'}"


def check_same_values(config: RunConfig, before: Mapping[str, Any], what: str, remedy: str) -> None:
    """`what` was made with the values `before`. Raises HomodistilError if they are not those of `config`."""
    differing = list(_differing(before, asdict(config), asdict(RunConfig())))
    if differing:
        raise HomodistilError(
            "CFG-RESUME",
            f"{what} belongs to another run: {'; '.join(differing[:4])}",
            remedy,
        )


def _differing(
    before: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = ""
) -> list[str]:
    """A value that the checkpoint's version did not know had its default."""
    found = []
    for name, value in now.items():
        old = before.get(name, defaults[name])
        old, value = (list(part) if isinstance(part, tuple) else part for part in (old, value))
        if isinstance(value, dict) and isinstance(old, dict):
            found += _differing(old, value, defaults[name], f"{prefix}{name}.")
        elif old != value and prefix + name not in FREE and not _same_part(old, value):
            found.append(f"--{prefix}{name} was {old}, is {value}")
    return found


def _same_part(old: Any, value: Any) -> bool:
    """Whether both name one folder of a trial: a run directory may be moved, or be called by another path."""
    if not (isinstance(old, str) and isinstance(value, str)):
        return False
    parts = [Path(text).parts for text in (old, value)]
    tails = [own[len(own) - own[::-1].index(TRIAL) - 1 :] if TRIAL in own else None for own in parts]
    return tails[0] is not None and tails[0] == tails[1]


def check_same_data(found: Checkpoint, fingerprint: str, full: Mapping[str, int], flag: str) -> None:
    """The tokens that are trained on, from `flag`, and the teacher's shape must be what they were."""
    if found.state["corpus"] != fingerprint:
        raise HomodistilError(
            "CKPT-DATA",
            f"--resume: {found.folder} was trained on data of fingerprint {found.state['corpus']}, "
            f"{flag} now has {fingerprint}",
            f"Give the same {flag} files, unchanged, and the same tokenizer.",
        )
    if found.state["full"] != dict(full):
        raise HomodistilError(
            "CKPT-TEACHER",
            f"--resume: {found.folder} began from a teacher of {found.state['full']}, this one has {dict(full)}",
            "Give the same --teacher.",
        )


def check_masks(found: Checkpoint, digest: str) -> None:
    """The masks read must be those that the ranks had agreed on."""
    if found.state["mask_digest"] != digest:
        raise HomodistilError(
            "CKPT-MASKS",
            f"--resume: {found.folder} says masks {found.state['mask_digest']}, its tensors hold {digest}",
            "Resume from another checkpoint of the run, by its path.",
        )


def set_aside(found: Checkpoint, report: Callable[[str], None]) -> None:
    """Rename the checkpoints after the one that a run goes on from, so that no later start takes them for its own."""
    for name in checkpoint.set_aside_later(found.folder.parent, found.step):
        report(f"set aside {found.folder.parent / name}: the run goes on from {found.folder.name}")
