"""The scores of predictions for a GLUE task, each a formula of torchmetrics. Runs no model and reads no file.

N examples of one split, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from statistics import mean

import torch
from torchmetrics.functional.classification import (
    binary_f1_score,
    multiclass_accuracy,
    multiclass_matthews_corrcoef,
)
from torchmetrics.functional.regression import pearson_corrcoef, spearman_corrcoef

from homodistil_ds.data.glue import Task

Formula = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def scores(task: Task, predictions: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """The task's metrics; `predictions` are logits [N, C] of N >= 1, or values [N] or [N, 1]; `labels` [N]."""
    if task.classes:
        predictions, labels = predictions.argmax(dim=1), labels.long()
    else:
        # In float32 torchmetrics calls Pearson undefined where one outlier lies 54 standard deviations away.
        predictions, labels = predictions.reshape(len(labels)).double(), labels.double()
    formulas = _formulas(len(task.classes))
    return {name: _defined(name, formulas[name], predictions, labels) for name in task.metrics}


def primary_score(task: Task, scores_by_split: Mapping[str, Mapping[str, float]]) -> float:
    """Mean of the primary metrics over the splits given, which are both of MNLI's for the score that is reported."""
    return mean(found[name] for found in scores_by_split.values() for name in task.primary)


def _formulas(classes: int) -> dict[str, Formula]:
    """Metric -> formula over predictions [N] and labels [N]. F1 is that of class 1, of two."""
    return {
        "accuracy": partial(multiclass_accuracy, num_classes=classes, average="micro"),
        "f1": partial(binary_f1_score, zero_division=0),
        "matthews": partial(multiclass_matthews_corrcoef, num_classes=classes),
        "pearson": pearson_corrcoef,
        "spearman": spearman_corrcoef,
    }


def _defined(name: str, formula: Formula, predictions: torch.Tensor, labels: torch.Tensor) -> float:
    """0.0 for a correlation with a constant, which is 0/0.

    A student that says one thing of every example has learnt nothing, and GLUE's own scorer (scikit-learn) counts its
    Matthews coefficient as 0. torchmetrics gives nan for Pearson, and for Matthews the value of a limit: 0.026 for the
    larger class of CoLA's dev set, 1 for the only class of a small set.
    """
    if name in ("matthews", "pearson", "spearman") and (_is_constant(predictions) or _is_constant(labels)):
        return 0.0
    return float(formula(predictions, labels))


def _is_constant(values: torch.Tensor) -> bool:
    return bool((values == values[0]).all())
