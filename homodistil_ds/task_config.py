"""The science facts of a task: which one, its data, its losses. Part of RunConfig, for the methods on a task."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from homodistil_ds.errors import require


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One task of GLUE, and how much of it is used."""

    name: str = "SST-2"
    """CoLA, SST-2, MRPC, STS-B, QQP, MNLI, QNLI, RTE or WNLI."""
    data: str = "nyu-mll/glue"
    """Folder with the task folders, as GLUE's files come or as parquet; or a hub data set."""
    fraction: float = 1.0
    """Share of the training examples to use, drawn by the seed."""
    epochs: float = 3.0
    """Passes over the examples used; decides the steps where --steps is 0."""
    held_out: float = 0.0
    """Share of the training examples to evaluate on in place of the development set, for choosing. Which ones is the
    same for every seed: a teacher that learnt with this share held out has seen none of them."""
    dropout: float = 0.1
    """Of the model that is trained; a teacher has none."""
    predict: bool = True
    """Whether to predict the test splits, in the files of a GLUE submission."""

    def __post_init__(self) -> None:
        require("task.fraction", self.fraction, 0.0 < self.fraction <= 1.0, "Use a share above 0, at most 1.")
        require("task.epochs", self.epochs, math.isfinite(self.epochs) and self.epochs > 0, "Use a number above 0.")
        require("task.held_out", self.held_out, 0.0 <= self.held_out < 1.0, "Use a share of 0 or more, below 1.")
        require("task.dropout", self.dropout, 0.0 <= self.dropout < 1.0, "Use a share of 0 or more, below 1.")


@dataclass(frozen=True, kw_only=True)
class TaskLossConfig:
    """Weights of the losses on a task (X2-X5, B1, B6, M4); kd, mixed_kd, patience and states need a teacher."""

    task: float = 1.0
    """(X2) cross entropy of the labels, or squared error of a regression."""
    mixed_task: float = 0.0
    """(X3) the same on mixed examples with mixed labels; MixKD's student mixup."""
    kd: float = 0.0
    """(B1) distance of the student's logits to the teacher's on the examples themselves."""
    mixed_kd: float = 0.0
    """(X4) the same on mixed examples; MixKD's teacher mixup."""
    patience: float = 0.0
    """(B6) squared distance of the normalised [CLS] states of all layers but the last; PKD."""
    states: float = 0.0
    """(M4) squared distance of the states of all layers at all tokens, lifted to the teacher's width; MiniDisc."""
    distance: Literal["mse", "kl", "ce"] = "mse"
    """What kd and mixed_kd measure; a regression always takes mse."""
    temperature: float = 1.0
    """Softmax temperature of the distances kl and ce."""

    def __post_init__(self) -> None:
        for name in ("task", "mixed_task", "kd", "mixed_kd", "patience", "states"):
            value = getattr(self, name)
            require(f"task_loss.{name}", value, math.isfinite(value) and value >= 0, "Use 0 or more.")
        some = self.task + self.mixed_task > 0 or self.learns_from_teacher
        require("task_loss", "all weights are 0", some, "Give at least one term a weight above 0.")
        tau = self.temperature
        require("task_loss.temperature", tau, math.isfinite(tau) and tau > 0, "Use a number above 0.")

    @property
    def learns_from_teacher(self) -> bool:
        return self.kd + self.mixed_kd + self.patience + self.states > 0

    def mixes(self, with_teacher: bool) -> bool:
        """Whether some term reads mixed examples."""
        return self.mixed_task + self.mixed_kd * with_teacher > 0


@dataclass(frozen=True, kw_only=True)
class MixupConfig:
    """How examples are mixed (X1)."""

    alpha: float = 0.4
    """Of Beta(alpha, alpha), from which the share of the first example is drawn."""
    ratio: float = 1.0
    """Mixed examples per example of a batch, besides the examples themselves."""

    def __post_init__(self) -> None:
        require("mixup.alpha", self.alpha, math.isfinite(self.alpha) and self.alpha > 0, "Use a number above 0.")
        require("mixup.ratio", self.ratio, 0.0 <= self.ratio <= 1.0, "Use a share between 0 and 1.")
