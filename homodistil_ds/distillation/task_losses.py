"""The named losses on a task: pure functions of logits, labels and the pairs that were mixed. No language modelling.

Shapes: R rows of a micro batch, the first P of them plain and the others mixed; C classes, 1 for a regression.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from homodistil_ds.distillation.losses import Inputs, LossTerm, sum_of


def task(inputs: Inputs) -> torch.Tensor:
    """(X2): cross entropy of the plain rows, or squared error of a regression."""
    assert inputs.pairs is not None
    plain = slice(inputs.pairs.plain)
    return _error(_own(inputs)[plain], inputs.labels[plain]).mean()


def mixed_task(inputs: Inputs) -> torch.Tensor:
    """(X3): the same of the mixed rows, whose labels are mixed in the shares of their texts."""
    assert inputs.pairs is not None
    mixed = slice(inputs.pairs.plain, None)
    own, share = _own(inputs)[mixed], inputs.pairs.share[mixed]
    first, second = inputs.labels[mixed], inputs.pairs.other_labels[mixed]
    if first.is_floating_point():
        error = _error(own, share * first + (1 - share) * second)
    else:  # cross entropy is linear in its target
        error = share * _error(own, first) + (1 - share) * _error(own, second)
    return error.sum() * inputs.pairs.weight


def kd(inputs: Inputs) -> torch.Tensor:
    """(B1): distance of the logits of the plain rows to the teacher's."""
    assert inputs.pairs is not None
    plain = slice(inputs.pairs.plain)
    return _distance(_own(inputs)[plain], _shown(inputs)[plain], inputs).mean()


def mixed_kd(inputs: Inputs) -> torch.Tensor:
    """(X4): the same of the mixed rows. The teacher may have seen those alone."""
    assert inputs.pairs is not None
    own, shown = _own(inputs)[inputs.pairs.plain :], _shown(inputs)
    return _distance(own, shown[len(shown) - len(own) :], inputs).sum() * inputs.pairs.weight


def patience(inputs: Inputs) -> torch.Tensor:
    """(B6): squared distance of the normalised first states of all layers but the last, of the plain rows, summed."""
    assert inputs.pairs is not None
    plain = slice(inputs.pairs.plain)
    layers = zip(inputs.student.hidden[:-1], inputs.taught(inputs.teacher.hidden)[:-1], strict=True)
    return sum_of(F.mse_loss(_first(own[plain]), _first(shown[plain])) for own, shown in layers)


def states(inputs: Inputs) -> torch.Tensor:
    """(M4): squared distance of every layer's states, at the teacher's width, at the tokens of the plain rows: the mean
    of each row's tokens, over rows and layers. The published code compares every second layer and the embedding."""
    assert inputs.pairs is not None
    assert inputs.pairs.mask is not None
    plain = slice(inputs.pairs.plain)
    tokens = inputs.pairs.mask[plain].float()
    share = tokens / tokens.sum(1, keepdim=True)
    layers = list(zip(inputs.student.hidden, inputs.taught(inputs.teacher.hidden), strict=True))
    squares = ((own[plain].float() - shown[plain].float()).square().mean(-1) for own, shown in layers)
    return sum_of((square * share).sum(1).mean() for square in squares) / len(layers)


def _first(states: torch.Tensor) -> torch.Tensor:
    """The states [B, H] of the first token, of length 1."""
    return F.normalize(states[:, 0].float(), dim=-1)


def _own(inputs: Inputs) -> torch.Tensor:
    assert inputs.student.logits is not None
    return inputs.student.logits.float()


def _shown(inputs: Inputs) -> torch.Tensor:
    assert inputs.teacher.logits is not None
    return inputs.teacher.logits.float()


def _error(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[R] from logits [R, C] and labels [R], whole numbers of classes or the values of a regression."""
    if labels.is_floating_point():
        return (logits.squeeze(-1) - labels) ** 2
    return F.cross_entropy(logits, labels, reduction="none")


def _distance(own: torch.Tensor, shown: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """[R] from logits [R, C] of student and teacher. One value has no distribution: it is compared by its square."""
    if inputs.distance == "mse" or own.shape[-1] == 1:
        return ((shown - own) ** 2).mean(-1)
    tau = inputs.temperature
    student, teacher = F.log_softmax(own / tau, dim=-1), F.log_softmax(shown / tau, dim=-1)
    compared = teacher - student if inputs.distance == "kl" else -student
    return tau**2 * (teacher.exp() * compared).sum(-1)


TASK_LOSSES: dict[str, LossTerm] = {
    "task": LossTerm(function=task, reads=("logits",), needs_teacher=False),
    "mixed_task": LossTerm(function=mixed_task, reads=("logits",), needs_teacher=False),
    "kd": LossTerm(function=kd, reads=("logits",)),
    "mixed_kd": LossTerm(function=mixed_kd, reads=("logits",)),
    "patience": LossTerm(function=patience, reads=("hidden",)),
    "states": LossTerm(function=states, reads=("hidden",)),
}
