"""The examples of a GLUE task from official files, parquet or the hub. Tokenizes nothing.

N examples of a split.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from homodistil_ds.data.glue import HIGHEST, HUB_INDEX, HUB_LABEL, LOWEST, Examples, Task, folded
from homodistil_ds.data.readers import COMPRESSIONS, DAMAGE, is_text, lines
from homodistil_ds.data.text import is_local
from homodistil_ds.errors import HomodistilError, did_you_mean

NO_SPLIT = "DATA-GLUE-SPLIT"  # the error of a split that is not there


def read_split(data: str, task: Task, split: str) -> Examples:
    """One split of `data`: a folder with a folder for each task, or the name of a hub data set (nyu-mll/glue).

    In a task's folder lies <split>.tsv, also compressed, or <split>.parquet, or the hub's parquet files; the first of
    these is read. Raises HomodistilError: NO_SPLIT where there is none, DATA-GLUE, or DATA-NOT-UTF8.
    """
    if split not in task.splits:
        raise _fault(f"{task.name} has no split '{split}'", did_you_mean(split, task.splits))
    if not is_local(data):
        return _of_table(f"{data}, {task.hub_name}, {split}", _hub_table(data, task, split), task, split)
    where = data
    try:
        files = _files(_folder(Path(data), task), split)
        where = str(files[0])
        if files[0].suffix != ".parquet":
            return _of_tsv(files[0], task, split)
        return _of_table(
            where, pa.concat_tables([pq.read_table(file, partitioning=None) for file in files]), task, split
        )
    except (*DAMAGE, UnicodeDecodeError) as error:
        remedy = "Check that it may be read, and copy or download it again: it may have been damaged on the way."
        raise _fault(f"{where}: {error}", remedy) from error


def check_files(data: str, task: Task) -> None:
    """Raises HomodistilError where a local folder lacks a file that a run of the task reads; opens none."""
    if is_local(data):
        folder = _folder(Path(data), task)
        for split in ("train", *task.evaluation):
            _files(folder, split)


def _fault(what: str, remedy: str) -> HomodistilError:
    return HomodistilError("DATA-GLUE", what, remedy)


def _folder(data: Path, task: Task) -> Path:
    if not data.is_dir():
        raise _fault(f"{data}: no such folder", "Name the folder that holds a folder for each GLUE task.")
    found = sorted(path for path in data.iterdir() if path.is_dir() and folded(path.name) == folded(task.name))
    if len(found) != 1:
        names = " and ".join(path.name for path in found) or "none"
        what = f"{data}: one folder of the task {task.name} is expected, found {names}"
        raise _fault(what, f"Put its files into {data / task.name}, and keep only this one; or choose other tasks.")
    return found[0]


def _hub_split(split: str) -> str:
    return split.replace("dev", "validation")


def _files(folder: Path, split: str) -> list[Path]:
    """One file, or all pieces of a split in the hub's layout."""
    names = [f"{split}.tsv{packed}" for packed in ("", *COMPRESSIONS)]
    names += [f"{split}.parquet", f"{_hub_split(split)}.parquet"]
    for name in names:
        if (folder / name).is_file():
            return [folder / name]
    pieces = sorted(folder.glob(f"{_hub_split(split)}-?????-of-?????.parquet"))
    if not pieces:
        places = f"{', '.join(names)}, {_hub_split(split)}-00000-of-00001.parquet"
        raise HomodistilError(
            "DATA-GLUE-SPLIT",
            f"{folder}: no file of the split '{split}'",
            f"Put one there; names looked for: {places}.",
        )
    if [piece.stem[-5:] for piece in pieces] != [f"{len(pieces):05}"] * len(pieces):
        raise _fault(
            f"{folder}: the split '{split}' is not whole, found {', '.join(piece.name for piece in pieces)}",
            "Download the missing pieces and remove those of other downloads.",
        )
    return pieces


def _of_tsv(path: Path, task: Task, split: str) -> Examples:
    """No quoting: texts hold single quotation marks, and a reader that heeds them runs rows together."""
    is_test = split in task.submissions
    rows = enumerate((line.removesuffix("\n").removesuffix("\r").split("\t") for line in lines(path)), 1)
    names = (() if is_test else task.no_header) or next(rows, (1, [""]))[1]
    wanted = list(task.texts) if is_test else [*task.texts, task.label]
    wanted += [task.index] if task.index in names else []
    places = [_place(path, names, name) for name in wanted]
    kept: dict[
        int, list[str]
    ] = {}  # by line; without the other columns, which in MNLI hold each text twice more as a tree
    skipped = 0
    for number, cells in rows:
        if len(cells) == len(names):
            kept[number] = [cells[place] for place in places]
        elif len(cells) < len(names) and task.skips_short_rows and not is_test:
            skipped += 1
        else:
            raise _fault(
                f"{path}:{number}: {len(cells)} columns instead of {len(names)} ({', '.join(names)})",
                "Use the official file; columns are parted by tabs, and quotation marks mean nothing.",
            )
    column = dict(zip(wanted, zip(*kept.values(), strict=True), strict=True)) if kept else {}
    if not column:
        raise _no_example(str(path), skipped)
    return Examples(
        first=column[task.texts[0]],
        second=column[task.texts[1]] if len(task.texts) > 1 else None,
        labels=None if is_test else _labels(path, kept, column[task.label], task),
        indices=_indices(path, kept, column.get(task.index), task),
        skipped=skipped,
    )


