"""Writing a checkpoint: staged, synced, renamed into its place; then older ones go."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from homodistil_ds.errors import HomodistilError
from homodistil_ds.runtime import checkpoint, claim, ranks
from homodistil_ds.runtime.carry import Piece
from homodistil_ds.runtime.whole_files import replace_text, sync


def save(
    folder: Path, state: dict[str, Any], tensors: Mapping[str, torch.Tensor], pieces: Sequence[Piece], keep: int
) -> Path:
    """Write folder/step-<n>; all ranks call it, each with its own pieces. Returns the checkpoint.

    The newest `keep` stay. Raises HomodistilError on every rank if one of them cannot write: what it wrote is removed
    and older checkpoints are untouched.
    """
    step = int(state["step"])
    final = folder / f"step-{step}"
    staging = folder / f"{checkpoint.UNFINISHED}{step}-{ranks.told_by(0, os.urandom(4).hex())}"
    try:
        with _explained(folder, step):
            ranks.on_first(lambda: _begin(staging, pieces))
            own = ranks.together(lambda: _write_rank(staging, state, tensors, pieces))
            written = ranks.to_first(json.dumps(own))
            files = {name: facts for part in written for name, facts in json.loads(part).items()}
            ranks.on_first(lambda: _commit(staging, final, files))
    except HomodistilError:
        if ranks.rank() == 0:
            shutil.rmtree(staging, ignore_errors=True)
        raise
    ranks.on_first(lambda: _drop_older(folder, final, keep))
    return final


@contextlib.contextmanager
def _explained(folder: Path, step: int) -> Iterator[None]:
    try:
        yield
    except HomodistilError as error:
        if error.error_id == "DIST-SUPERSEDED":
            raise
        before = next((path.name for path in checkpoint.newest_first(folder) if int(path.name[5:]) < step), None)
        raise HomodistilError(
            "CKPT-SAVE",
            f"checkpoint of step {step} in {folder}: {error.what}",
            "Make room or choose another --output_dir, then go on with the same command and --resume auto.",
            f"The checkpoint before it is untouched: {folder / before}."
            if before
            else "There is no checkpoint before it.",
        ) from error


def _begin(staging: Path, pieces: Sequence[Piece]) -> None:
    claim.check(staging.parent.parent)
    # Not its parents: a run directory that has gone, with its disk perhaps, must not come back on another one.
    staging.parent.mkdir(exist_ok=True)
    for left_over in staging.parent.glob(f"{checkpoint.UNFINISHED}*"):
        shutil.rmtree(left_over, ignore_errors=True)
    for left_over in staging.parent.glob(".latest.*"):
        left_over.unlink(missing_ok=True)
    needed = ranks.world_size() * sum(piece.values.nbytes for piece in pieces)
    free = shutil.disk_usage(staging.parent).free
    if free < needed:
        raise OSError(f"no space left: about {needed / 1e6:,.1f} MB needed, {free / 1e6:,.1f} MB free")
    staging.mkdir()


def _write_rank(
    staging: Path, state: dict[str, Any], tensors: Mapping[str, torch.Tensor], pieces: Sequence[Piece]
) -> dict[str, dict[str, Any]]:
    """This rank's files, on the disk; rank 0 writes the shared ones too. Returns their sizes and digests."""
    own = staging / f"rank-{ranks.rank():05d}-of-{ranks.world_size():05d}.safetensors"
    try:
        save_file({f"{piece.offset}:{piece.name}": piece.values.cpu().contiguous() for piece in pieces}, own)
        paths = [own]
        if ranks.rank() == 0:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, staging / checkpoint.TENSORS)
            said = json.dumps({"format": checkpoint.FORMAT, **state})
            (staging / checkpoint.STATE).write_text(said, encoding="utf-8")
            paths += [staging / checkpoint.TENSORS, staging / checkpoint.STATE]
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(str(error)) from error
    for path in paths:
        sync(path)
    return {path.name: {"bytes": path.stat().st_size, "sha256": checkpoint.sha256_of(path)} for path in paths}


def _commit(staging: Path, final: Path, files: dict[str, Any]) -> None:
    """The manifest, the rename, then `latest`: a crash between any two of them leaves the old or the new checkpoint."""
    manifest = {"format": checkpoint.FORMAT, "files": files, "sha256": checkpoint.digest_of(files)}
    (staging / checkpoint.MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    sync(staging / checkpoint.MANIFEST)
    sync(staging)
    claim.check(final.parent.parent)
    if final.exists():  # damaged, or of a branch that was left: it must not stand in the way
        final.rename(checkpoint.free_name(final))
    staging.rename(final)
    sync(final.parent)
    # The checkpoint is there and will be found without it; a disk that is full now is told by the next save.
    with contextlib.suppress(OSError):
        _point_at(final)


def _point_at(final: Path) -> None:
    replace_text(final.parent / "latest", final.name)
    sync(final.parent)


def _drop_older(folder: Path, final: Path, keep: int) -> None:
    """Keep this one and the newest before it; those set aside are left to the user."""
    for old in [path for path in checkpoint.newest_first(folder) if path != final][max(keep - 1, 0) :]:
        going = folder / f"{checkpoint.UNFINISHED}{old.name}"  # the next save removes what a crash leaves of it
        with contextlib.suppress(OSError):
            shutil.rmtree(old.rename(going), ignore_errors=True)
