"""Runs on tasks as one table: mean and deviation over seeds, Markdown and JSON. It reads reports and runs nothing."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homodistil_ds.data.glue import TASKS
from homodistil_ds.errors import HomodistilError
from homodistil_ds.runtime.whole_files import replace_text


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One task over all its seeds. `metrics` maps `split metric` to the values of the seeds, in their order."""

    task: str
    seeds: tuple[int, ...]
    scores: tuple[float, ...]
    metrics: dict[str, tuple[float, ...]]
    learning_rates: tuple[float, ...]
    """Those that the seeds had, each once."""
    epochs: tuple[float, ...]
    seconds: float
    """Of all training loops together."""


def read_reports(folder: Path) -> list[dict[str, Any]]:
    """The complete runs below a folder, one per task and seed, each with its place as `folder`."""
    found = []
    for path in sorted(folder.glob("*/report.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        if report.get("kind") == "task" and path.parent.name == cell_name(report["task"], report["seed"]):
            found.append({**report, "folder": str(path.parent)})
    return found


def cell_name(task: str, seed: int) -> str:
    return f"{task}-{seed}"


def cells(reports: Iterable[Mapping[str, Any]]) -> list[Cell]:
    """In the order of the GLUE table."""
    by_task: dict[str, list[Mapping[str, Any]]] = {name: [] for name in TASKS}
    for report in reports:
        by_task[report["task"]].append(report)
    return [_cell(name, sorted(group, key=lambda r: r["seed"])) for name, group in by_task.items() if group]


def check_alike(reports: Sequence[Mapping[str, Any]]) -> None:
    """One table is of one model and method, and a task of one number of examples. Raises HomodistilError."""
    first = {report["task"]: report for report in reversed(reports)}
    for report in reports:
        for name, other in (
            ("model", reports[0]),
            ("method", reports[0]),
            ("train_examples", first[report["task"]]),
        ):
            if report[name] != other[name]:
                raise HomodistilError(
                    "CFG-USED-DIR",
                    f"{report['folder']} has the {name} {report[name]}, {other['folder']} has {other[name]}",
                    "Give every model and method an --output_dir of its own.",
                    "Both runs are complete and stay as they are.",
                )


def _cell(task: str, group: Sequence[Mapping[str, Any]]) -> Cell:
    first = group[0]
    names = [(split, metric) for split, values in first["metrics"].items() for metric in values]
    return Cell(
        task=task,
        seeds=tuple(report["seed"] for report in group),
        scores=tuple(report["primary"] for report in group),
        metrics={f"{s} {m}": tuple(report["metrics"][s][m] for report in group) for s, m in names},
        learning_rates=tuple(sorted({report["learning_rate"] for report in group})),
        epochs=tuple(sorted({report["epochs"] for report in group})),
        seconds=sum(report["loop_seconds"] for report in group),
    )


def spread(values: Sequence[float]) -> str:
    """In hundredths: the mean, and the deviation of a sample of at least two."""
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def markdown(name: str, found: Sequence[Cell]) -> str:
    lines = ["| task | score | metrics | seeds | learning rate | epochs |", "|:--|--:|:--|--:|--:|--:|"]
    for cell in found:
        metrics = ", ".join(f"{metric} {spread(values)}" for metric, values in cell.metrics.items())
        rates, epochs = (", ".join(f"{value:g}" for value in values) for values in (cell.learning_rates, cell.epochs))
        facts = f"{len(cell.seeds)} | {rates} | {epochs}"
        lines.append(f"| {cell.task} | {spread(cell.scores)} | {metrics} | {facts} |")
    mean = statistics.mean(statistics.mean(cell.scores) for cell in found)
    lines.append(f"| mean of {len(found)} | {100 * mean:.1f} | | | | |")
    note = "Scores in hundredths, mean ± standard deviation over seeds, on the development sets."
    return "\n".join([f"# {name}", "", note, "", *lines]) + "\n"


def write_table(folder: Path, name: str) -> str | None:
    """glue.json, glue.md and submission/ from the complete runs below `folder`; returns the page, None without runs.

    One process at a time: a run that is complete is in the table of whoever writes it last.
    """
    if not any(folder.glob("*/report.json")):
        return None
    with (folder / ".table").open("w") as lock:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        return _write_table(folder, name)


def _write_table(folder: Path, name: str) -> str | None:
    reports = read_reports(folder)
    if not reports:
        return None
    check_alike(reports)
    found = cells(reports)
    page = markdown(name, found)
    values = [{**vars(cell), "mean": statistics.mean(cell.scores)} for cell in found]
    replace_text(folder / "glue.json", json.dumps({"model": name, "tasks": values}, indent=2) + "\n")
    replace_text(folder / "glue.md", page)
    _collect_predictions(folder, reports)
    return page


def _collect_predictions(folder: Path, reports: Iterable[Mapping[str, Any]]) -> None:
    """Of each task, the predictions of the seed with the best score on the development set."""
    best: dict[str, Mapping[str, Any]] = {}
    for report in reports:
        if report["task"] not in best or report["primary"] > best[report["task"]]["primary"]:
            best[report["task"]] = report
    for report in best.values():
        for path in sorted(Path(report["folder"], "predictions").glob("*.tsv")):
            (folder / "submission").mkdir(exist_ok=True)
            shutil.copyfile(path, folder / "submission" / path.name)
