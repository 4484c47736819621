"""The tables and the figure of benchmarks/quality.py, from the run directories in its folder. It runs nothing."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from quality_arms import FULL_METHOD, Arm

from homodistil_ds.data.glue import TASKS
from homodistil_ds.evaluation.glue_table import spread

Row = dict[str, Any]
THESIS = ("homodistil 1/2", "one-shot 1/2", "random start 1/2", "distilbert", "plain kd")
COMPARED = ("magnitude 1/2", "one-shot 1/2")  # arms that are ablations too


def write(folder: Path) -> str:
    """quality.md, quality.json and discrepancy.png; returns the page."""
    arms = read(folder / "distil")
    glue = {path.name: scores(path) for path in sorted((folder / "glue").glob("*")) if path.is_dir()}
    mixed = {
        (path.parent.name, path.name): scores(path) for path in sorted((folder / "mixkd").glob("*/*")) if path.is_dir()
    }
    parts = [main_table(arms, glue), ablation_table(arms), mixkd_table(mixed)]
    page = "\n\n".join(part for part in parts if part) + "\n"
    facts = {"distil": arms, "glue": glue, "mixkd": {" ".join(place): cells for place, cells in mixed.items()}}
    (folder / "quality.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (folder / "quality.md").write_text(page, encoding="utf-8")
    if any(row["name"] in THESIS for row in arms.values()):
        discrepancy(arms).savefig(folder / "discrepancy.png", dpi=90)
    return page


def read(folder: Path) -> dict[str, Row]:
    """Folder name -> what its report says, of the complete runs."""
    found = {}
    for path in sorted(folder.glob("*/arm.json")):
        report = json.loads((path.parent / "report.json").read_text(encoding="utf-8"))
        found[path.parent.name] = {
            **json.loads(path.read_text(encoding="utf-8")),
            **{name: report["student"][name] for name in ("parameters", "heldout_loss", "discrepancy_kl", "widths")},
            **{name: report[name] for name in ("train_flops", "tokens", "steps")},
            "train_cpu_seconds": report["loop_cpu_seconds"] - report["measured_cpu_seconds"],
            "teacher": {name: report["teacher"][name] for name in ("parameters", "heldout_loss", "widths")},
            "curve": [[row["step"], row["discrepancy_kl"]] for row in report["history"] if "discrepancy_kl" in row],
        }
    return found


def scores(folder: Path) -> dict[str, list[float]]:
    """Task -> the primary score of each seed."""
    found: dict[str, list[float]] = {}
    for path in sorted(folder.glob("*/report.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(report["task"], []).append(report["primary"])
    return found


def main_table(arms: dict[str, Row], glue: dict[str, dict[str, list[float]]]) -> str:
    """The teacher, then the arms in the order of their parameters; ablations are left to their own table."""
    tasks = [name for name in TASKS if any(name in cells for cells in glue.values())]
    own = [name for name, row in arms.items() if row["kind"] != "ablation"]
    if not own:
        return ""
    heads = ["student", "layers x hidden / ffn", "parameters (M)", "rate", "held-out loss", "KL", *tasks, "mean"]
    heads += ["PFLOPs", "CPU s"]
    lines = [line(heads), "|:--|:--|" + "--:|" * (len(heads) - 2)]
    teacher = arms[own[0]]["teacher"]
    cells = on_tasks(glue.get("teacher", {}), tasks)
    head = ["teacher", form(teacher["widths"]), millions(teacher), "", f"{teacher['heldout_loss']:.3f}", "0"]
    lines.append(line([*head, *cells, "", ""]))
    for name in sorted(own, key=lambda name: -arms[name]["parameters"]):
        row = arms[name]
        still = row["kind"] == "start"
        figures = [f"{row['heldout_loss']:.3f}", f"{row['discrepancy_kl']:.3f}"] if row["speaks"] else ["-", "-"]
        cost = ["-", "-"] if still else [f"{row['train_flops'] / 1e15:.2f}", f"{row['train_cpu_seconds']:.0f}"]
        rate = "-" if still else f"{row['learning_rate']:g}{' (edge)' * row['at_edge']}"
        start = [row["name"], form(row["widths"]), millions(row), rate, *figures]
        lines.append(line([*start, *on_tasks(glue.get(name, {}), tasks), *cost]))
    return "\n".join(lines)


def on_tasks(cells: dict[str, list[float]], tasks: Sequence[str]) -> list[str]:
    """A cell per task, and the mean of the tasks' means if all are there."""
    shown = [spread(cells[task]) if task in cells else "" for task in tasks]
    whole = bool(tasks) and all(task in cells for task in tasks)
    return [*shown, f"{100 * statistics.mean(statistics.mean(cells[task]) for task in tasks):.1f}" if whole else ""]


def ablation_table(arms: dict[str, Row]) -> str:
    full = arms.get(Arm(name=FULL_METHOD, flags={}).folder)
    changed = [row for row in arms.values() if row["kind"] == "ablation"]
    if full is None or not changed:
        return ""
    lines = [
        "| changed | held-out loss | KL | KL against the full method | PFLOPs | CPU s |",
        "|:--|--:|--:|--:|--:|--:|",
    ]
    for row in [full, *changed, *(row for row in arms.values() if row["name"] in COMPARED)]:
        gap = "" if row is full else f"{row['discrepancy_kl'] - full['discrepancy_kl']:+.3f}"
        label = "nothing" if row is full else row["name"]
        figures = [f"{row['heldout_loss']:.3f}", f"{row['discrepancy_kl']:.3f}", gap]
        lines.append(line([label, *figures, f"{row['train_flops'] / 1e15:.2f}", f"{row['train_cpu_seconds']:.0f}"]))
    return "\n".join(lines)


def mixkd_table(mixed: dict[tuple[str, str], dict[str, list[float]]]) -> str:
    places = sorted({place for place, _ in mixed})
    if not places:
        return ""
    names = ("fine-tuning", "KD", "MixKD")
    lines = [f"| task | examples | teacher | {' | '.join(names)} |", "|:--|--:|--:|--:|--:|--:|"]
    for place in places:
        task, _, share = place.rpartition("-")
        cells = [
            spread(mixed[place, arm][task]) if mixed.get((place, arm), {}).get(task) else ""
            for arm in ("teacher", *names)
        ]
        lines.append(line([task, f"{float(share):.0%}", *cells]))
    return "\n".join(lines)


def discrepancy(arms: dict[str, Row]) -> Figure:
    """Held-out KL over the steps: where a student starts, and whether it stays near its teacher."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for row in sorted(
        (row for row in arms.values() if row["name"] in THESIS), key=lambda row: THESIS.index(row["name"])
    ):
        start = [[0, 0.0]] if row["from_teacher"] else []
        steps, values = zip(*start, *row["curve"], strict=True)
        axes.plot(steps, values, marker="o", markersize=3, label=row["name"])
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("held-out KL from the teacher (nats)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def form(widths: dict[str, int]) -> str:
    return f"{widths['num_hidden_layers']} x {widths['hidden_size']} / {widths['intermediate_size']}"


def millions(row: Row) -> str:
    return f"{row['parameters'] / 1e6:.2f}"


def line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
