"""The nine GLUE tasks as one table, and the file of a submission. Reads no file (see glue_files).

N examples of a split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from homodistil_ds.errors import HomodistilError, did_you_mean
from homodistil_ds.runtime.whole_files import written_whole

HUB_LABEL = "label"
HUB_INDEX = "idx"
LOWEST, HIGHEST = 0.0, 5.0
"""The scores of STS-B, the one regression."""


@dataclass(frozen=True, kw_only=True)
class Task:
    name: str
    """Its folder among the official files."""
    texts: tuple[str, ...]
    """Columns of the one or two texts in the official files."""
    hub_texts: tuple[str, ...]
    """The same on the hub and in parquet files."""
    label: str = "label"
    index: str = "index"
    """Column of the number that a submission repeats; where a file lacks it, its rows count from 0."""
    no_header: tuple[str, ...] = ()
    """Columns of the training and evaluation files, if these have no header. Test files always have one."""
    skips_short_rows: bool = False
    """Whether short rows of the training and evaluation files are skipped, as everybody does."""
    classes: tuple[str, ...] = ()
    """Names by class number, numbered as on the hub; none for a regression."""
    named: bool = False
    """Whether the official files give classes by name, and not by number."""
    metrics: tuple[str, ...] = ("accuracy",)
    primary: tuple[str, ...] = ("accuracy",)
    """The metrics whose mean is the task's score."""
    evaluation: tuple[str, ...] = ("dev",)
    submissions: Mapping[str, str] = field(hash=False)
    """Test split -> the name of its file in a submission."""

    @property
    def splits(self) -> tuple[str, ...]:
        return "train", *self.evaluation, *self.submissions

    @property
    def hub_name(self) -> str:
        return folded(self.name)

    @property
    def label_texts(self) -> tuple[str, ...]:
        """How the official files write each class."""
        return self.classes if self.named else tuple(str(number) for number in range(len(self.classes)))


@dataclass(frozen=True, kw_only=True)
class Examples:
    first: tuple[str, ...]
    """N texts."""
    second: tuple[str, ...] | None
    """N texts; None where a task has one text per example."""
    labels: np.ndarray | None
    """[N] int64 class numbers, float32 values of a regression; None for a test split."""
    indices: np.ndarray
    """[N] int64, what a submission calls the examples."""
    skipped: int = 0
    """Short rows left out (QQP only)."""

    def __len__(self) -> int:
        return len(self.first)


def folded(name: str) -> str:
    """SST-2, sst2 and SST2 are one task."""
    return name.lower().replace("-", "")


def task_named(name: str) -> Task:
    """Raises HomodistilError CFG-TASK."""
    for task in TASKS.values():
        if folded(name) == folded(task.name):
            return task
    raise HomodistilError("CFG-TASK", f"unknown GLUE task '{name}'", did_you_mean(name, TASKS))


def write_predictions(path: Path, task: Task, indices: np.ndarray, predictions: np.ndarray) -> None:
    """A file as GLUE takes it, of a test split: `indices` [N], `predictions` [N] class numbers or values."""
    if task.classes:
        texts = [task.label_texts[number] for number in predictions.tolist()]
    else:
        texts = [f"{value:.3f}" for value in np.clip(predictions, LOWEST, HIGHEST).tolist()]
    rows = [f"{index}\t{text}\n" for index, text in zip(indices.tolist(), texts, strict=True)]
    with written_whole(path) as file:
        file.write("".join(["index\tprediction\n", *rows]).encode())


_SENTENCE = ("sentence",)
_SENTENCES = ("sentence1", "sentence2")
_QUESTIONS = ("question1", "question2")
_ENTAILMENT = ("entailment", "not_entailment")

_TABLE = (
    Task(
        name="CoLA",
        texts=_SENTENCE,
        hub_texts=_SENTENCE,
        no_header=("source", "label", "mark", "sentence"),
        classes=("unacceptable", "acceptable"),
        metrics=("matthews", "accuracy"),
        primary=("matthews",),
        submissions={"test": "CoLA.tsv"},
    ),
    Task(
        name="SST-2",
        texts=_SENTENCE,
        hub_texts=_SENTENCE,
        classes=("negative", "positive"),
        submissions={"test": "SST-2.tsv"},
    ),
    Task(
        name="MRPC",
        texts=("#1 String", "#2 String"),
        hub_texts=_SENTENCES,
        label="Quality",
        classes=("not_equivalent", "equivalent"),
        metrics=("f1", "accuracy"),
        primary=("f1", "accuracy"),
        submissions={"test": "MRPC.tsv"},
    ),
    Task(
        name="STS-B",
        texts=_SENTENCES,
        hub_texts=_SENTENCES,
        label="score",
        metrics=("pearson", "spearman"),
        primary=("pearson", "spearman"),
        submissions={"test": "STS-B.tsv"},
    ),
    Task(
        name="QQP",
        texts=_QUESTIONS,
        hub_texts=_QUESTIONS,
        label="is_duplicate",
        index="id",
        # Line feeds inside a few questions cut their rows in two.
        skips_short_rows=True,
        classes=("not_duplicate", "duplicate"),
        metrics=("f1", "accuracy"),
        primary=("f1", "accuracy"),
        submissions={"test": "QQP.tsv"},
    ),
    Task(
        name="MNLI",
        texts=_SENTENCES,
        hub_texts=("premise", "hypothesis"),
        label="gold_label",
        classes=("entailment", "neutral", "contradiction"),
        named=True,
        evaluation=("dev_matched", "dev_mismatched"),
        submissions={"test_matched": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv"},
    ),
    Task(
        name="QNLI",
        texts=("question", "sentence"),
        hub_texts=("question", "sentence"),
        classes=_ENTAILMENT,
        named=True,
        submissions={"test": "QNLI.tsv"},
    ),
    Task(
        name="RTE",
        texts=_SENTENCES,
        hub_texts=_SENTENCES,
        classes=_ENTAILMENT,
        named=True,
        submissions={"test": "RTE.tsv"},
    ),
    Task(
        name="WNLI",
        texts=_SENTENCES,
        hub_texts=_SENTENCES,
        classes=("not_entailment", "entailment"),
        submissions={"test": "WNLI.tsv"},
    ),
)
TASKS: dict[str, Task] = {task.name: task for task in _TABLE}
