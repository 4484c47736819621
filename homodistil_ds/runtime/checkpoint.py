"""Save the engine's state so that what was written before stays valid: staging folder, rename, `latest` last."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import deepspeed

from homodistil_ds.errors import HomodistilError
from homodistil_ds.runtime import ranks

KEPT_CHECKPOINTS = 2


def save(engine: deepspeed.DeepSpeedEngine, folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write checkpoints/step-<n>; all ranks call it. Only then `latest` moves and older checkpoints go."""
    staging, final = f".saving-step-{step}", f"step-{step}"

    def write() -> None:
        try:
            engine.save_checkpoint(str(folder), tag=staging, client_state=state, save_latest=False)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            raise _failed(folder, step, str(error)) from error

    def commit() -> None:
        if ranks.rank() != 0:
            return
        try:
            shutil.rmtree(folder / final, ignore_errors=True)
            (folder / staging).rename(folder / final)
            unfinished = folder / ".latest"
            unfinished.write_text(final, encoding="utf-8")
            unfinished.rename(folder / "latest")
        except OSError as error:
            raise _failed(folder, step, str(error)) from error
        for old in sorted(folder.glob("step-*"), key=lambda path: int(path.name[5:]))[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old, ignore_errors=True)

    ranks.together(write)
    ranks.together(commit)


def _failed(folder: Path, step: int, reason: str) -> HomodistilError:
    return HomodistilError(
        "CKPT-SAVE",
        f"checkpoint of step {step} in {folder}: {reason}",
        "Make room or choose another --output_dir.",
        "The checkpoint before it, if there is one, is valid.",
    )


def load(engine: deepspeed.DeepSpeedEngine, folder: Path) -> dict[str, Any]:
    """Load the checkpoint that `latest` names into an engine of the same shape and world size; returns its state."""
    tag = (folder / "latest").read_text(encoding="utf-8").strip()
    path, state = engine.load_checkpoint(str(folder), tag=tag)
    if path is None:
        raise HomodistilError("CKPT-LOAD", f"{folder}/{tag} is not a checkpoint", "Choose another checkpoint.")
    return state
