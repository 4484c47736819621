"""From text to a prepared folder: plan, tokenize, find copies, pack, index. One engine for one worker or many.

The folder is the same byte for byte however many workers share it and however often it was killed on the way.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from homodistil_ds.data.copies import find_copies
from homodistil_ds.data.corpus import (
    FORMAT,
    INDEX,
    Corpus,
    fingerprint,
    is_prepared,
    load,
    no_rows,
    read_index,
)
from homodistil_ds.data.packing import COUNTS, Kept, pack
from homodistil_ds.data.plan import PLAN, UNFINISHED, Recipe, begin, differing_names, write_json
from homodistil_ds.data.progress import Progress
from homodistil_ds.data.text import File, documents
from homodistil_ds.data.tokens import Tokens, forget, tokenize
from homodistil_ds.data.units import groups_of
from homodistil_ds.data.workers import Alone, Workers
from homodistil_ds.errors import HomodistilError
from homodistil_ds.runtime import claim

# A file with one of these is bad; anything else is wrong with more than the file.
_BAD_FILE = ("DATA-UNREADABLE", "DATA-NOT-UTF8", "DATA-CORRUPT", "DATA-JSONL", "DATA-COLUMN")


@dataclass(frozen=True)
class Outcome:
    index: dict[str, Any]
    """Empty but with the first worker."""
    made: int = 0
    """Units tokenized now."""
    found: int = 0
    """Units that an earlier start had finished."""
    cpu_seconds: float = 0.0
    """Of the worker that needed most."""


def corpus_folder(sources: Sequence[str], own: Path) -> Path:
    """Where a run finds its rows: a prepared folder where it lies, or its own folder, packed from text.

    Raises HomodistilError DATA-PREPARED for a prepared folder among others, or one that is not finished.
    """
    for source in sources:
        if is_prepared(source) and len(sources) > 1:
            raise HomodistilError(
                "DATA-PREPARED",
                f"{source} is a prepared corpus, and not the only source",
                "Give it alone, or prepare all sources together.",
            )
        if Path(source, UNFINISHED).is_dir() and not is_prepared(source):
            raise HomodistilError(
                "DATA-PREPARED",
                f"{source}: the preparation of this corpus is not finished",
                "Give tools/prepare_corpus.py its command again; it goes on where it was.",
            )
    return Path(sources[0]) if sources and is_prepared(sources[0]) else own


def prepare(
    sources: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    sequence_length: int,
    held_out_sequences: int,
    own: Path,
) -> Corpus:
    """The corpus of a run: `sources` is a prepared folder, or is packed into the folder `own` unless that is done.

    Raises HomodistilError as load and prepare_folder do; a failed packing leaves nothing behind.
    """
    folder = corpus_folder(sources, own)
    if folder == own:
        recipe = Recipe(sources=tuple(sources), sequence_length=sequence_length)
        new = not is_prepared(own)
        try:
            prepare_folder(recipe, tokenizer, own, Alone(), Progress(False), lambda line: None)
            return load(own, tokenizer, sequence_length, held_out_sequences)
        except HomodistilError:
            if new:
                shutil.rmtree(own, ignore_errors=True)
            raise
    return load(folder, tokenizer, sequence_length, held_out_sequences)


def prepare_folder(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    workers: Workers,
    progress: Progress,
    say: Callable[[str], None],
) -> Outcome:
    """Prepare `folder`, or finish what a killed preparation of the same recipe left there. Every worker calls it.

    Raises HomodistilError: DATA-CACHE if the folder was made with other arguments, DATA-CHANGED if a source changes
    meanwhile, DATA-EMPTY without a full row, and what reading documents raises.
    """
    first, work, began = workers.rank == 0, folder / UNFINISHED, time.process_time()
    plan = workers.everyone(begin(recipe, tokenizer, folder, say) if first else None)[0]
    if plan is None:
        return Outcome(read_index(folder) if first else {})
    files = [File(*values) for values in plan["files"]]
    skipped: list[tuple[int, str]] | None = plan["skipped"]
    if skipped is None:
        progress.stage("reading all files once, to find bad ones")
        skipped = _bad_files(files, workers, progress)
        if first:
            _skip(skipped, files, plan, work)
        workers.everyone(None)
    groups = groups_of(files, {place for place, _ in skipped})
    tokens = Tokens(tokenizer)
    progress.stage("tokenizing")
    parts, made, found = tokenize(groups, tokens, recipe.clean, work / "parts", workers, progress)
    progress.stage("comparing digests")
    kept = Kept(parts, find_copies(parts, tokens.dtype, work, workers), tokens)
    lengths, counted = kept.count(len(files), workers)
    if first and lengths[:, 0].sum() < tokens.inner(recipe.sequence_length):
        raise no_rows("train on", recipe.sequence_length, _counts(counted.sum(axis=0)))
    progress.stage("packing")
    shards = pack(kept, lengths, recipe.sequence_length, work, workers, progress)
    progress.close()
    del kept  # network file systems cannot remove what a worker still maps
    workers.everyone(None)
    index: dict[str, Any] = {}
    if first:
        index = _finish(
            recipe, tokenizer, folder, plan, skipped, _per_label(files, skipped, counted), shards, tokens.dtype
        )
    return Outcome(index, made, found, max(workers.everyone(time.process_time() - began)))


def _bad_files(files: Sequence[File], workers: Workers, progress: Progress) -> list[tuple[int, str]]:
    """Number and fault of each file that cannot be read to its end."""
    bad: list[tuple[int, str]] = []
    for place in range(workers.rank, len(files), workers.size):
        try:
            for text in documents(files[place]):
                progress.add(len(text), 1, files[place].label)
        except HomodistilError as error:
            if error.error_id not in _BAD_FILE:
                raise
            bad.append((place, f"{error.error_id}: {error.what}"))
    return sorted(one for everyone in workers.everyone(bad) for one in everyone)


def _skip(skipped: Sequence[tuple[int, str]], files: Sequence[File], plan: dict[str, Any], work: Path) -> None:
    """Note what to skip; what an earlier start made of the groups of these files goes."""
    bad = {place for place, _ in skipped}
    forget(
        [group.number for group in groups_of(files) if any(place in bad for place, _ in group.files)], work / "parts"
    )
    write_json(work / PLAN, {**plan, "skipped": skipped})


def _finish(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    plan: dict[str, Any],
    skipped: Sequence[tuple[int, str]],
    per_file: dict[str, np.ndarray],
    shards: dict[str, list[dict[str, Any]]],
    dtype: np.dtype,
) -> dict[str, Any]:
    """Move the shards to their place, write the index, leave nothing else; returns the index."""
    for claimed in (folder, folder.parent):  # a preparation claims its folder, a run the one above its corpus
        claim.check(claimed)
    if changed := differing_names(plan["made_with"], recipe.made_with(tokenizer)):
        raise HomodistilError(
            "DATA-CHANGED", f"{', '.join(changed)} changed while {folder} was prepared", "Prepare the corpus again."
        )
    for name in [fact["name"] for facts in shards.values() for fact in facts]:
        (folder / UNFINISHED / name).replace(folder / name)
    counts = _counts(np.sum(list(per_file.values()), axis=0))
    index = {
        "format": FORMAT,
        "fingerprint": fingerprint(dtype.str, recipe.sequence_length, shards["train"], shards["held_out"]),
        "sequence_length": recipe.sequence_length,
        "dtype": dtype.str,
        "vocabulary": plan["made_with"]["vocabulary"],
        "rows": {name: sum(fact["rows"] for fact in facts) for name, facts in shards.items()},
        "counts": counts,
        **shards,
        "files": [{"name": name, **_counts(row)} for name, row in per_file.items()],
        "skipped": [{"name": File(*plan["files"][place]).label, "fault": fault} for place, fault in skipped],
        "made_with": plan["made_with"],
    }
    write_json(folder / INDEX, index)
    shutil.rmtree(folder / UNFINISHED)
    return index


def _per_label(files: Sequence[File], skipped: Sequence[tuple[int, str]], counted: np.ndarray) -> dict[str, np.ndarray]:
    """Counts by what the user knows: a file, 'builtin', a data set."""
    bad = {place for place, _ in skipped}
    found: dict[str, np.ndarray] = {}
    for file, row in ((file, counted[place]) for place, file in enumerate(files) if place not in bad):
        found[file.label] = found.get(file.label, np.zeros_like(row)) + row
    return found


def _counts(row: np.ndarray) -> dict[str, int]:
    return dict(zip(COUNTS, row.tolist(), strict=True))
