"""The teacher cache of a run: what its states are made of, whether all of them are there, room for those that are not.

A cache is known by its key, the facts that decide a row's states. Steps, ranks and micro batches are none of them: rows
are found by their number in the order of visits.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from homodistil_ds.data.corpus import sha256
from homodistil_ds.distillation.cached_teacher import CachedTeacher, vocabulary_head_of
from homodistil_ds.distillation.state_files import FILE_BYTES, StateFiles
from homodistil_ds.errors import HomodistilError
from homodistil_ds.methods.placing import placed_teacher
from homodistil_ds.methods.setting import Setting
from homodistil_ds.models.loading import folder_of
from homodistil_ds.models.pieces import open_pieces, reader_of
from homodistil_ds.runtime import ds_config, ranks
from homodistil_ds.runtime.late_files import appears
from homodistil_ds.runtime.rounding import in_format
from homodistil_ds.runtime.whole_files import written_whole

FORMAT = 1
MANIFEST, DIGESTS = "manifest.json", "digests.json"
NEW = "Choose another folder for --teacher_cache, or leave it out."


def cached_teacher(setting: Setting, folder: Path) -> CachedTeacher:
    """The teacher of a run with a cache; it has no body where the folder holds every row that is still to come.

    All ranks call it, after the student is made. Raises HomodistilError: CKPT-CACHE for the cache of another run, or a
    damaged one, ENV-DISK where the disk has too little room for what is lacking.
    """
    key = ranks.told_by(0, ranks.together(lambda: _opened(setting, folder) if ranks.rank() == 0 else ""))
    files = StateFiles(folder, key, _shape(setting), setting.train_dtype)
    _take_up(files)
    read = setting.read or reader_of(setting.source)
    head = ranks.together(lambda: vocabulary_head_of(setting.source, setting.plan.family, read))
    head = in_format(head, setting.train_dtype).to(ranks.device())
    lacking = _lacking(setting, files)
    if not lacking:
        setting.monitor.line(f"teacher cache {folder}: holds all that is to come, the teacher's body is not run")
        if setting.read is None:
            setting.source.base_model.to("meta")  # what is left of it is an outline
        return CachedTeacher(files, head, None, 1)
    setting.monitor.line(_storage(setting, files, lacking))
    ranks.on_first(lambda: _check_room(files, lacking))
    calls = FILE_BYTES // (files.row_bytes * setting.batches.micro_batch)
    return CachedTeacher(files, head, placed_teacher(setting, {"predicted"}), max(1, calls))


def facts_of(setting: Setting, weights: str) -> dict[str, Any]:
    """What decides the states of every row, by the names of the flags; `weights` is the teacher's digest."""
    config, prediction = setting.config, setting.batches.prediction
    return {
        "format": FORMAT,
        "teacher": weights,
        "corpus": setting.fingerprint,
        "seed": config.seed,
        "sequence_length": config.sequence_length,
        "held_out_sequences": len(setting.corpus.held_out),
        "prediction": {"kind": type(prediction).__name__, **vars(prediction)},
        "precision": ds_config.precision(setting.ds_config),
        "shape": list(_shape(setting)),
    }


def _shape(setting: Setting) -> tuple[int, int]:
    """(K, H) of a row."""
    length = setting.config.sequence_length
    return round(setting.batches.prediction.share(length) * length), setting.plan.full.hidden


def _opened(setting: Setting, folder: Path) -> str:
    """The key of the run, whose manifest lies in the folder when this returns. Rank 0 calls it."""
    folder.mkdir(parents=True, exist_ok=True)
    # Through JSON, so that both sides of the comparison have been there.
    facts = json.loads(json.dumps(facts_of(setting, teacher_digest(setting.config.teacher, folder))))
    path = folder / MANIFEST
    if path.exists():
        _compare(folder, _manifest(path), facts)
    elif any(folder.glob("states-*")):
        raise HomodistilError("CKPT-CACHE", f"{folder} holds a teacher cache without its {MANIFEST}", NEW)
    else:
        with written_whole(path) as stream:
            stream.write(json.dumps(facts, indent=2).encode())
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _manifest(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise HomodistilError("CKPT-CACHE", f"{path} is damaged: {error}", NEW) from error


def _compare(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    differing = [
        f"{name} was {before.get(name)}, is {now.get(name)}"
        for name in dict.fromkeys([*now, *before])
        if before.get(name) != now.get(name)
    ]
    if differing:
        what = f"--teacher_cache {folder} belongs to another run: {'; '.join(differing)}"
        raise HomodistilError("CKPT-CACHE", what, NEW)


def teacher_digest(teacher: str, folder: Path) -> str:
    """16 hex digits over a teacher's configuration and weight files.

    Contents are hashed once: `folder` keeps their digests, with the size and the date of each file.
    """
    pieces = open_pieces(folder_of(teacher))
    weights = sorted({piece.path for piece in pieces.values()})
    paths = [*weights, weights[0].with_name("config.json")]
    kept = folder / DIGESTS
    try:
        known = dict(json.loads(kept.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        known = {}
    states = {path: path.stat() for path in paths}
    marks = {path: f"{path.resolve()} {states[path].st_size} {states[path].st_mtime_ns}" for path in paths}
    found = {mark: known.get(mark) or sha256(path) for path, mark in marks.items()}
    if found != known:
        with written_whole(kept) as stream:
            stream.write(json.dumps(found, indent=2).encode())
    return hashlib.sha256(json.dumps([found[marks[path]] for path in paths]).encode()).hexdigest()[:16]


def _take_up(files: StateFiles) -> None:
    """Every rank learns what all files hold; each reads the beginnings of its share. All ranks call it."""
    names = ranks.told_by(0, files.names() if ranks.rank() == 0 else [])
    me, world = ranks.rank(), ranks.world_size()

    def own() -> dict[str, np.ndarray]:
        return {name: files.runs_in(name) for name in names[me::world] if appears(files.folder / name)}

    known = {name: runs for part in ranks.everyone(ranks.together(own)) for name, runs in part.items()}
    files.take_up(list(known), list(known.values()))


def _lacking(setting: Setting, files: StateFiles) -> int:
    """How many of the rows that are still to come no file holds."""
    config, found = setting.config, setting.checkpoint
    begin = (found.step if found is not None else 0) * config.global_batch_size
    spans = ((begin, config.steps * config.global_batch_size), (-len(setting.corpus.held_out), 0))
    return sum(end - first - files.held(first, end) for first, end in spans)


def _storage(setting: Setting, files: StateFiles, lacking: int) -> str:
    """One line for the log, before anything is written."""
    length, (positions, hidden) = setting.config.sequence_length, files.shape
    each, whole = files.row_bytes / length, lacking * files.row_bytes / 1e6
    stored = str(files.dtype).removeprefix("torch.")
    return (
        f"teacher cache {files.folder}: {each:,.1f} bytes per token ({positions} of {length} positions x {hidden} in "
        f"{stored}), {lacking:,} sequences are lacking and will be written, {whole:,.1f} MB"
    )


def _check_room(files: StateFiles, lacking: int) -> None:
    needed, free = lacking * files.row_bytes, shutil.disk_usage(files.folder).free
    if free < needed:
        raise HomodistilError(
            "ENV-DISK",
            f"--teacher_cache {files.folder}: {needed / 1e6:,.1f} MB are to be written, {free / 1e6:,.1f} MB are free",
            "Choose a folder on a larger disk for --teacher_cache, or leave it out.",
        )
