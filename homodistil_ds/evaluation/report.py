"""Report: the facts of a finished run, as JSON, as a Markdown page with pictures and as a console table."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from homodistil_ds.pruning.family import would_teach
from homodistil_ds.runtime.whole_files import replace_text

NONE = "-"  # a cell without a value
# Kind of language model -> the class that loads it.
LOADERS = {
    "masked": "AutoModelForMaskedLM",
    "causal": "AutoModelForCausalLM",
    "denoising": "AutoModelForSeq2SeqLM",
}


@dataclass(frozen=True, kw_only=True)
class ModelRow:
    """One model, measured."""

    parameters: int
    parameters_without_embeddings: int
    widths: dict[str, int]
    """hidden_size, intermediate_size, num_attention_heads, head_size, num_hidden_layers, vocab_size."""
    file_bytes: int
    """Size of the weights as saved."""
    heldout_loss: float
    """Cross entropy on the held-out sequences, nats per predicted token."""
    discrepancy_kl: float | None
    """KL from the teacher's to this model's predictions at the predicted held-out positions, nats."""
    tokens_per_second: float | None
    """CPU inference; None for a teacher that was never whole on a rank."""


@dataclass(frozen=True, kw_only=True)
class MemberRow(ModelRow):
    """One student of a family, measured like the last one."""

    scale: float
    """Kept share of the matrices of the layers that was asked for."""
    kept: float
    """The share that its shape keeps."""
    step: int
    """Optimizer steps of its training."""
    folder: str
    """In the run directory."""
    trade_off: float
    """(M1) of exp(teacher's loss - own loss), at most 1."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """One run. `teacher` is None for a method without one."""

    name: str
    method: str
    teacher: ModelRow | None
    student: ModelRow
    steps: int
    tokens: int
    """Tokens seen in training, over all ranks."""
    wall_seconds: float
    train_flops: float
    """Floating-point operations of the training by the cost model: matrix work of teacher, student and projections."""
    loop_seconds: float
    """Wall time of the training loop alone on rank 0, over all starts: cuts, evaluations and checkpoints too."""
    loop_cpu_seconds: float
    """CPU time of that process in the same time."""
    measured_seconds: float
    """The part of loop_seconds that evaluations along the way took."""
    measured_cpu_seconds: float
    """The same part of loop_cpu_seconds."""
    world_size: int
    zero_stage: int
    precision: str
    seed: int
    mask_digest: str
    """Of the final masks; equal on every rank."""
    corpus_fingerprint: str
    digests_checked: int
    """How often the ranks compared their masks."""
    prune_events: list[dict[str, Any]]
    """Step, widths and mask digest of each of these times."""
    versions: dict[str, str]
    history: list[dict[str, float]]
    """One entry per log line and per held-out evaluation, in order."""
    peak_bytes: int = 0
    """The most memory that a rank held during the training loop: of its GPU, by torch's tensors, or of the machine."""
    measured_in: str = "float32"
    """The number format of both models when held-out text was measured: that of training where float32 had no room."""
    language_model: str = "masked"
    """masked, causal or denoising."""
    family: list[MemberRow] = field(default_factory=list)
    """The students that the run left behind, the last one among them; empty if that is the only one."""


def write_report(report: Report, run_dir: Path, figures: Mapping[str, Figure]) -> None:
    """Write figures/<name>.png, report.md and report.json into `run_dir`; raises OSError where it cannot.

    report.json is written last and by rename, so its presence says that the report is complete. A value that is not
    finite becomes null there.
    """
    (run_dir / "figures").mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(run_dir / "figures" / f"{name}.png")
    replace_text(run_dir / "report.md", _markdown(report, run_dir, list(figures)))
    replace_json(run_dir / "report.json", asdict(report))


def before_after_table(report: Report) -> str:
    """Teacher, student and student / teacher in aligned columns, for the console."""
    rows = [("", "teacher", "student", "ratio"), *_rows(report)]
    first, *others = (max(len(row[column]) for row in rows) for column in range(4))
    lines = []
    for label, *cells in rows:
        lines.append("  ".join([label.ljust(first), *(c.rjust(w) for c, w in zip(cells, others, strict=True))]))
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def family_table(family: Sequence[MemberRow]) -> str:
    """Markdown: a line per student; the best trade-off of those that may teach is marked."""
    best = would_teach([row.trade_off for row in family])
    lines = [
        "| scale | hidden / ffn / heads | parameters | held-out loss | KL | trade-off | steps | folder |",
        "|--:|:--|--:|--:|--:|--:|--:|:--|",
    ]
    for place, row in enumerate(family):
        shape = " / ".join(
            str(row.widths[name]) for name in ("hidden_size", "intermediate_size", "num_attention_heads")
        )
        mark = "**" if place == best else ""
        lines.append(
            f"| {row.scale:g} | {shape} | {row.parameters:,} | {row.heldout_loss:.4f} | {row.discrepancy_kl:.4f} "
            f"| {mark}{row.trade_off:.4f}{mark} | {row.step:,} | `{row.folder}` |"
        )
    return "\n".join(lines)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's numbers, from their metadata; imports none."""
    found = {"python": platform.python_version()}
    for name in ("torch", "deepspeed", "transformers", "homodistil_ds"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def duration_text(seconds: float) -> str:
    """Seconds as `42.0 s`, `3 min 20 s` or `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def perplexity(nats: float) -> float:
    """exp of a mean loss, as large as a number can be where that is larger."""
    return math.exp(min(nats, 700.0))


def _rows(report: Report) -> list[tuple[str, str, str, str]]:
    """(label, teacher, student, student / teacher) of every compared quantity."""
    teacher, student = report.teacher, report.student
    rows: list[tuple[str, str, str, str]] = []

    def add(label: str, value: Callable[[ModelRow], float | None], text: Callable[[float], str]) -> None:
        before, after = (value(teacher) if teacher else None), value(student)
        ratio = f"{after / before:.3f}" if before and after is not None else NONE
        cells = [NONE if v is None or not math.isfinite(v) else text(v) for v in (before, after)]
        rows.append((label, cells[0], cells[1], ratio))

    add("parameters", lambda m: m.parameters, "{:,}".format)
    add("without embeddings", lambda m: m.parameters_without_embeddings, "{:,}".format)
    for name in student.widths:
        add(name, lambda m, name=name: m.widths.get(name), "{:,}".format)  # type: ignore[misc]
    add("weights file (MiB)", lambda m: m.file_bytes / 2**20 or None, "{:.2f}".format)
    add("held-out loss (nats)", lambda m: m.heldout_loss, "{:.4f}".format)
    if report.language_model == "causal":
        add("perplexity", lambda m: perplexity(m.heldout_loss), "{:,.2f}".format)
    add("discrepancy KL (nats)", lambda m: m.discrepancy_kl, "{:.4f}".format)
    add("CPU inference (tokens/s; ratio = speed-up)", lambda m: m.tokens_per_second, "{:,.0f}".format)
    return rows


def _markdown(report: Report, run_dir: Path, figures: list[str]) -> str:
    table = ["| | teacher | student | ratio |", "|:--|--:|--:|--:|"]
    table += [f"| {' | '.join(row)} |" for row in _rows(report)]
    facts = {
        "method": report.method,
        "steps": f"{report.steps:,}",
        "tokens": f"{report.tokens:,}",
        "training cost": f"{report.train_flops:.3g} FLOPs of matrix work",
        "wall time": duration_text(report.wall_seconds),
        "training loop": f"{duration_text(report.loop_seconds)}, CPU time {duration_text(report.loop_cpu_seconds)}",
        "peak memory of a rank": f"{report.peak_bytes / 2**30:.2f} GiB",
        "world size": report.world_size,
        "ZeRO stage": report.zero_stage,
        "precision": report.precision,
        **({} if report.measured_in == "float32" else {"held-out figures in": report.measured_in}),
        "seed": report.seed,
        "mask digest": f"`{report.mask_digest}`, compared between ranks {report.digests_checked} times",
        "corpus fingerprint": f"`{report.corpus_fingerprint}`",
        "versions": ", ".join(f"{name} {version}" for name, version in report.versions.items()),
    }
    pictures = "\n\n".join(f"![{name.replace('_', ' ')}](figures/{name}.png)" for name in figures)
    loader = LOADERS[report.language_model]
    load = f'{loader}.from_pretrained("{(run_dir / "student").as_posix()}")'
    parts = [
        f"# {report.name}",
        "## Before and after",
        "\n".join(table),
        *(["## Family", family_table(report.family)] if report.family else []),
        *(["## Figures", pictures] if figures else []),
        "## Facts",
        "\n".join(f"- {name}: {value}" for name, value in facts.items()),
        "## Load the student",
        f"`{load}`, with `{loader}` from `transformers`.",
    ]
    return "\n\n".join(parts) + "\n"


def finite(value: Any) -> Any:
    """The same JSON value with null for what JSON cannot say (nan, inf)."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def replace_json(path: Path, value: Any) -> None:
    """Write a value as JSON by rename, with null for what JSON cannot say."""
    replace_text(path, json.dumps(finite(value), indent=2, allow_nan=False) + "\n")
