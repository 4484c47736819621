"""The weighted sum of the losses of a run (H9), and what the models must compute for it."""

from __future__ import annotations

import torch

from homodistil_ds.config import LossConfig
from homodistil_ds.distillation.losses import LOSSES, Inputs
from homodistil_ds.models.forward import Read


class Objective:
    """Terms with a positive weight; without a teacher only those that need none."""

    def __init__(self, weights: LossConfig, with_teacher: bool) -> None:
        self.temperature = weights.temperature
        self.weights = {
            name: getattr(weights, name)
            for name, term in LOSSES.items()
            if getattr(weights, name) > 0 and (with_teacher or not term.needs_teacher)
        }

    def student_reads(self) -> frozenset[Read]:
        return frozenset(read for name in self.weights for read in LOSSES[name].reads)

    def teacher_reads(self) -> frozenset[Read]:
        return frozenset(read for name in self.weights if LOSSES[name].needs_teacher for read in LOSSES[name].reads)

    def __call__(self, inputs: Inputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The total, and every term unweighted and detached, as scalar tensors."""
        terms = {name: LOSSES[name].function(inputs) for name in self.weights}
        total = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        return total, {name: term.detach() for name, term in terms.items()}
