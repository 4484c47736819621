"""The pictures of a run as matplotlib Figures of about 900 x 500 px. Pure: no pyplot state, no files.

Legend: N neurons of a group, C drawn columns (at most MAX_COLUMNS), S layers that have the group.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from homodistil_ds.evaluation.report import MemberRow, ModelRow
from homodistil_ds.evaluation.task_report import TaskMember
from homodistil_ds.pruning.family import would_teach

# Okabe and Ito's palette, without its yellow, which is too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
KEPT = LinearSegmentedColormap.from_list("kept", ["#F3E9DA", "#7FA6C0", "#0B3C5D"])
MAX_COLUMNS = 512
SET_NAMES = {
    "hidden": "hidden (residual stream)",
    "ffn": "ffn (feed-forward)",
    "qk": "qk (query and key)",
    "vo": "vo (value and output)",
}


def width_curve(steps: Sequence[int], widths: Mapping[str, Sequence[int]], target: Mapping[str, int]) -> Figure:
    """One panel per width: its size over the steps, and the target size as a dotted line.

    Each width has its own axis because sizes of 8 and of 3072 share no readable scale.
    """
    figure = blank()
    columns = 1 if len(widths) < 3 else 2
    rows = max(1, -(-len(widths) // columns))
    for place, (name, sizes) in enumerate(widths.items()):
        axes = figure.add_subplot(rows, columns, place + 1)
        tidy(axes)
        axes.step(steps, sizes, where="post", color=COLOURS[0], linewidth=2)
        bounds = [0, *sizes]
        if name in target:
            axes.axhline(target[name], color=COLOURS[1], linestyle=":", linewidth=2)
            bounds.append(target[name])
        axes.set_ylim(0, max(bounds) * 1.1 or 1)
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], integer=True))
        change = f": {sizes[0]:,} → {sizes[-1]:,}" if len(sizes) else ""
        axes.set_title(name + change, fontsize=10, loc="left")
        axes.set_ylabel("size (neurons)" if name.endswith("_size") else "size (count)")
        if place + columns >= len(widths):
            axes.set_xlabel("optimizer step")
    handles = [
        Line2D([], [], color=COLOURS[0], linewidth=2, label="kept"),
        Line2D([], [], color=COLOURS[1], linewidth=2, linestyle=":", label="target"),
    ]
    figure.suptitle("Widths of the student", fontsize=12)
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    return figure


def mask_heatmap(kept: Mapping[str, np.ndarray]) -> Figure:
    """Which neurons are kept: one panel per set kind, layer by neuron, dark where kept.

    `kept` maps a group name ("hidden", "ffn.0", "qk.3") to bool [N]. A set of more than MAX_COLUMNS neurons is drawn
    in that many columns, each showing the kept share of the neurons it stands for.
    """
    kinds: dict[str, dict[int, np.ndarray]] = {}
    for name, mask in kept.items():
        kind, _, layer = name.partition(".")
        kinds.setdefault(kind, {})[int(layer or 0)] = np.asarray(mask, dtype=float)
    figure = blank()
    heights = [1.0 if len(layers) == 1 else 3.0 for layers in kinds.values()]
    grid = figure.add_gridspec(max(1, len(kinds)), 1, height_ratios=heights or None)
    image, panels = None, []
    for row, (kind, layers) in enumerate(kinds.items()):
        axes = figure.add_subplot(grid[row])
        panels.append(axes)
        size = max(mask.size for mask in layers.values())
        numbers = sorted(layers)
        columns = np.stack([kept_columns(layers[n], size) for n in numbers])  # [S, C]
        image = axes.imshow(
            columns,
            cmap=KEPT,
            vmin=0,
            vmax=1,
            aspect="auto",
            interpolation="nearest",
            extent=(0, columns.shape[1] * column_neurons(size), len(numbers), 0),
        )
        axes.set_xlim(0, size)
        share = np.mean(np.concatenate([layers[n] for n in numbers]))
        extent = f"{len(numbers)} x {size:,}" if len(numbers) > 1 else f"{size:,}"
        axes.set_title(f"{SET_NAMES.get(kind, kind)}: {share:.0%} of {extent} kept", fontsize=10, loc="left")
        if kind == "hidden":
            axes.set_yticks([])
        else:
            shown = range(0, len(numbers), max(1, len(numbers) // 6))
            axes.set_yticks([n + 0.5 for n in shown], [str(numbers[n]) for n in shown])
            axes.set_ylabel("layer")
            for n in range(1, len(numbers)):
                axes.axhline(n, color="white", linewidth=0.8)
        axes.tick_params(labelsize=8)
    if image is not None:
        panels[-1].set_xlabel("neuron (index in its set)")
        figure.colorbar(image, ax=panels, label="kept share (0 masked, 1 kept)", pad=0.01, aspect=30)
    figure.suptitle("Kept neurons", fontsize=12)
    return figure


def kept_columns(mask: np.ndarray, size: int) -> np.ndarray:
    """Kept share per drawn column, [C], of a mask [N]; NaN where a mask shorter than `size` has ended.

    Every column stands for the same number of neurons, but for the last one, so that no part looks smoother than
    another.
    """
    padded = np.full(size, np.nan)
    padded[: mask.size] = mask
    each = column_neurons(size)
    return np.array([padded[start : start + each].mean() for start in range(0, size, each)])


def column_neurons(size: int) -> int:
    """Neurons per drawn column, the fewest that need no more than MAX_COLUMNS."""
    return max(1, -(-size // MAX_COLUMNS))


def loss_curves(steps: Sequence[int], series: Mapping[str, Sequence[float]]) -> Figure:
    """Loss terms over the steps on a log axis; what is not positive and finite is left out."""
    figure = blank()
    axes = figure.add_subplot()
    tidy(axes)
    styles = itertools.product(("-", "--", ":"), COLOURS)
    for (name, values), (dash, colour) in zip(series.items(), styles, strict=False):
        points = np.asarray(values, dtype=float)
        points = np.where(np.isfinite(points) & (points > 0), points, np.nan)
        if np.isnan(points).all():
            continue
        bold = name.rsplit("/", 1)[-1] == "total"
        axes.plot(steps, points, dash, color=colour, linewidth=2.4 if bold else 1.4, label=name)
    if axes.lines:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(_plain))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: _minor_label(axes, value)))
        figure.legend(loc="outside right upper", frameon=False, title="loss term")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("training loss (log scale; mlm and kl in nats)")
    axes.set_title("Loss terms")
    return figure


def discrepancy_curve(steps: Sequence[int], kl: Sequence[float], hidden_size: Sequence[int]) -> Figure:
    """Held-out KL between teacher and student over the steps, with the kept hidden size on a second axis."""
    figure = blank()
    axes = figure.add_subplot()
    tidy(axes)
    width_axes = axes.twinx()
    (size_line,) = width_axes.step(
        steps, hidden_size, where="post", color=COLOURS[1], linestyle="--", linewidth=1.6, label="kept hidden size"
    )
    (kl_line,) = axes.plot(steps, kl, marker="o", markersize=4, color=COLOURS[0], linewidth=2, label="held-out KL")
    axes.set_zorder(width_axes.get_zorder() + 1)
    axes.patch.set_visible(False)
    axes.set_ylim(bottom=0)
    width_axes.set_ylim(0, max([1, *hidden_size]) * 1.1)
    width_axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
    width_axes.spines[["top", "left"]].set_visible(False)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("KL(teacher, student) at masked positions (nats)", color=COLOURS[0])
    width_axes.set_ylabel("kept hidden size (neurons)", color=COLOURS[1])
    figure.legend(handles=[kl_line, size_line], loc="outside lower center", ncols=2, frameon=False)
    axes.set_title("Discrepancy between teacher and student")
    return figure


def family_curve(teacher: ModelRow | None, family: Sequence[MemberRow]) -> Figure:
    """Held-out loss against parameters, a point for each student with its scale, the teacher hollow; below it the
    trade-off against the scale, filled where it is the best of those that may teach."""
    figure = blank(7)
    loss, worth = figure.add_subplot(2, 1, 1), figure.add_subplot(2, 1, 2)
    for axes in (loss, worth):
        framed(axes)
    sizes, losses = [row.parameters / 1e6 for row in family], [row.heldout_loss for row in family]
    loss.plot(sizes, losses, "o-", color=COLOURS[0], linewidth=1.6, label="students of this run")
    for row, size, value in zip(family, sizes, losses, strict=True):
        loss.annotate(f"{row.scale:g}", (size, value), xytext=(4, 5), textcoords="offset points", fontsize=9)
    if teacher is not None:
        loss.plot(teacher.parameters / 1e6, teacher.heldout_loss, "o", mfc="none", mec="#666666", label="teacher")
    loss.set_xlim(left=0)
    loss.set_xlabel("parameters (millions)")
    loss.set_ylabel("held-out loss (nats)")
    loss.legend(frameon=False)
    scales, values = [row.scale for row in family], [row.trade_off for row in family]
    worth.plot(scales, values, "o-", color=COLOURS[1], mfc="white", linewidth=1.6)
    if (best := would_teach(values)) is not None:
        worth.plot(scales[best], values[best], "o", color=COLOURS[1])
    worth.set_xlabel("scale (kept share of the layers' matrices)")
    worth.set_ylabel("trade-off")
    return figure


def members_curve(family: Sequence[TaskMember], history: Sequence[Mapping[str, float]]) -> Figure:
    """Score against parameters, a point for each student with its scale; below it the trade-offs over the steps."""
    figure = blank(7)
    score, worth = figure.add_subplot(2, 1, 1), figure.add_subplot(2, 1, 2)
    framed(score)
    score.plot([row.parameters / 1e6 for row in family], [row.score for row in family], "o-", color=COLOURS[0])
    for row in family:
        where = (row.parameters / 1e6, row.score)
        score.annotate(f"{row.scale:g}", where, xytext=(4, 5), textcoords="offset points", fontsize=9)
    score.set_xlim(left=0)
    score.set_xlabel("parameters (millions)")
    score.set_ylabel("score")
    tidy(worth)
    styles = itertools.cycle((colour, dash) for dash in ("-", "--") for colour in COLOURS)
    for row, (colour, dash) in zip(family, styles, strict=False):
        name = f"trade_off/{row.scale:g}"
        points = [(line["step"], line[name]) for line in history if name in line]
        worth.plot(*zip(*points, strict=True), dash, color=colour, marker=".", label=f"{row.scale:g}")
    worth.set_xlabel("optimizer step")
    worth.set_ylabel("trade-off")
    worth.legend(title="scale", frameon=False, ncols=4, fontsize=8)
    return figure


def blank(height: float = 5) -> Figure:
    """An empty figure, 9 inches wide."""
    figure = Figure(figsize=(9, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def framed(axes: Axes) -> None:
    """A light grid behind what is drawn, no box around it."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#E3E3E3", linewidth=0.8)
    axes.set_axisbelow(True)


def tidy(axes: Axes) -> None:
    """The same over optimizer steps."""
    framed(axes)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))


def _plain(value: float, _position: int | None) -> str:
    return f"{value:g}"


def _minor_label(axes: Axes, value: float) -> str:
    """Label between the powers of ten only where the axis spans too few of them to be read."""
    low, high = axes.get_ylim()
    shown = "23456789" if high / low < 10 else "235" if high / low < 50 else ""
    return f"{value:g}" if f"{value:e}"[0] in shown else ""
