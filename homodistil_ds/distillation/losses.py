"""The named losses: pure functions of student and teacher activations, means over global counts.

Every row of a batch has the same number of predicted and of real tokens, so a mean over a micro batch adds up to the
mean over the global batch whatever the split. Shapes: B batch, L length, K predicted, H hidden, A heads, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F

from homodistil_ds.distillation.attention_maps import SHORTEST, Distance, Scored, over_tiles
from homodistil_ds.models.forward import Activations, Read

TINY = 1e-12  # probabilities below count as this


class Pairs(NamedTuple):
    """Of the R rows of a task's micro batch the first `plain` are examples, the others mixed pairs of examples.

    other_labels [R] are those of each row's second example, share [R] is what the row has of its first. The sum over
    mixed rows times `weight` adds up, over micro batches, to their mean in the global batch. mask [R, L] is 1 where a
    row has a token.
    """

    other_labels: torch.Tensor
    share: torch.Tensor
    plain: int
    weight: float
    mask: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """All that a loss may read. `head_origins[k]` names the teacher head behind each kept student head of layer k;
    `student_heads[k]` are those heads' places in the student's own maps. `layer_map[k]` is the teacher's layer that the
    student's layer k is compared with; empty: the same one."""

    student: Activations
    teacher: Activations
    labels: torch.Tensor
    temperature: float = 1.0
    student_heads: Sequence[torch.Tensor] = field(default_factory=list)
    head_origins: Sequence[torch.Tensor] = field(default_factory=list)
    layer_map: Sequence[int] = ()
    relation_heads: int = 1
    pairs: Pairs | None = None
    distance: str = "mse"
    vocabulary: int = 0
    """V, where logits are made in parts."""

    def taught(self, layers: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """The teacher's layers that the student's are compared with, one for each."""
        return [layers[place] for place in self.layer_map] if self.layer_map else layers


def mlm(inputs: Inputs) -> torch.Tensor:
    """(H8): cross entropy of the predicted tokens, masked or next ones; logits [B, K, V], labels [B, K]."""
    assert inputs.student.logits is not None
    return F.cross_entropy(at_least_float(inputs.student.logits).flatten(0, 1), inputs.labels.flatten())


def kl(inputs: Inputs) -> torch.Tensor:
    """(H10): tau^2 KL(teacher || student) at the predicted positions."""
    student, teacher = _softened(inputs)
    return inputs.temperature**2 * _divergence(teacher, student)


def reverse_kl(inputs: Inputs) -> torch.Tensor:
    """tau^2 KL(student || teacher): the student is not to say what the teacher would not."""
    student, teacher = _softened(inputs)
    return inputs.temperature**2 * _divergence(student, teacher)


def jsd(inputs: Inputs) -> torch.Tensor:
    """tau^2 times the Jensen-Shannon divergence: the mean KL of both from their mean."""
    student, teacher = _softened(inputs)
    # How far each is above the mean, written so that it is exactly 0 where both are equal.
    above = (math.log(2) - F.softplus(other - own) for own, other in ((teacher, student), (student, teacher)))
    own = (logarithms.exp() for logarithms in (teacher, student))
    return inputs.temperature**2 * sum_of((p * its).sum(-1).mean() for p, its in zip(own, above, strict=True)) / 2


def _softened(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Logarithms of what student and teacher expect, [B K, V], in float32 at least."""
    assert inputs.student.logits is not None
    assert inputs.teacher.logits is not None
    both = (at_least_float(logits).flatten(0, 1) for logits in (inputs.student.logits, inputs.teacher.logits))
    student, teacher = (F.log_softmax(logits / inputs.temperature, dim=-1) for logits in both)
    return student, teacher


def _divergence(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """KL(first || second), mean over rows of logarithms [N, V]."""
    return (first.exp() * (first - second)).sum(-1).mean()


def at_least_float(values: torch.Tensor) -> torch.Tensor:
    return values if values.dtype == torch.float64 else values.float()


def hidden(inputs: Inputs) -> torch.Tensor:
    """(H11): squared distance of every layer's states at the teacher's width, summed over layers."""
    pairs = zip(inputs.student.hidden, inputs.taught(inputs.teacher.hidden), strict=True)
    return sum_of(F.mse_loss(student.float(), teacher.float()) for student, teacher in pairs)


def attention(inputs: Inputs) -> torch.Tensor:
    """(H12): squared distance of the attention maps of every kept head to its origin, summed over layers."""
    layers = range(len(inputs.student_heads))
    pairs = zip(layers, inputs.layer_map or layers, strict=True)
    return sum_of(_between_maps(F.mse_loss, inputs, own, shown) for own, shown in pairs)


def embedding(inputs: Inputs) -> torch.Tensor:
    """(H13): squared distance of the embedding layer's output at the teacher's width."""
    assert inputs.student.embedding is not None
    assert inputs.teacher.embedding is not None
    return F.mse_loss(inputs.student.embedding.float(), inputs.teacher.embedding.float())


def cosine(inputs: Inputs) -> torch.Tensor:
    """(B2): 1 - cosine of the last layer's states [B, L, H], which have one width."""
    assert inputs.student.last is not None
    assert inputs.teacher.last is not None
    return 1 - F.cosine_similarity(inputs.student.last.float(), inputs.teacher.last.float(), dim=-1).mean()


def scores(inputs: Inputs) -> torch.Tensor:
    """(B3): squared distance of the attention scores of every head to its origin, summed over layers."""
    own = zip(inputs.student.queries, inputs.student.keys, inputs.student_heads, strict=True)
    taught = inputs.taught(inputs.teacher.queries), inputs.taught(inputs.teacher.keys)
    shown = zip(*taught, inputs.head_origins, strict=True)
    return sum_of(
        _between_scores(*(_heads(states, heads) for *both, heads in pair for states in both))
        for pair in zip(own, shown, strict=True)
    )


def _between_scores(
    queries: torch.Tensor, keys: torch.Tensor, its_queries: torch.Tensor, its_keys: torch.Tensor
) -> torch.Tensor:
    """Mean square of Q K^T / sqrt(D) - Q' K'^T / sqrt(D') for [B, A, L, D] and [B, A, L, D'], without an [L, L] tensor.

    With the smaller states filled up with zeros that is q K^T + Q' k^T, where q and k are the differences of scaled
    queries and of keys, and |X Y^T + Z W^T|^2 is a sum of products of matrices [D, D]. Differences come first so that
    near the teacher only small numbers are added: |Q K^T|^2 - 2 (...) + |Q' K'^T|^2 would lose them in float32.
    """
    scaled = (at_least_float(states) / states.shape[-1] ** 0.5 for states in (queries, its_queries))
    size, length = max(keys.shape[-1], its_keys.shape[-1]), keys.shape[-2]
    own, shown = (F.pad(states, (0, size - states.shape[-1])) for states in scaled)
    columns, its = (F.pad(at_least_float(states), (0, size - states.shape[-1])) for states in (keys, its_keys))
    apart, columns_apart = own - shown, columns - its
    squares = (
        _inner(apart, apart, columns, columns)
        + 2 * _inner(shown, apart, columns_apart, columns)
        + _inner(shown, shown, columns_apart, columns_apart)
    )
    return squares.mean().clamp_min(0) / length**2


def _inner(rows: torch.Tensor, other_rows: torch.Tensor, columns: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """[B, A]: the sum over entries of (rows columns^T) (other_rows others^T), for states [B, A, L, D]."""
    return ((rows.transpose(-1, -2) @ other_rows) * (columns.transpose(-1, -2) @ others)).sum((-2, -1))


def attention_kl(inputs: Inputs) -> torch.Tensor:
    """(B4): KL(teacher || student) of the last layer's attention maps [B, A, L, L], mean over heads and rows."""
    return _between_maps(_map_kl, inputs, -1, -1)


def _map_kl(own: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    """KL(shown || own) of maps [B, A, L, L], mean over heads and rows."""
    return (shown * (shown.clamp_min(TINY).log() - own.clamp_min(TINY).log())).sum(-1).mean()


def _between_maps(distance: Distance, inputs: Inputs, own: int, shown: int) -> torch.Tensor:
    """Distance of the maps of the student's layer `own` to those of the teacher's layer `shown`, of every kept head to
    its origin. Where the models hand over no maps they are made of queries and keys, in tiles."""
    heads, origins = inputs.student_heads[own], inputs.head_origins[own]
    sides = (inputs.student, own, heads), (inputs.teacher, shown, origins)
    if inputs.student.attention:
        return distance(*(at_least_float(_heads(model.attention[layer], its)) for model, layer, its in sides))
    student, teacher = (_scored(model, layer, its) for model, layer, its in sides)
    return over_tiles(distance, student, teacher)


def _scored(model: Activations, layer: int, heads: torch.Tensor) -> Scored:
    assert model.scale is not None
    queries, keys = (_heads(states[layer], heads) for states in (model.queries, model.keys))
    return Scored(queries, keys, model.scale, model.causal)


def value_relation(inputs: Inputs) -> torch.Tensor:
    """(B4): KL of the last layer's relations between values, one per head; both models have as many heads."""
    return _relation_kl(inputs.student.values[-1], inputs.teacher.values[-1])


def relation(inputs: Inputs) -> torch.Tensor:
    """(B5): KL of the last layer's relations between queries, between keys and between values, summed."""
    pairs = (
        (getattr(inputs.student, name)[-1], getattr(inputs.teacher, name)[-1]) for name in ("queries", "keys", "values")
    )
    heads = inputs.relation_heads
    return sum_of(_relation_kl(_regrouped(own, heads), _regrouped(shown, heads)) for own, shown in pairs)


def _relation_kl(own: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) of softmax(X X^T / sqrt(D)) for X [B, A, L, D], mean over heads and rows."""
    student, teacher = (
        Scored(states, states, states.shape[-1] ** -0.5) for states in map(at_least_float, (own, shown))
    )
    length = own.shape[-2]
    if length >= SHORTEST:
        return over_tiles(_log_kl, student, teacher, Scored.log_maps)
    return _log_kl(student.log_maps(0, length), teacher.log_maps(0, length))


def _log_kl(own: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    """KL(shown || own) of logarithms of maps [B, A, L, L], mean over heads and rows."""
    return (shown.exp() * (shown - own)).sum(-1).mean()


def _regrouped(states: torch.Tensor, heads: int) -> torch.Tensor:
    """States [B, A, L, D] in as many heads as asked: [B, heads, L, A D / heads]."""
    return states.transpose(1, 2).flatten(2).unflatten(-1, (heads, -1)).transpose(1, 2)


def sum_of(terms: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(terms)).sum()


def _heads(all_of_them: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
    """The named heads of maps [B, A, L, L] or states [B, A, L, D]; no copy if they are all of them."""
    if len(heads) == all_of_them.shape[1]:
        return all_of_them
    return all_of_them.index_select(1, heads.to(all_of_them.device))


@dataclass(frozen=True, kw_only=True)
class LossTerm:
    """A loss and the activations it reads; `needs_teacher` losses drop out of a stage without one."""

    function: Callable[[Inputs], torch.Tensor]
    reads: tuple[Read, ...]
    needs_teacher: bool = True


LOSSES: dict[str, LossTerm] = {
    "mlm": LossTerm(function=mlm, reads=("logits",), needs_teacher=False),
    "kl": LossTerm(function=kl, reads=("logits",)),
    "reverse_kl": LossTerm(function=reverse_kl, reads=("logits",)),
    "jsd": LossTerm(function=jsd, reads=("logits",)),
    "hidden": LossTerm(function=hidden, reads=("hidden",)),
    "attention": LossTerm(function=attention, reads=("attention",)),
    "embedding": LossTerm(function=embedding, reads=("embedding",)),
    "cosine": LossTerm(function=cosine, reads=("last",)),
    "scores": LossTerm(function=scores, reads=("queries", "keys")),
    "attention_kl": LossTerm(function=attention_kl, reads=("attention",)),
    "value_relation": LossTerm(function=value_relation, reads=("values",)),
    "relation": LossTerm(function=relation, reads=("queries", "keys", "values")),
}
