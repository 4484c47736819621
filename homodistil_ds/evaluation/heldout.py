"""Held-out loss of a student and its discrepancy from the teacher, in nats per predicted token."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from homodistil_ds.data.batches import Batches
from homodistil_ds.data.predicted import Batch
from homodistil_ds.distillation.losses import LOSSES, Inputs
from homodistil_ds.distillation.objective import values_of
from homodistil_ds.models.forward import Activations
from homodistil_ds.runtime import ranks

Forward = Callable[..., Activations]


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    loss: float
    """Cross entropy of the student at the predicted positions."""
    teacher_loss: float | None
    discrepancy_kl: float | None
    """KL(teacher || student) at the predicted positions; None without a teacher."""

    def figures(self) -> dict[str, float]:
        """The student's, under the names of the curves."""
        known = {"heldout_loss": self.loss, "discrepancy_kl": self.discrepancy_kl}
        return {name: value for name, value in known.items() if value is not None}


def measure_on(batches: Batches, vocabulary: int = 0) -> Callable[[Forward, Forward | None], dict[str, float]]:
    """`measure` of a stage of language modelling: the figures of these batches' held-out rows."""
    return lambda student, teacher: evaluate(student, teacher, batches.held_out(), vocabulary).figures()


def _values(names: Sequence[str], inputs: Inputs) -> list[float]:
    return [float(value) for value in values_of({name: LOSSES[name] for name in names}, inputs).values()]


@torch.no_grad()
def evaluate(
    student: Forward, teacher: Forward | None, batches: Iterable[tuple[Batch, int]], vocabulary: int = 0
) -> HeldOut:
    """Mean over the held-out rows of all ranks. Every rank calls it; both forwards return logits [B, K, V], or states
    and head for a `vocabulary` of this size.

    A batch comes with the number of its rows that count: all of them, or none where it only keeps the ranks together.
    """
    sums = torch.zeros(4, dtype=torch.float64)
    for batch, rows in batches:
        batch = batch.to(ranks.device())
        own = student(*batch.shown)
        told: dict[str, Any] = {"labels": batch.labels, "vocabulary": vocabulary}
        losses = [*_values(("mlm",), Inputs(student=own, teacher=own, **told)), 0.0, 0.0]
        if teacher is not None:
            shown = teacher(*batch.taught)
            losses = _values(("mlm", "kl"), Inputs(student=own, teacher=shown, **told))
            losses[1:1] = _values(("mlm",), Inputs(student=shown, teacher=shown, **told))
        sums += torch.tensor([rows * loss for loss in losses] + [rows], dtype=torch.float64)
    total = ranks.add_up(sums.to(ranks.device())).cpu()
    loss, teacher_loss, discrepancy = (total[:3] / total[3]).tolist()
    has_teacher = teacher is not None
    return HeldOut(
        loss=loss,
        teacher_loss=teacher_loss if has_teacher else None,
        discrepancy_kl=discrepancy if has_teacher else None,
    )
