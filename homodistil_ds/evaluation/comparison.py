"""Finished runs side by side, as a page of tables. Pure: it reads no files, draws nothing and measures nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from homodistil_ds.evaluation.finished import FamilyMember, Finished, LanguageRun, TaskRun
from homodistil_ds.evaluation.page import Block, Code, Line, Page, Picture, Table
from homodistil_ds.evaluation.report import LOADERS, NONE, ModelRow, duration_text, perplexity

Row = TypeVar("Row")
Column = tuple[str, Callable[[Row], str | None]]  # its title, and its cell of a row, None where there is no value
OTHER_CORPORA = "Not all of these runs have the same corpus: held-out figures compare only where it is the same."
NOT_SETTINGS = ("output_dir",)  # differs by necessity


@dataclass(frozen=True, kw_only=True)
class Latency:
    """`labels` are those of the measured models; `measured` is what plain.latencies says of them."""

    labels: Sequence[str]
    measured: Mapping[str, Any]


def comparison(
    runs: Sequence[Finished], title: str, pictures: Mapping[str, str], latency: Latency | None = None
) -> Page:
    """The whole page; `pictures` maps names of images to captions."""
    language = [run for run in runs if isinstance(run, LanguageRun)]
    tasks = [run for run in runs if isinstance(run, TaskRun)]
    sections: dict[str, Sequence[Block]] = {}
    if language:
        warned = [Line(OTHER_CORPORA)] if len({run.corpus for run in language}) > 1 else []
        sections["Runs"] = [language_table(language), *warned]
    if tasks:
        sections["Task runs"] = [task_table(tasks)]
    if any(run.family for run in runs):
        sections["Families"] = [families_table(runs)]
    if pictures:
        sections["Figures"] = [Picture(name, caption) for name, caption in pictures.items()]
    if latency:
        sections["Latency"] = [latency_table(latency), Line(_conditions(latency))]
    if any(run.saved for run in runs):
        sections["How to load"] = [Code(_loading([run for run in runs if run.saved]))]
    sections["Facts"] = [facts_table(runs)]
    sections["What differs between the runs' settings"] = [differences(runs)]
    return Page(title=title, sections=sections)


def language_table(runs: Sequence[LanguageRun]) -> Table:
    """One row per run, after one for each different teacher."""
    rows: list[tuple[str, ModelRow, LanguageRun | None]] = []
    for run in runs:
        known = [_identity(row) for _, row, owner in rows if owner is None]
        if run.teacher and _identity(run.teacher) not in known:
            rows.append((f"teacher of {run.label}", run.teacher, None))
    if len(rows) == 1 and all(run.teacher for run in runs):
        rows[0] = ("teacher", *rows[0][1:])
    rows += [(run.label, run.student, run) for run in runs]
    causal = all(run.loader == LOADERS["causal"] for run in runs)
    columns: list[Column[tuple[str, ModelRow, LanguageRun | None]]] = [
        ("run", lambda row: row[0]),
        ("method", lambda row: row[2].method if row[2] else None),
        ("hidden / ffn / heads x size", lambda row: _widths(row[1].widths)),
        ("layers", lambda row: _count(row[1].widths.get("num_hidden_layers"))),
        ("parameters", lambda row: _count(row[1].parameters)),
        ("without embeddings", lambda row: _count(row[1].parameters_without_embeddings)),
        ("weights file (MiB)", lambda row: _fixed(row[1].file_bytes / 2**20 or None, 2)),
        ("held-out loss (nats)", lambda row: _fixed(row[1].heldout_loss, 4)),
        ("perplexity", lambda row: _perplexity(row[1].heldout_loss) if causal else None),
        ("discrepancy KL (nats)", lambda row: _fixed(row[1].discrepancy_kl, 4)),
        ("steps", lambda row: _count(row[2].steps) if row[2] else None),
        ("tokens", lambda row: _count(row[2].tokens) if row[2] else None),
        ("wall time", lambda row: _duration(row[2].wall_seconds) if row[2] else None),
        ("FLOPs of training", lambda row: _flops(row[2].train_flops) if row[2] else None),
        ("training loop", lambda row: _duration(row[2].loop_seconds) if row[2] else None),
    ]
    return _table(columns, rows, names=3)


def families_table(runs: Sequence[Finished]) -> Table:
    """One row per student that a run left behind on its way."""
    rows = [(run, member) for run in runs for member in run.family]
    columns: list[Column[tuple[Finished, FamilyMember]]] = [
        ("run", lambda row: row[0].label),
        ("scores of", lambda row: row[0].scored_on if isinstance(row[0], TaskRun) else None),
        ("scale", lambda row: f"{row[1].scale:g}"),
        ("parameters", lambda row: _count(row[1].parameters)),
        ("held-out loss (nats)", lambda row: _fixed(row[1].heldout_loss, 4)),
        ("discrepancy KL (nats)", lambda row: _fixed(row[1].discrepancy_kl, 4)),
        ("score", lambda row: _fixed(row[1].score, 4)),
        ("trade-off", lambda row: _fixed(row[1].trade_off, 4)),
    ]
    return _table(columns, rows, names=1)


def task_table(runs: Sequence[TaskRun]) -> Table:
    """One row per run, one column per split and metric that some run has; their own score first."""
    found = dict.fromkeys((split, metric) for run in runs for split, values in run.metrics.items() for metric in values)

    def value(split: str, metric: str) -> Callable[[TaskRun], str | None]:
        return lambda run: _fixed(run.metrics.get(split, {}).get(metric), 4)

    columns: list[Column[TaskRun]] = [
        ("run", lambda run: run.label),
        ("method", lambda run: run.method),
        ("task", lambda run: run.task),
        ("score", lambda run: _fixed(run.primary, 4)),
        *((f"{split} {metric}", value(split, metric)) for split, metric in found),
        ("parameters", lambda run: _count(run.parameters)),
        ("train examples", lambda run: _count(run.train_examples)),
        ("steps", lambda run: _count(run.steps)),
        ("training loop", lambda run: _duration(run.loop_seconds)),
    ]
    return _table(columns, runs, names=3)


def _perplexity(loss: float | None) -> str | None:
    return None if loss is None else _fixed(perplexity(loss), 2)


def _flops(value: float | None) -> str | None:
    return None if value is None else f"{value:.2e}"


def latency_table(latency: Latency) -> Table:
    """Median milliseconds per call and sequences per second of every model at every batch size."""
    header, rows = ["model"], [[label] for label in latency.labels]
    for batch, seconds in latency.measured["seconds"].items():
        header += [f"batch {batch}: ms per call", "sequences/s"]
        for row, taken in zip(rows, seconds, strict=True):
            row += [f"{1000 * taken:,.2f}", f"{int(batch) / taken:,.1f}"]
    return Table(header=header, rows=rows)


def _conditions(latency: Latency) -> str:
    threads, length, load, cores = (latency.measured[name] for name in ("threads", "length", "load", "cores"))
    return (
        f"CPU, {threads} thread(s), {length} tokens per sequence, float32, layers without a head. The models took "
        f"turns in one process; medians. Load average before: {load:.1f} on {cores} cores."
    )


def facts_table(runs: Sequence[Finished]) -> Table:
    names = dict.fromkeys(name for run in runs for name in run.versions)
    columns: list[Column[Finished]] = [
        ("run", lambda run: run.label),
        ("folder", lambda run: str(run.folder)),
        ("seed", lambda run: None if run.seed is None else str(run.seed)),
        *((name, lambda run, name=name: run.versions.get(name)) for name in names),
    ]
    return _table(columns, runs, names=2)


def differences(runs: Sequence[Finished]) -> Block:
    """The settings of run_config.json that are not the same in all runs, a row each."""
    names = dict.fromkeys(name for run in runs for name in run.settings if name not in NOT_SETTINGS)
    rows = [[name, *(run.settings.get(name, NONE) for run in runs)] for name in names]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    if not rows:
        return Line("Nothing." if len(runs) > 1 else "There is one run only.")
    return Table(header=["setting", *(run.label for run in runs)], rows=rows)


def _loading(runs: Sequence[Finished]) -> str:
    classes = {run.label: run.loader for run in runs}
    lines = [f"from transformers import {', '.join(sorted(set(classes.values())))}, AutoTokenizer", ""]
    for run in runs:
        lines.append(f"model = {classes[run.label]}.from_pretrained({json.dumps(str(run.saved))})")
    return "\n".join([*lines, "# AutoTokenizer.from_pretrained takes the same folder"])


def _table(columns: Sequence[Column[Row]], rows: Sequence[Row], names: int) -> Table:
    """A column is left out where no row has a value, if it is not one of the names."""
    cells = [[cell(row) for row in rows] for _, cell in columns]
    shown = [place for place, column in enumerate(cells) if place < names or any(cell is not None for cell in column)]
    return Table(
        header=[columns[place][0] for place in shown],
        rows=[[cells[place][row] or NONE for place in shown] for row in range(len(rows))],
        names=names,
    )


def _identity(row: ModelRow) -> ModelRow:
    """A teacher's row without what is measured anew in every run."""
    return replace(row, tokens_per_second=None)


def _widths(widths: Mapping[str, int]) -> str:
    sizes = (widths.get(name) for name in ("hidden_size", "intermediate_size", "num_attention_heads", "head_size"))
    hidden, ffn, heads, size = (_count(value) or "?" for value in sizes)
    return f"{hidden} / {ffn} / {heads} x {size}"


def _count(value: int | None) -> str | None:
    return None if value is None else f"{value:,}"


def _fixed(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:,.{digits}f}"


def _duration(seconds: float | None) -> str | None:
    return None if seconds is None else duration_text(seconds)
