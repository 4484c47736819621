"""Every loss against its formula (H8, H10-H13, B2-B5) written out with loops in float64."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from homodistil_ds.distillation.losses import LOSSES, Inputs
from homodistil_ds.models.forward import Activations

ROWS, LENGTH, PREDICTED, VOCABULARY, HIDDEN, HEADS, LAYERS = 4, 5, 3, 7, 6, 4, 2
HEAD_SIZE, RELATION_HEADS = 3, 2
TAU = 1.7
KEPT = [torch.tensor([0, 2, 3]), torch.tensor([1, 2, 3])]
DISTANCES = [name for name, term in LOSSES.items() if term.needs_teacher]


def activations(seed: int) -> Activations:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return Activations(
        logits=3 * normal(ROWS, PREDICTED, VOCABULARY),
        hidden=tuple(normal(ROWS, LENGTH, HIDDEN) for _ in range(LAYERS)),
        attention=tuple(normal(ROWS, HEADS, LENGTH, LENGTH).softmax(-1) for _ in range(LAYERS)),
        embedding=normal(ROWS, LENGTH, HIDDEN),
        last=normal(ROWS, LENGTH, HIDDEN),
        queries=tuple(normal(ROWS, HEADS, LENGTH, HEAD_SIZE) for _ in range(LAYERS)),
        keys=tuple(normal(ROWS, HEADS, LENGTH, HEAD_SIZE) for _ in range(LAYERS)),
        values=tuple(normal(ROWS, HEADS, LENGTH, HEAD_SIZE) for _ in range(LAYERS)),
    )


def mapped(part: Activations, change: Callable[[torch.Tensor], torch.Tensor]) -> Activations:
    changed = {
        name: tuple(map(change, own)) if isinstance(own, tuple) else change(own)
        for name, own in part._asdict().items()
        if isinstance(own, tuple | torch.Tensor)
    }
    return part._replace(**changed)


LABELS = torch.randint(0, VOCABULARY, (ROWS, PREDICTED), generator=torch.Generator().manual_seed(9))
INPUTS = Inputs(
    student=activations(1),
    teacher=activations(2),
    labels=LABELS,
    temperature=TAU,
    student_heads=KEPT,
    head_origins=KEPT,
    relation_heads=RELATION_HEADS,
)


def probabilities(logits: list[float], tau: float) -> list[float]:
    total = math.fsum(math.exp(z / tau) for z in logits)
    return [math.exp(z / tau) / total for z in logits]


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def logits_of(part: Activations) -> list[list[float]]:
    assert part.logits is not None
    return part.logits.double().flatten(0, 1).tolist()


def mlm(inputs: Inputs) -> float:
    rows = zip(logits_of(inputs.student), inputs.labels.flatten().tolist(), strict=True)
    return mean([-math.log(probabilities(logits, 1.0)[label]) for logits, label in rows])


def kl(inputs: Inputs) -> float:
    divergences = []
    for own, shown in zip(logits_of(inputs.student), logits_of(inputs.teacher), strict=True):
        pairs = zip(probabilities(shown, TAU), probabilities(own, TAU), strict=True)
        divergences.append(math.fsum(p * math.log(p / q) for p, q in pairs))
    return TAU**2 * mean(divergences)


def kl_of(first: list[float], second: list[float]) -> float:
    return math.fsum(p * math.log(p / q) for p, q in zip(first, second, strict=True))


def softened(inputs: Inputs) -> list[tuple[list[float], list[float]]]:
    """Of each predicted position what the student and the teacher expect."""
    rows = zip(logits_of(inputs.student), logits_of(inputs.teacher), strict=True)
    return [(list(probabilities(own, TAU)), list(probabilities(shown, TAU))) for own, shown in rows]


def reverse_kl(inputs: Inputs) -> float:
    return TAU**2 * mean([kl_of(own, shown) for own, shown in softened(inputs)])


def jsd(inputs: Inputs) -> float:
    found = []
    for own, shown in softened(inputs):
        middle = [(p + q) / 2 for p, q in zip(own, shown, strict=True)]
        found.append((kl_of(own, middle) + kl_of(shown, middle)) / 2)
    return TAU**2 * mean(found)


def mean_square(own: torch.Tensor, shown: torch.Tensor) -> float:
    pairs = zip(own.double().flatten().tolist(), shown.double().flatten().tolist(), strict=True)
    return mean([(a - b) ** 2 for a, b in pairs])


def hidden(inputs: Inputs) -> float:
    pairs = zip(inputs.student.hidden, inputs.teacher.hidden, strict=True)
    return math.fsum(mean_square(own, shown) for own, shown in pairs)


def attention(inputs: Inputs) -> float:
    total = 0.0
    for layer in range(LAYERS):
        heads = zip(inputs.student_heads[layer].tolist(), inputs.head_origins[layer].tolist(), strict=True)
        own, shown = inputs.student.attention[layer], inputs.teacher.attention[layer]
        total += mean([mean_square(own[:, head], shown[:, origin]) for head, origin in heads])
    return total


def embedding(inputs: Inputs) -> float:
    assert inputs.student.embedding is not None
    assert inputs.teacher.embedding is not None
    return mean_square(inputs.student.embedding, inputs.teacher.embedding)


def cosine(inputs: Inputs) -> float:
    rows = zip(*(part.last.double().flatten(0, 1).tolist() for part in (inputs.student, inputs.teacher)), strict=True)
    return mean([1 - dot(own, shown) / math.sqrt(dot(own, own) * dot(shown, shown)) for own, shown in rows])


def dot(first: list[float], second: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(first, second, strict=True))


def table(rows: torch.Tensor, columns: torch.Tensor) -> list[list[float]]:
    """Scores of one head from [L, D] and [L, D]."""
    size = rows.shape[-1]
    pairs = rows.double().tolist(), columns.double().tolist()
    return [[dot(row, column) / math.sqrt(size) for column in pairs[1]] for row in pairs[0]]


def scores(inputs: Inputs) -> float:
    total = 0.0
    for layer in range(LAYERS):
        heads = zip(inputs.student_heads[layer].tolist(), inputs.head_origins[layer].tolist(), strict=True)
        squares = [
            (own - shown) ** 2
            for head, origin in heads
            for row in range(ROWS)
            for lines in zip(
                table(inputs.student.queries[layer][row, head], inputs.student.keys[layer][row, head]),
                table(inputs.teacher.queries[layer][row, origin], inputs.teacher.keys[layer][row, origin]),
                strict=True,
            )
            for own, shown in zip(*lines, strict=True)
        ]
        total += mean(squares)
    return total


def divergence(shown: list[float], own: list[float]) -> float:
    return math.fsum(p * math.log(p / q) for p, q in zip(shown, own, strict=True))


def attention_kl(inputs: Inputs) -> float:
    own, shown = inputs.student.attention[-1].double().tolist(), inputs.teacher.attention[-1].double().tolist()
    heads = list(zip(inputs.student_heads[-1].tolist(), inputs.head_origins[-1].tolist(), strict=True))
    return mean(
        [
            divergence(shown[row][origin][query], own[row][head][query])
            for row in range(ROWS)
            for head, origin in heads
            for query in range(LENGTH)
        ]
    )


def relations(own: torch.Tensor, shown: torch.Tensor) -> float:
    """Of states [B, heads, L, D]."""
    found = []
    for row in range(own.shape[0]):
        for head in range(own.shape[1]):
            lines = zip(table(own[row, head], own[row, head]), table(shown[row, head], shown[row, head]), strict=True)
            found += [divergence(probabilities(its, 1.0), probabilities(mine, 1.0)) for mine, its in lines]
    return mean(found)


def value_relation(inputs: Inputs) -> float:
    return relations(inputs.student.values[-1], inputs.teacher.values[-1])


def relation(inputs: Inputs) -> float:
    def in_heads(states: torch.Tensor) -> torch.Tensor:
        whole = torch.cat(list(states.unbind(1)), dim=-1)  # [B, L, heads D]
        return torch.stack(whole.chunk(RELATION_HEADS, dim=-1), dim=1)

    return math.fsum(
        relations(in_heads(getattr(inputs.student, name)[-1]), in_heads(getattr(inputs.teacher, name)[-1]))
        for name in ("queries", "keys", "values")
    )


NAIVE: dict[str, Callable[[Inputs], float]] = {
    "mlm": mlm,
    "kl": kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
    "hidden": hidden,
    "attention": attention,
    "embedding": embedding,
    "cosine": cosine,
    "scores": scores,
    "attention_kl": attention_kl,
    "value_relation": value_relation,
    "relation": relation,
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_its_formula(name: str) -> None:
    assert float(LOSSES[name].function(INPUTS)) == pytest.approx(NAIVE[name](INPUTS), rel=1e-5)


@pytest.mark.parametrize("name", DISTANCES)
def test_a_distance_is_exactly_zero_from_the_teacher_to_itself_and_positive_elsewhere(name: str) -> None:
    at_itself = float(LOSSES[name].function(replace(INPUTS, student=INPUTS.teacher)))
    assert at_itself == pytest.approx(0.0, abs=2e-7) if name == "cosine" else at_itself == 0.0
    assert float(LOSSES[name].function(INPUTS)) > 0.0


@pytest.mark.parametrize("name", LOSSES)
def test_the_mean_over_two_equal_micro_batches_is_the_whole(name: str) -> None:
    def part(whole: Activations, rows: slice) -> Activations:
        return mapped(whole, lambda tensor: tensor[rows])

    halves = [
        replace(INPUTS, student=part(INPUTS.student, rows), teacher=part(INPUTS.teacher, rows), labels=LABELS[rows])
        for rows in (slice(0, 2), slice(2, 4))
    ]
    function = LOSSES[name].function
    assert float(sum(map(function, halves)) / 2) == pytest.approx(float(function(INPUTS)), rel=1e-6)


def test_the_attention_loss_ignores_removed_heads_on_both_sides() -> None:
    function = LOSSES["attention"].function
    before = function(INPUTS)

    def disturbed(part: Activations, layer: int, head: int) -> Activations:
        maps = [tensor.clone() for tensor in part.attention]
        maps[layer][:, head] += 1.0
        return part._replace(attention=tuple(maps))

    for layer, kept in enumerate(KEPT):
        for head in range(HEADS):
            for side in ("student", "teacher"):
                changed = function(replace(INPUTS, **{side: disturbed(getattr(INPUTS, side), layer, head)}))
                assert torch.equal(changed, before) == (head not in kept.tolist()), (layer, head, side)


def test_a_cut_student_with_fewer_maps_has_the_attention_loss_of_the_masked_one() -> None:
    maps = tuple(maps[:, heads] for maps, heads in zip(INPUTS.student.attention, KEPT, strict=True))
    narrow = replace(
        INPUTS,
        student=INPUTS.student._replace(attention=maps),
        student_heads=[torch.arange(len(heads)) for heads in KEPT],
    )
    assert torch.equal(LOSSES["attention"].function(narrow), LOSSES["attention"].function(INPUTS))


@pytest.mark.parametrize("name", LOSSES)
def test_low_precision_activations_are_compared_in_float32(name: str) -> None:
    def rounded(part: Activations, dtype: torch.dtype) -> Activations:
        return mapped(part, lambda tensor: tensor.bfloat16().to(dtype))

    losses = [
        LOSSES[name].function(
            replace(INPUTS, student=rounded(INPUTS.student, dtype), teacher=rounded(INPUTS.teacher, dtype))
        )
        for dtype in (torch.bfloat16, torch.float32)
    ]
    assert losses[0].dtype is torch.float32
    assert torch.equal(*losses)


@pytest.mark.parametrize("name", ["hidden", "attention", "scores"])
def test_a_shallower_student_is_compared_with_the_layers_it_is_told(name: str) -> None:
    def only(part: Activations, layer: int) -> Activations:
        return part._replace(**{field: (getattr(part, field)[layer],) for field in LAYERED})

    heads = {"student_heads": KEPT[1:], "head_origins": KEPT[1:]}
    function = LOSSES[name].function
    mapped_to_it = function(replace(INPUTS, student=only(INPUTS.student, 1), layer_map=(1,), **heads))
    alone = replace(INPUTS, student=only(INPUTS.student, 1), teacher=only(INPUTS.teacher, 1), **heads)
    assert torch.equal(mapped_to_it, function(alone))


LAYERED = ("hidden", "attention", "queries", "keys", "values")
