"""What finished runs left, read back and checked: report.json and run_config.json. It judges and draws nothing."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from homodistil_ds.errors import HomodistilError
from homodistil_ds.evaluation.report import LOADERS, ModelRow
from homodistil_ds.models.loading import folder_of

# Methods with a teacher; the configuration names one for every method.
TAUGHT = ("homodistil", "mixkd", "minidisc")


@dataclass(frozen=True, kw_only=True)
class FamilyMember:
    """One of several students that a run left behind; a language model has a loss, what does a task a score."""

    scale: float
    parameters: int
    heldout_loss: float | None
    discrepancy_kl: float | None
    score: float | None
    trade_off: float | None


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What every kind of run has. `label` is its name, longer where two have the same."""

    label: str
    folder: Path
    method: str
    steps: int
    seed: int | None
    parameters: int
    loop_seconds: float | None
    history: list[dict[str, float]]
    versions: dict[str, str]
    settings: dict[str, str]
    """Of run_config.json: dotted name -> value, as JSON if it is no text. Empty if the run has none."""
    family: list[FamilyMember]
    """The largest first; empty for a run with one student."""
    loader: str
    """The class of transformers that loads its student."""
    saved: Path | None
    """The folder of its student, None if that is not there: benchmarks remove theirs."""

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """Steps and values of everything the history says under this name."""
        rows = [row for row in self.history if name in row and "step" in row]
        return [row["step"] for row in rows], [row[name] for row in rows]


@dataclass(frozen=True, kw_only=True)
class LanguageRun(Finished):
    """A run whose student is a language model: distilled, or trained without a teacher."""

    teacher: ModelRow | None
    student: ModelRow
    corpus: str
    """Its fingerprint; held-out figures of different ones do not compare."""
    tokens: int | None
    train_flops: float | None
    wall_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class TaskRun(Finished):
    """A run whose student does a task."""

    task: str
    metrics: dict[str, dict[str, float]]
    """Split -> metric -> value."""
    primary: float | None
    """The task's score."""
    train_examples: int | None

    @property
    def scored_on(self) -> str:
        """Its task and the splits of its scores, such as 'MRPC dev'."""
        return f"{self.task} {', '.join(self.metrics)}"


def read_runs(folders: Sequence[Path]) -> list[Finished]:
    """Raises HomodistilError that names the folder whose report.json is missing or damaged."""
    runs = [_read(folder) for folder in dict.fromkeys(folders)]
    names = Counter(run.label for run in runs)
    return [replace(run, label=f"{run.label} ({run.folder})") if names[run.label] > 1 else run for run in runs]


def models_of(runs: Sequence[Finished]) -> dict[str, str]:
    """Label -> folder of every student and of every teacher that had a part in its run and is a folder here.

    Raises HomodistilError if there is no student.
    """
    taught = [run.settings.get("teacher") for run in runs if run.method in TAUGHT]
    known = {f"teacher {name}": Path(folder_of(name)) for name in taught if name}
    local = {label: folder for label, folder in known.items() if (folder / "config.json").exists()}
    students = {run.label: run.saved for run in runs if run.saved}
    if not students:
        raise HomodistilError(
            "DATA-STUDENT", f"none of {len(runs)} run(s) has a student/ to time", "Leave out --latency."
        )
    return {label: str(folder) for label, folder in (local | students).items()}


def _read(folder: Path) -> Finished:
    path = folder / "report.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        return _task_run(folder, report) if report.get("kind") == "task" else _language_run(folder, report)
    except FileNotFoundError as error:
        raise HomodistilError(
            "DATA-REPORT", f"{path} is missing", "Name the --output_dir of runs that have finished."
        ) from error
    except OSError as error:
        raise HomodistilError("DATA-REPORT", f"{path}: {error.strerror}", "Check its permissions.") from error
    except KeyError as error:
        raise _damaged(path, f"it has no {error}") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, reason: str) -> HomodistilError:
    return HomodistilError("DATA-REPORT", f"{path} is damaged: {reason}", "Leave this run out, or copy it again.")


def _language_run(folder: Path, report: Mapping[str, Any]) -> LanguageRun:
    student = _model(report["student"])
    return LanguageRun(
        **_common(folder, report, student.parameters),
        teacher=_model(report["teacher"]) if report.get("teacher") else None,
        student=student,
        corpus=_text(report.get("corpus_fingerprint", "")),
        tokens=_optional(report, "tokens", _whole),
        train_flops=_optional(report, "train_flops", _number),
        wall_seconds=_optional(report, "wall_seconds", _number),
        loader=LOADERS[report.get("language_model", "masked")],
    )


def _task_run(folder: Path, report: Mapping[str, Any]) -> TaskRun:
    return TaskRun(
        **_common(folder, report, _whole(report["parameters"])),
        task=_text(report["task"]),
        metrics={_text(split): _numbers(values) for split, values in report["metrics"].items()},
        primary=_optional(report, "primary", _number),
        train_examples=_optional(report, "train_examples", _whole),
        loader="AutoModelForSequenceClassification",
    )


def _common(folder: Path, report: Mapping[str, Any], parameters: int) -> dict[str, Any]:
    return {
        "label": _text(report["name"]),
        "folder": folder,
        "method": _text(report["method"]),
        "steps": _whole(report["steps"]),
        "seed": _optional(report, "seed", _whole),
        "parameters": parameters,
        "loop_seconds": _optional(report, "loop_seconds", _number),
        "history": [_numbers(row) for row in report["history"]],
        "versions": {_text(name): _text(version) for name, version in report.get("versions", {}).items()},
        "settings": _settings(folder / "run_config.json"),
        "family": [_member(row) for row in report.get("family", [])],
        "saved": folder / "student" if (folder / "student" / "config.json").exists() else None,
    }


def _member(row: Mapping[str, Any]) -> FamilyMember:
    names = ("heldout_loss", "discrepancy_kl", "score", "trade_off")
    values = {name: _optional(row, name, _number) for name in names}
    scale = _number(row["scale"])
    if scale is None:
        raise ValueError("a scale is not a number")
    return FamilyMember(scale=scale, parameters=_whole(row["parameters"]), **values)


def _model(row: Mapping[str, Any]) -> ModelRow:
    values: dict[str, Any] = {name: _whole(row[name]) for name in ("parameters", "parameters_without_embeddings")}
    values |= {name: _optional(row, name, _number) for name in ("heldout_loss", "discrepancy_kl", "tokens_per_second")}
    widths = {_text(name): _whole(size) for name, size in row["widths"].items()}
    return ModelRow(**values, widths=widths, file_bytes=_optional(row, "file_bytes", _whole) or 0)


def _settings(path: Path) -> dict[str, str]:
    try:
        return dict(_flat(json.loads(path.read_text(encoding="utf-8"))))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise HomodistilError("DATA-REPORT", f"{path}: {error.strerror}", "Check its permissions.") from error
    except (ValueError, AttributeError, RecursionError) as error:
        raise _damaged(path, str(error)) from error


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for name, value in values.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((prefix + name, value if isinstance(value, str) else json.dumps(value)))
    return found


def _optional(values: Mapping[str, Any], name: str, read: Callable[[Any], Any]) -> Any:
    return None if values.get(name) is None else read(values[name])


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """What is null was not finite, and is left out."""
    read = {_text(name): None if value is None else _number(value) for name, value in values.items()}
    return {name: value for name, value in read.items() if value is not None}


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{str(value)[:40]!r} is not a number")
    return value if math.isfinite(value) else None


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{str(value)[:40]!r} is not a whole number")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:40]!r} is not a text")
    return value
