"""The named losses: pure functions of student and teacher activations, means over global counts.

Every row of a batch has the same number of predicted and of real tokens, so a mean over a micro batch adds up to the
mean over the global batch whatever the split. Shapes: B batch, L length, K predicted, H hidden, A heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from homodistil_ds.models.forward import Activations, Read


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """All that a loss may read. `head_origins[k]` names the teacher head behind each kept student head of layer k;
    `student_heads[k]` are those heads' places in the student's own maps."""

    student: Activations
    teacher: Activations
    labels: torch.Tensor
    temperature: float = 1.0
    student_heads: Sequence[torch.Tensor] = field(default_factory=list)
    head_origins: Sequence[torch.Tensor] = field(default_factory=list)


def mlm(inputs: Inputs) -> torch.Tensor:
    """(H8): cross entropy of the predicted tokens; logits [B, K, V], labels [B, K]."""
    assert inputs.student.logits is not None
    return F.cross_entropy(inputs.student.logits.float().flatten(0, 1), inputs.labels.flatten())


def kl(inputs: Inputs) -> torch.Tensor:
    """(H10): tau^2 KL(teacher || student) at the predicted positions."""
    assert inputs.student.logits is not None
    assert inputs.teacher.logits is not None
    tau = inputs.temperature
    student = F.log_softmax(inputs.student.logits.float().flatten(0, 1) / tau, dim=-1)
    teacher = F.log_softmax(inputs.teacher.logits.float().flatten(0, 1) / tau, dim=-1)
    return tau**2 * (teacher.exp() * (teacher - student)).sum(-1).mean()


def hidden(inputs: Inputs) -> torch.Tensor:
    """(H11): squared distance of every layer's states at the teacher's width, summed over layers."""
    pairs = zip(inputs.student.hidden, inputs.teacher.hidden, strict=True)
    return sum_of(F.mse_loss(student.float(), teacher.float()) for student, teacher in pairs)


def attention(inputs: Inputs) -> torch.Tensor:
    """(H12): squared distance of the attention maps of every kept head to its origin, summed over layers."""
    layers = zip(
        inputs.student.attention, inputs.teacher.attention, inputs.student_heads, inputs.head_origins, strict=True
    )
    return sum_of(
        F.mse_loss(_heads(student, own).float(), _heads(teacher, origin).float())
        for student, teacher, own, origin in layers
    )


def embedding(inputs: Inputs) -> torch.Tensor:
    """(H13): squared distance of the embedding layer's output at the teacher's width."""
    assert inputs.student.embedding is not None
    assert inputs.teacher.embedding is not None
    return F.mse_loss(inputs.student.embedding.float(), inputs.teacher.embedding.float())


def sum_of(terms: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(terms)).sum()


def _heads(maps: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
    """The named heads of maps [B, A, L, L]; no copy if they are all of them."""
    return maps if len(heads) == maps.shape[1] else maps.index_select(1, heads.to(maps.device))


@dataclass(frozen=True, kw_only=True)
class LossTerm:
    """A loss and the activations it reads; `needs_teacher` losses drop out of a stage without one."""

    function: Callable[[Inputs], torch.Tensor]
    reads: tuple[Read, ...]
    needs_teacher: bool = True


LOSSES: dict[str, LossTerm] = {
    "mlm": LossTerm(function=mlm, reads=("logits",), needs_teacher=False),
    "kl": LossTerm(function=kl, reads=("logits",)),
    "hidden": LossTerm(function=hidden, reads=("hidden",)),
    "attention": LossTerm(function=attention, reads=("attention",)),
    "embedding": LossTerm(function=embedding, reads=("embedding",)),
}
