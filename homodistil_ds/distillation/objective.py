"""The weighted sum of the losses of a run (H9, X5), and what the models must compute for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from homodistil_ds.config import LossConfig
from homodistil_ds.distillation.fused_loss import fits, fused, serves
from homodistil_ds.distillation.losses import LOSSES, Inputs, LossTerm
from homodistil_ds.distillation.task_losses import TASK_LOSSES
from homodistil_ds.distillation.vocabulary import in_parts
from homodistil_ds.errors import HomodistilError
from homodistil_ds.models.forward import Read
from homodistil_ds.models.width import Family, Widths
from homodistil_ds.task_config import TaskLossConfig

TERMS = LOSSES | TASK_LOSSES


class Objective:
    """Terms with a positive weight; without a teacher only those that need none. `settings` are what losses are told
    besides the activations: temperature, relation heads, distance. With `parted`, the size of the vocabulary,
    losses that read logits get them from states and heads in parts; with 0 models make them all at once. `tiled`:
    losses that read attention maps make them of queries and keys in tiles, so that no model hands them over."""

    def __init__(
        self, weights: LossConfig | TaskLossConfig, with_teacher: bool, parted: int = 0, tiled: bool = False
    ) -> None:
        values: dict[str, Any] = vars(weights)
        self.settings = {name: value for name, value in values.items() if name not in TERMS}
        self.settings |= {"vocabulary": parted} if parted else {}
        self.logits: Read = "predicted" if parted else "logits"
        self.weights: dict[str, float] = {
            name: values[name]
            for name, term in TERMS.items()
            if values.get(name, 0) > 0 and (with_teacher or not term.needs_teacher)
        }
        self.tiled = tiled and any("attention" in TERMS[name].reads for name in self.weights)
        self.instead: dict[Read, tuple[Read, ...]] = {"logits": (self.logits,)}
        if self.tiled:
            self.instead["attention"] = ("queries", "keys")

    def student_reads(self) -> frozenset[Read]:
        return frozenset(read for name in self.weights for read in self._reads(name))

    def teacher_reads(self) -> frozenset[Read]:
        return frozenset(read for name in self.weights if TERMS[name].needs_teacher for read in self._reads(name))

    def tiled_layers(self, layers: int) -> int:
        """How often the maps of one of so many layers are made in tiles."""
        return self.tiled * (layers * ("attention" in self.weights) + ("attention_kl" in self.weights))

    def _reads(self, name: str) -> list[Read]:
        return [read for asked in TERMS[name].reads for read in self.instead.get(asked, (asked,))]

    def __call__(self, inputs: Inputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The total, and every term unweighted and detached, as scalar tensors."""
        terms = values_of({name: TERMS[name] for name in self.weights}, inputs)
        total = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        return total, {name: term.detach() for name, term in terms.items()}


def values_of(terms: Mapping[str, LossTerm], inputs: Inputs) -> dict[str, torch.Tensor]:
    """The named losses, in their order; what reads logits goes through the heads where there are states instead."""
    if inputs.student.predicted is None:
        return {name: term.function(inputs) for name, term in terms.items()}
    of_logits = {name: term.function for name, term in terms.items() if "logits" in term.reads}
    if serves(of_logits) and fits(inputs):
        found = {name: fused(name, inputs) for name in of_logits}
    else:
        found = in_parts(of_logits, inputs)
    return {name: found[name] if name in found else term.function(inputs) for name, term in terms.items()}


def check_losses(weights: LossConfig, target: Widths, full: Widths, pruned: bool, family: Family) -> None:
    """Raises HomodistilError for a loss that has no meaning for a student of `target` widths from a `full` teacher.

    `pruned`: the student is a copy of the teacher that loses neurons on the way.
    """
    sizes = (target.heads * target.head_size, full.heads * full.head_size)
    moves = "neurons of a student that is pruned change places" if pruned else ""
    uneven = f"relation_heads {weights.relation_heads} must divide {sizes}"
    later = "a decoder never looks at what it would compare there" if family.language_model != "masked" else ""
    alone = "the last layer is the decoder's, and the encoder would learn nothing of it" if family.decodes else ""
    own_scores = "" if family.plain_scores else "its scores hold more than products of queries and keys"
    reasons = {
        "cosine": "it compares states of one width" if target.hidden != full.hidden else "",
        "scores": later
        or own_scores
        or ("its scale is that of whole heads, and this student's shrink" if pruned else ""),
        "attention_kl": alone,
        "value_relation": later or moves or ("it compares as many heads" if target.heads != full.heads else ""),
        "relation": later or moves or (uneven if any(size % weights.relation_heads for size in sizes) else ""),
    }
    for name, reason in reasons.items():
        if reason and getattr(weights, name) > 0:
            raise HomodistilError(
                "CFG-LOSS",
                f"--loss.{name} with a student of {target} from a teacher of {full}: {reason}",
                f"Set --loss.{name} 0, change the --student flags, or use --student.init random.",
            )
