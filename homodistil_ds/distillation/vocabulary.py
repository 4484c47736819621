"""Losses over the vocabulary without the logits of all positions: a part of the positions at a time, made anew for
gradients.

N predicted positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch.utils.checkpoint import checkpoint

from homodistil_ds.distillation.losses import Inputs
from homodistil_ds.models.forward import Activations

MOST_ENTRIES = 1 << 23  # logits of one model at a time, 32 MiB in float32
MOST_PARTS = 32  # beyond, the vocabulary's matrix is read more often than it is worth, but in parts of
ENOUGH_ROWS = 512  # whose products take longer than that reading

Loss = Callable[[Inputs], torch.Tensor]


def fits(positions: int, vocabulary: int) -> bool:
    """Whether the logits of a micro batch are few enough to be there at once."""
    return positions * vocabulary <= MOST_ENTRIES


def parted_by(positions: int, vocabulary: int) -> int:
    """The vocabulary's size where a micro batch's logits are too many to be there at once; else 0."""
    return 0 if fits(positions, vocabulary) else vocabulary


def rows_at_once(positions: int, vocabulary: int) -> int:
    return max(1, MOST_ENTRIES // vocabulary, min(ENOUGH_ROWS, -(-positions // MOST_PARTS)))


def in_parts(losses: Mapping[str, Loss], inputs: Inputs) -> dict[str, torch.Tensor]:
    """Means over positions of losses that read logits, from both models' states at these positions and their heads.

    Logits of a part of the positions are made, compared and dropped; a backward pass makes them once more. What is
    compared, and so the gradient, is that of all logits at once.
    """
    own, shown = inputs.student.predicted, inputs.teacher.predicted
    assert own is not None
    assert inputs.student.head is not None
    states, labels = own.flatten(0, 1), inputs.labels.flatten()
    taught = None if shown is None else shown.flatten(0, 1)
    rows = rows_at_once(len(states), inputs.vocabulary)

    def of_part(begin: int, states: torch.Tensor, taught: torch.Tensor | None) -> torch.Tensor:
        part = replace(
            inputs,
            student=_logits(inputs.student, states),
            teacher=_logits(inputs.teacher, taught),
            labels=labels[None, begin : begin + rows],
        )
        return torch.stack([loss(part) for loss in losses.values()]) * (len(states) / len(labels))

    total = torch.zeros(len(losses), device=states.device, dtype=torch.promote_types(states.dtype, torch.float32))
    for begin in range(0, len(states), rows):
        piece = None if taught is None else taught[begin : begin + rows]
        total = total + checkpoint(of_part, begin, states[begin : begin + rows], piece, use_reentrant=False)
    return dict(zip(losses, total.unbind(), strict=True))


def _logits(model: Activations, states: torch.Tensor | None) -> Activations:
    """[1, n, V] from states [n, H]; a model that is not trained makes them without a gradient."""
    if states is None or model.head is None:
        return Activations()
    with torch.set_grad_enabled(torch.is_grad_enabled() and states.requires_grad):
        return Activations(logits=model.head(states)[None])
