"""The pictures of several runs as matplotlib Figures: one colour per run in all of them. Pure, no pyplot state."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from homodistil_ds.evaluation.figures import COLOURS, blank, framed, tidy
from homodistil_ds.evaluation.finished import Finished, LanguageRun, TaskRun

CAPTIONS = {
    "progress": "Held-out loss, discrepancy from the teacher and hidden width over the steps",
    "losses": "Training figures over the steps, each as the run logged it",
    "sizes": "Held-out loss against parameters",
    "families": "The students that each run left behind on its way, against their parameters",
}
TERMS = ("total", "mlm", "kl", "hidden", "attention", "embedding")  # drawn first, in this order
MAX_PANELS = 9
TEACHER_COLOUR = "#666666"
Series = tuple[list[float], list[float]]


def comparison_figures(runs: Sequence[Finished]) -> dict[str, Figure]:
    """Name -> figure, of those that have something to show."""
    drawn = {"progress": progress(runs), "losses": losses(runs), "sizes": sizes(runs), "families": families(runs)}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def progress(runs: Sequence[Finished]) -> Figure | None:
    """Panels over one axis of steps; of a run's end its report is drawn too, which its history may lack.

    Widths are drawn where they move or differ.
    """
    panels: list[tuple[str, Callable[[Finished], Series], dict[str, Any]]] = [
        ("held-out loss (nats)", lambda run: _evaluated(run, "heldout_loss"), {"marker": "o", "markersize": 3}),
        ("KL from the teacher (nats)", lambda run: _evaluated(run, "discrepancy_kl"), {"marker": "o", "markersize": 3}),
    ]
    if len({width for run in runs for width in run.series("kept_hidden")[1]}) > 1:
        panels.append(("hidden width (neurons)", lambda run: run.series("kept_hidden"), {"drawstyle": "steps-post"}))
    shown = [panel for panel in panels if any(panel[1](run)[0] for run in runs)]
    if not shown:
        return None
    figure = blank(1 + 2.6 * len(shown) + _legend_height(runs))
    first: Axes | None = None
    for place, (label, series, style) in enumerate(shown):
        axes = figure.add_subplot(len(shown), 1, place + 1, sharex=first)
        first = first or axes
        tidy(axes)
        for run, (colour, dash) in zip(runs, _styles(), strict=False):
            axes.plot(*series(run), dash, color=colour, linewidth=1.6, **style)
        axes.set_ylabel(label)
        if label.startswith(("hidden", "KL")):
            axes.set_ylim(bottom=0)
    axes.set_xlabel("optimizer step")
    _legend(figure, runs)
    return figure


def _evaluated(run: Finished, name: str) -> Series:
    steps, values = run.series(name)
    final = getattr(run.student, name) if isinstance(run, LanguageRun) else None
    if final is not None and run.steps not in steps:
        return [*steps, run.steps], [*values, final]
    return steps, values


def losses(runs: Sequence[Finished]) -> Figure | None:
    """A panel for every logged figure that is no size and no held-out one, up to MAX_PANELS."""
    others = {"step", "heldout_loss", "discrepancy_kl"}
    logged = dict.fromkeys(name for run in runs for row in run.history for name in row)
    # A name with a slash is a figure of one of several nested students.
    names = [name for name in logged if name not in others and not name.startswith("kept_") and "/" not in name]
    names = sorted(names, key=lambda name: TERMS.index(name) if name in TERMS else len(TERMS))[:MAX_PANELS]
    if not names:
        return None
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = blank(0.6 + 2.4 * rows + _legend_height(runs))
    for place, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, place + 1)
        tidy(axes)
        for run, (colour, dash) in zip(runs, _styles(), strict=False):
            axes.plot(*run.series(name), dash, color=colour, linewidth=1.4)
        axes.set_title(_plain(name), fontsize=10, loc="left")
        if place + columns >= len(names):
            axes.set_xlabel("optimizer step")
    _legend(figure, runs)
    return figure


def sizes(runs: Sequence[Finished]) -> Figure | None:
    """Parameters against held-out loss: a filled point for each student, a hollow grey one for each teacher."""
    language = [(run, style) for run, style in zip(runs, _styles(), strict=False) if isinstance(run, LanguageRun)]
    language = [(run, style) for run, style in language if run.student.heldout_loss is not None]
    if not language:
        return None
    figure = blank(4.5 + _legend_height(runs))
    axes = figure.add_subplot()
    framed(axes)
    for run, (colour, _) in language:
        for model, filled in ((run.teacher, False), (run.student, True)):
            if model is not None and model.heldout_loss is not None:
                face, edge = (colour, colour) if filled else ("none", TEACHER_COLOUR)
                axes.plot(model.parameters / 1e6, model.heldout_loss, "o", markersize=8, mfc=face, mec=edge)
    axes.set_xlim(left=0)
    axes.set_xlabel("parameters (millions)")
    axes.set_ylabel("held-out loss (nats)")
    _legend(figure, [run for run, _ in language], [style for _, style in language], hollow=True)
    return figure


def families(runs: Sequence[Finished]) -> Figure | None:
    """A panel for held-out losses and one for the scores of every task and split, a line for each run that left several
    students behind."""
    panels: dict[str, list[tuple[Finished, tuple[str, str]]]] = {}
    for run, style in zip(runs, _styles(), strict=False):
        if run.family:
            label = f"score: {run.scored_on}" if isinstance(run, TaskRun) else "held-out loss (nats)"
            panels.setdefault(label, []).append((run, style))
    if not panels:
        return None
    drawn = [(run, style) for run, style in zip(runs, _styles(), strict=False) if run.family]
    figure = blank(0.8 + 3.4 * len(panels) + _legend_height([run for run, _ in drawn]))
    for place, (label, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(len(panels), 1, place + 1)
        framed(axes)
        for run, (colour, dash) in lines:
            axes.plot(*_points_of(run), dash, color=colour, marker="o", markersize=5, linewidth=1.4)
        axes.set_xlim(left=0)
        axes.set_ylabel(label)
    axes.set_xlabel("parameters (millions)")
    _legend(figure, [run for run, _ in drawn], [style for _, style in drawn])
    return figure


def _points_of(run: Finished) -> tuple[list[float], list[float]]:
    """Millions of parameters of its students, and what they are measured by: a score on a task, else a loss."""
    values = [(row, row.score if isinstance(run, TaskRun) else row.heldout_loss) for row in run.family]
    known = [(row.parameters / 1e6, value) for row, value in values if value is not None]
    return [x for x, _ in known], [y for _, y in known]


def _styles() -> itertools.cycle[tuple[str, str]]:
    """Colour and dash of each run in turn."""
    return itertools.cycle((colour, dash) for dash in ("-", "--", ":") for colour in COLOURS)


def _legend_height(runs: Sequence[Finished]) -> float:
    return 0.22 * -(-len(runs) // 2)


def _legend(
    figure: Figure,
    runs: Sequence[Finished],
    styles: Sequence[tuple[str, str]] | None = None,
    hollow: bool = False,
) -> None:
    lines = [
        Line2D([], [], color=colour, ls="none" if hollow else dash, marker="o" * hollow, label=_plain(run.label))
        for run, (colour, dash) in zip(runs, styles or _styles(), strict=False)
    ]
    if hollow:
        lines.append(Line2D([], [], color=TEACHER_COLOUR, mfc="none", ls="none", marker="o", label="a teacher"))
    figure.legend(handles=lines, loc="outside lower center", ncols=2, frameon=False)


def _plain(text: str) -> str:
    """A text that matplotlib takes as it is: dollars begin formulas there, a first underscore hides a label."""
    text = " ".join(text.split())
    short = text if len(text) <= 60 else f"{text[:28]} ... {text[-28:]}"
    return (" " if short.startswith("_") else "") + short.replace("$", r"\$")
