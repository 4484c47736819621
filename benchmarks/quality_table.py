"""The tables and the figure of benchmarks/quality.py, from the run directories in its folder. It runs nothing."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from quality_arms import FIRST_LAYERS, FULL_METHOD, THESIS, folder_of

from homodistil_ds.data.glue import TASKS
from homodistil_ds.evaluation.glue_table import spread

Row = dict[str, Any]
Runs = dict[str, list[Row]]  # task -> a row for each seed
# Folder -> what the table calls it.
ON_TASKS = {
    "teacher": "teacher",
    "fine-tuning": "fine-tuning",
    "KD": "KD",
    "MixKD": "MixKD",
    "KD-twice": "KD, twice the epochs",
}
GAIN = "MixKD - KD, seed by seed"
OF_MIXKD = (
    f"The student is '{FULL_METHOD}'. Scores on the development sets in hundredths, mean ± standard deviation over "
    "seeds; in brackets the CPU seconds of one training, without its teacher's and without evaluation. MixKD shows a "
    "mixture beside every example, twice the rows. With all examples one teacher, of seed 0, teaches all seeds; with "
    "fewer, each seed has a teacher of its own, which has seen the same examples."
)


def write(folder: Path) -> str:
    """quality.md, quality.json and discrepancy.png; returns the page."""
    arms = read(folder / "distil")
    glue = {path.name: runs_of(path) for path in sorted((folder / "glue").glob("*")) if path.is_dir()}
    mixed = {
        (path.parent.name, path.name): runs_of(path) for path in sorted((folder / "mixkd").glob("*/*")) if path.is_dir()
    }
    settings = folder / "settings.json"
    said = caption(json.loads(settings.read_text(encoding="utf-8"))) if settings.exists() else ""
    parts = [said, main_table(arms, glue), ablation_table(arms), mixkd_table(mixed)]
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
            "train_cpu_seconds": training_seconds(report),
            "train_seconds": report["loop_seconds"] - report["measured_seconds"],
            "teacher": {name: report["teacher"][name] for name in ("parameters", "heldout_loss", "widths")},
            "curve": [[row["step"], row["discrepancy_kl"]] for row in report["history"] if "discrepancy_kl" in row],
        }
    return found


def training_seconds(report: Mapping[str, Any]) -> float:
    """CPU seconds, without evaluations along the way, with the ranking of neurons that nested students begin with."""
    ranked: float = report.get("ranked_cpu_seconds", 0.0)
    return report["loop_cpu_seconds"] - report["measured_cpu_seconds"] + ranked


def runs_of(folder: Path) -> Runs:
    """The score and the cost of every complete run on a task in a folder."""
    found: Runs = {}
    for path in sorted(folder.glob("*/report.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        row = {name: report[name] for name in ("seed", "primary", "epochs", "steps")}
        row["train_cpu_seconds"] = training_seconds(report)
        found.setdefault(report["task"], []).append(row)
    return found


def caption(settings: Mapping[str, Any]) -> str:
    """What all rows have in common."""
    steps, batch, length = (settings[name] for name in ("steps", "batch", "sequence_length"))
    teacher, sources = name_of(settings["teacher"]), ", ".join(map(name_of, settings["corpus"]))
    rates = ", ".join(f"{rate:g}" for rate in settings["rates"])
    lines = [
        f"Teacher {teacher}, corpus {sources}; every student has {steps} steps of {batch} x "
        f"{length} tokens ({steps * batch * length / 1e6:.2f} M) in the same order, at the best for its own objective, "
        f"in short trials, of the peak rates {rates}. Held-out figures: {settings['held_out_sequences']} sequences, "
        "float32, nats. CPU and wall seconds are those of training alone, in one process with one thread.",
    ]
    if settings["data"]:
        shares = [f"{task} with {share:.0%} of its training examples" for task, share in settings["shares"].items()]
        epochs = ", ".join(f"{task} {count:.3g}" for task, count in settings["epochs_on_tasks"].items())
        seeds = ", ".join(map(str, settings["seeds"]))
        lines.append(
            f"GLUE: development sets, in hundredths, mean ± standard deviation over seeds {seeds}; fine-tuned alike at "
            f"rate {settings['learning_rate']:g}, epochs: {epochs}; {', '.join(shares)}. Only the row of PKD is "
            "distilled on the tasks; the row above it is fine-tuned from the same start."
        )
    return "\n".join(lines)


def main_table(arms: dict[str, Row], glue: dict[str, Runs]) -> str:
    """The teacher, then the arms in the order of their parameters; ablations are left to their own table."""
    tasks = [name for name in TASKS if any(name in cells for cells in glue.values())]
    own = [name for name, row in arms.items() if row["kind"] in ("arm", "start")]
    if not own:
        return ""
    heads = ["student", "layers x hidden / ffn", "parameters (M)", "without embeddings and head (M)", "rate"]
    heads += ["held-out loss", "KL", *tasks, *(["mean"] if tasks else []), "TFLOPs", "CPU s", "wall s"]
    lines = [line(heads), "|:--|:--|" + "--:|" * (len(heads) - 2)]
    teacher, layers = (arms[own[0]][name] for name in ("teacher", "parameters_of_layers"))
    sizes = [form(teacher["widths"]), millions(teacher["parameters"]), millions(layers["teacher"])]
    cells = on_tasks(glue.get("teacher", {}), tasks)
    lines.append(line(["teacher", *sizes, "", f"{teacher['heldout_loss']:.3f}", "0", *cells, "", "", ""]))
    for name in sorted(own, key=lambda name: -arms[name]["parameters"]):
        row = arms[name]
        lines.append(student_line(row, row["name"], on_tasks(glue.get(name, {}), tasks)))
        if row["name"] == FIRST_LAYERS and "pkd" in glue:
            lines.append(student_line(row, "pkd (distilled on the task)", on_tasks(glue["pkd"], tasks)))
    return "\n".join(lines)


def student_line(row: Row, label: str, cells: Sequence[str]) -> str:
    still = row["kind"] == "start"
    sizes = [form(row["widths"]), millions(row["parameters"]), millions(row["parameters_of_layers"]["student"])]
    figures = [f"{row['heldout_loss']:.3f}", f"{row['discrepancy_kl']:.3f}"] if row["speaks"] else ["-", "-"]
    rate = "-" if still else f"{row['learning_rate']:g}{' (edge)' * row['at_edge']}"
    return line([label, *sizes, rate, *figures, *cells, *(["-", "-", "-"] if still else cost(row))])


def cost(row: Row) -> list[str]:
    return [f"{row['train_flops'] / 1e12:,.1f}", f"{row['train_cpu_seconds']:.0f}", f"{row['train_seconds']:.0f}"]


def on_tasks(runs: Runs, tasks: Sequence[str]) -> list[str]:
    """A cell per task, and, where there is any, the mean of the tasks' means if all are there."""
    if not tasks:
        return []
    shown = [spread(primary(runs[task])) if task in runs else "" for task in tasks]
    if any(task not in runs for task in tasks):
        return [*shown, ""]
    return [*shown, f"{100 * statistics.mean(statistics.mean(primary(runs[task])) for task in tasks):.1f}"]