def _place(path: Path, names: Sequence[str], name: str) -> int:
    if name not in names:
        raise _no_column(str(path), name, names)
    return names.index(name)


def _no_column(where: str, name: str, names: Sequence[str]) -> HomodistilError:
    found = f"no column '{name}'; its columns: {', '.join(names)}" if any(names) else "the file is empty"
    return _fault(f"{where}: {found}", "Use the official file of this task and split, or correct its header.")


def _labels(path: Path, numbers: Iterable[int], texts: Sequence[str], task: Task) -> np.ndarray:
    """[N] class numbers, or the values of a regression."""
    codes = {text: code for code, text in enumerate(task.label_texts)}
    labels = np.empty(len(texts), np.int64 if codes else np.float32)
    for place, (number, text) in enumerate(zip(numbers, texts, strict=True)):
        try:
            labels[place] = codes[text] if codes else float(text)
        except (KeyError, ValueError) as error:
            raise _bad_label(f"{path}:{number}", text, task) from error
        if not codes and not LOWEST <= labels[place] <= HIGHEST:
            raise _bad_label(f"{path}:{number}", text, task)
    return labels


def _indices(path: Path, numbers: Iterable[int], texts: Sequence[str] | None, task: Task) -> np.ndarray:
    """[N] as the file gives them, or counted from 0."""
    if texts is None:
        return np.arange(len(list(numbers)))
    indices = np.empty(len(texts), np.int64)
    for place, (number, text) in enumerate(zip(numbers, texts, strict=True)):
        try:
            indices[place] = int(text)
        except (ValueError, OverflowError) as error:
            raise _fault(
                f"{path}:{number}: '{text}' in column '{task.index}' is no number", "Use the official file."
            ) from error
    return indices


def _bad_label(where: str, found: object, task: Task) -> HomodistilError:
    known = ", ".join(task.label_texts) or f"{LOWEST:g} to {HIGHEST:g}"
    return _fault(
        f"{where}: '{found}' is no label of {task.name} ({known})", "Use the official file, or correct the row."
    )


def _no_example(where: str, skipped: int = 0) -> HomodistilError:
    return _fault(f"{where}: no example in it" + f" but {skipped} short rows" * (skipped > 0), "Download it again.")


def _hub_table(data: str, task: Task, split: str) -> pa.Table:
    try:
        from datasets import load_dataset  # noqa: PLC0415  seconds of import that only a hub name is worth

        return load_dataset(data, task.hub_name, split=_hub_split(split)).with_format("arrow")[:]
    except Exception as error:  # the hub client raises what each of its layers raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise _fault(
            f"{data}: no such folder, and {task.hub_name} is not readable from a hub data set of that name ({reason})",
            "Check the name and the network (HF_HUB_OFFLINE, HF_ENDPOINT), or give a folder of GLUE files.",
        ) from error


def _of_table(where: str, table: pa.Table, task: Task, split: str) -> Examples:
    """The hub's columns. Test splits carry -1 for a label, and MRPC's the true one: neither is looked at."""
    is_test = split in task.submissions
    kinds = {name: table.schema.field(name).type for name in table.column_names}
    right = {**dict.fromkeys(task.hub_texts, is_text), HUB_INDEX: pa.types.is_integer}
    wanted = [*task.hub_texts, *[HUB_LABEL] * (not is_test), *[HUB_INDEX] * (HUB_INDEX in kinds)]
    for name in wanted:
        if name not in kinds or (name in right and not right[name](kinds[name])):
            raise _no_column(where, name, [f"{other} ({kind})" for other, kind in kinds.items()])
        if table.column(name).null_count:
            raise _fault(f"{where}: empty cells in column '{name}'", "Use the data set as the hub holds it.")
    if not len(table):
        raise _no_example(where)
    first, *second = (tuple(table.column(name).to_pylist()) for name in task.hub_texts)
    indices = table.column(HUB_INDEX).to_numpy() if HUB_INDEX in kinds else np.arange(len(table))
    return Examples(
        first=first,
        second=second[0] if second else None,
        labels=None if is_test else _hub_labels(where, table.column(HUB_LABEL).to_numpy(), task),
        indices=indices.astype(np.int64),
    )


def _hub_labels(where: str, labels: np.ndarray, task: Task) -> np.ndarray:
    """[N], checked."""
    lowest, highest = (0, len(task.classes) - 1) if task.classes else (LOWEST, HIGHEST)
    wrong = np.arange(len(labels))
    if labels.dtype.kind in ("iu" if task.classes else "iuf"):
        wrong = np.flatnonzero(~((labels >= lowest) & (labels <= highest)))
    if len(wrong):
        raise _bad_label(f"{where}, row {wrong[0]}", labels[wrong[0]], task)
    return labels.astype(np.int64 if task.classes else np.float32)
