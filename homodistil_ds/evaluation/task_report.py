"""The facts of a finished run on a task: report.json, report.md, and the model card of what was trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from homodistil_ds.evaluation.card import is_hub_name
from homodistil_ds.evaluation.report import duration_text, replace_json
from homodistil_ds.pruning.family import would_teach
from homodistil_ds.runtime.whole_files import replace_text


@dataclass(frozen=True, kw_only=True)
class TaskMember:
    """One of the nested students of minidisc."""

    scale: float
    """Kept share of the matrices of the layers that was asked for."""
    kept: float
    """The share that its shape keeps."""
    widths: dict[str, int]
    parameters: int
    score: float
    """As `primary` of the report."""
    trade_off: float
    """(M1) of the score."""
    folder: str
    """In the run directory."""


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    kind: str = "task"
    name: str
    method: str
    task: str
    data: str
    """Where its examples came from, as the user named it."""
    model: str
    """What learnt the task, as the user named it."""
    teacher: str | None
    parameters: int
    metrics: dict[str, dict[str, float]]
    """Split -> metric -> value of the trained model, in float32."""
    primary: float
    """The task's score: the mean of its primary metrics over the splits."""
    teacher_metrics: dict[str, dict[str, float]] | None
    steps: int
    epochs: float
    train_examples: int
    seed: int
    learning_rate: float
    wall_seconds: float
    loop_seconds: float
    """Wall time of the training loop alone on rank 0, over all starts."""
    loop_cpu_seconds: float
    measured_cpu_seconds: float
    """The part of it that evaluations along the way took."""
    ranked_cpu_seconds: float
    """What ranking a teacher's neurons took, before the loop."""
    world_size: int
    zero_stage: int
    precision: str
    versions: dict[str, str]
    history: list[dict[str, float]]
    family: list[TaskMember] = field(default_factory=list)
    """The students that learnt together, the last one among them."""


def write_task_report(report: TaskReport, run_dir: Path) -> None:
    """report.md, then report.json by rename: its presence says that the run is complete."""
    replace_text(run_dir / "report.md", _markdown(report))
    replace_json(run_dir / "report.json", asdict(report))


def score_table(metrics: Mapping[str, Mapping[str, float]], teacher: Mapping[str, Mapping[str, float]] | None) -> str:
    """Markdown: a line per split and metric."""
    lines = ["| split | metric | student | teacher |", "|:--|:--|--:|--:|"]
    for split, values in metrics.items():
        for name, value in values.items():
            its = f"{teacher[split][name]:.4f}" if teacher else "-"
            lines.append(f"| {split} | {name} | {value:.4f} | {its} |")
    return "\n".join(lines)


def task_card(report: TaskReport, command: str) -> str:
    """The README.md of a model that learnt a task: a Hugging Face model card."""
    front = ["---", "library_name: transformers", "pipeline_tag: text-classification"]
    if is_hub_name(report.model):
        front.append(f"base_model: {json.dumps(report.model)}")
    front += ["tags:", "- homodistil", f"- {report.task.lower()}", "---"]
    taught = f", taught by `{report.teacher}`" if report.teacher else ""
    parts = [
        "\n".join(front),
        f"# {report.name}",
        f"`{report.model}` trained on {report.task} of GLUE with the method `{report.method}` of homodistil_ds"
        f"{taught}. It is a plain `transformers` model; load it with `AutoModelForSequenceClassification`.",
        score_table(report.metrics, report.teacher_metrics),
        _facts(report),
        f"```bash\n{command}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _markdown(report: TaskReport) -> str:
    parts = [
        f"# {report.name}",
        f"{report.task}, score {report.primary:.4f}",
        score_table(report.metrics, report.teacher_metrics),
        *([member_table(report.family), "![family](figures/family.png)"] if report.family else []),
        _facts(report),
    ]
    return "\n\n".join(parts) + "\n"


def member_table(family: Sequence[TaskMember]) -> str:
    """Markdown: a line per student that learnt together; the best trade-off of those that may teach is marked."""
    best = would_teach([row.trade_off for row in family])
    lines = ["| scale | hidden / ffn / heads | parameters | score | trade-off | folder |", "|--:|:--|--:|--:|--:|:--|"]
    for place, row in enumerate(family):
        shape = " / ".join(str(row.widths[name]) for name in ("hidden", "ffn", "heads"))
        mark = "**" if place == best else ""
        lines.append(
            f"| {row.scale:g} | {shape} | {row.parameters:,} | {row.score:.4f} | {mark}{row.trade_off:.4f}{mark} "
            f"| `{row.folder}` |"
        )
    return "\n".join(lines)


def _facts(report: TaskReport) -> str:
    facts: dict[str, Any] = {
        "method": report.method,
        "data": report.data,
        "parameters": f"{report.parameters:,}",
        "training": f"{report.steps:,} steps, {report.epochs:g} epochs of {report.train_examples:,} examples, "
        f"learning rate {report.learning_rate:g}, seed {report.seed}",
        "training loop": f"{duration_text(report.loop_seconds)}, CPU time {duration_text(report.loop_cpu_seconds)}",
        "machine": f"{report.world_size} process(es), ZeRO stage {report.zero_stage}, {report.precision}",
        "versions": ", ".join(f"{name} {version}" for name, version in report.versions.items()),
    }
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())