def primary(rows: Sequence[Row]) -> list[float]:
    return [row["primary"] for row in rows]


def ablation_table(arms: dict[str, Row]) -> str:
    """One thing changed each, at the full method's rate; the first row says how far seeds alone go."""
    full = arms.get(folder_of(FULL_METHOD))
    changed = [row for row in arms.values() if row["kind"] == "ablation"]
    if full is None or not changed:
        return ""
    seeds = [full, *(row for row in arms.values() if row["kind"] == "seed")]
    label = "nothing" if len(seeds) == 1 else f"nothing, {len(seeds)} seeds: mean ± standard deviation"
    figures = [nats([row[name] for row in seeds]) for name in ("heldout_loss", "discrepancy_kl")]
    heads = ["changed", "rate", "held-out loss", "KL", "KL against the full method of the same seed"]
    heads += ["TFLOPs", "CPU s", "wall s"]
    lines = [line(heads), "|:--|" + "--:|" * (len(heads) - 1)]
    lines.append(line([label, f"{full['learning_rate']:g}", *figures, "", *cost(full)]))
    for row in changed:
        figures = [nats([row[name]]) for name in ("heldout_loss", "discrepancy_kl")]
        gap = f"{row['discrepancy_kl'] - full['discrepancy_kl']:+.3f}"
        lines.append(line([row["name"], f"{row['learning_rate']:g}", *figures, gap, *cost(row)]))
    return "\n".join(lines)


def nats(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def mixkd_table(mixed: Mapping[tuple[str, str], Runs]) -> str:
    """A row for each task and share of its examples, a column for each arm that has run."""
    places = sorted({place for place, _ in mixed})
    if not places:
        return ""
    arms = [arm for arm in ON_TASKS if any(mixed.get((place, arm)) for place in places)]
    heads = ["task", "examples", *(ON_TASKS[arm] for arm in arms), *([GAIN] if {"MixKD", "KD"} <= set(arms) else [])]
    lines = [line(heads), "|:--|" + "--:|" * (len(heads) - 1)]
    for place in places:
        task, _, share = place.rpartition("-")
        found = {arm: mixed.get((place, arm), {}).get(task, []) for arm in arms}
        gain = [gains(found["MixKD"], found["KD"])] if GAIN in heads else []
        lines.append(line([task, f"{float(share):.0%}", *map(scored, found.values()), *gain]))
    return "\n".join([*lines, "", OF_MIXKD])


def gains(rows: Sequence[Row], others: Sequence[Row]) -> str:
    """By how much the seeds that both have differ."""
    before = {row["seed"]: row["primary"] for row in others}
    differences = [row["primary"] - before[row["seed"]] for row in rows if row["seed"] in before]
    return spread(differences) if differences else ""


def scored(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    return f"{spread(primary(rows))} ({statistics.mean(row['train_cpu_seconds'] for row in rows):.0f})"


def discrepancy(arms: dict[str, Row]) -> Figure:
    """Held-out KL over the steps: where a student starts, and whether it stays near its teacher."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for row in sorted(
        (row for row in arms.values() if row["name"] in THESIS), key=lambda row: THESIS.index(row["name"])
    ):
        steps, values = zip(*row["curve"], strict=True)
        axes.plot(steps, values, marker="o", markersize=3, label=row["name"])
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("held-out KL from the teacher (nats)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def form(widths: dict[str, int]) -> str:
    return f"{widths['num_hidden_layers']} x {widths['hidden_size']} / {widths['intermediate_size']}"


def name_of(source: str) -> str:
    """Of a run's student the run's name."""
    path = Path(source)
    return path.parent.name if path.name == "student" else path.name


def millions(parameters: int) -> str:
    return f"{parameters / 1e6:.2f}"


def line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
