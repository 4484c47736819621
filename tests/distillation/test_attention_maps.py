"""Attention losses without maps: values and gradients of whole maps, from tensors that do not grow with L squared."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from family_models import odd_widths, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from homodistil_ds.config import LossConfig
from homodistil_ds.distillation import attention_maps, losses
from homodistil_ds.distillation.attention_maps import Scored, in_tiles, rows_at_once
from homodistil_ds.distillation.losses import LOSSES, Inputs
from homodistil_ds.distillation.objective import Objective
from homodistil_ds.models.families import FAMILIES, plan_for
from homodistil_ds.models.forward import Activations, Student, Teacher
from homodistil_ds.models.loading import twin
from homodistil_ds.pruning.masks import Masks
from homodistil_ds.pruning.shrink import cut
from homodistil_ds.runtime.shards import whole

PLAIN = ["bert", "roberta", "distilbert", "electra", "electra-narrow", "gpt2", "opt"]
RELATED = ("queries", "keys", "values")
OF_MAPS = ["attention", "attention_kl"]
BATCH, LENGTH, OWN_SIZE, SIZE = 2, 37, 3, 5  # tiles of ten rows, the last of seven
STUDENT_HEADS = [torch.tensor([0, 2]), torch.tensor([1, 2])]
ORIGINS = [torch.tensor([1, 3]), torch.tensor([0, 2])]
LAYER_MAP = (1, 2)


def states(seed: int, layers: int, heads: int, length: int, size: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        2 * torch.randn(BATCH, heads, length, size, generator=generator, dtype=torch.float64) for _ in range(layers)
    )


def side(seed: int, layers: int, heads: int, size: int, causal: bool, length: int = LENGTH) -> Activations:
    queries, keys = (states(2 * seed + place, layers, heads, length, size) for place in (0, 1))
    return Activations(queries=queries, keys=keys, scale=0.7, causal=causal)


def with_maps(part: Activations) -> Activations:
    """The maps as attention itself makes them."""
    assert part.scale is not None
    maps = []
    for queries, keys in zip(part.queries, part.keys, strict=True):
        scores = torch.einsum("bald,bamd->balm", queries, keys) * part.scale
        if part.causal:
            scores = scores + torch.full(scores.shape[-2:], float("-inf")).triu(1)
        maps.append(scores.softmax(-1))
    return part._replace(attention=tuple(maps), queries=(), keys=())


def compared(student: Activations, teacher: Activations) -> Inputs:
    return Inputs(
        student=student,
        teacher=teacher,
        labels=torch.zeros(0),
        student_heads=STUDENT_HEADS,
        head_origins=ORIGINS,
        layer_map=LAYER_MAP,
    )


def learnt(student: Activations, loss: Callable[[Activations], torch.Tensor]) -> tuple[torch.Tensor, list[Any]]:
    """A loss and its gradients at all queries and keys."""
    leaves = [part.clone().requires_grad_(True) for part in (*student.queries, *student.keys)]
    layers = len(student.queries)
    value = loss(student._replace(queries=tuple(leaves[:layers]), keys=tuple(leaves[layers:])))
    return value.detach(), list(torch.autograd.grad(value, leaves, allow_unused=True))


def same(own: tuple[torch.Tensor, list[Any]], theirs: tuple[torch.Tensor, list[Any]], rel: float = 1e-9) -> None:
    torch.testing.assert_close(own[0], theirs[0], rtol=rel, atol=0)
    largest = max(float(gradient.abs().max()) for gradient in theirs[1] if gradient is not None)
    for mine, its in zip(own[1], theirs[1], strict=True):
        if its is None or mine is None:  # of layers that no loss reads
            assert its is None or not its.any()
        else:
            torch.testing.assert_close(mine, its, rtol=rel, atol=rel * largest)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", OF_MAPS)
def test_tiles_give_values_and_gradients_of_whole_maps(name: str, causal: bool) -> None:
    """Of heads that were kept, of other sizes, against the layers that a shallower student is told."""
    student, teacher = side(1, 2, 3, OWN_SIZE, causal), side(2, 3, 4, SIZE, causal)
    function = LOSSES[name].function
    in_parts = learnt(student, lambda own: function(compared(own, teacher)))
    at_once = learnt(student, lambda own: function(compared(with_maps(own), with_maps(teacher))))
    assert in_parts[0] > 0
    same(in_parts, at_once)


@pytest.mark.parametrize("name", ["value_relation", "relation"])
def test_tiles_give_values_and_gradients_of_whole_relations(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the last layer; its heads are regrouped where they need not be as many."""
    own, shown = (
        Activations(**{part: states(seed + place, 1, 4, LENGTH, size) for place, part in enumerate(RELATED)})
        for seed, size in ((1, OWN_SIZE), (7, SIZE))
    )

    def values() -> tuple[torch.Tensor, list[Any]]:
        leaves = [getattr(own, part)[0].clone().requires_grad_(True) for part in RELATED]
        student = Activations(**{part: (leaf,) for part, leaf in zip(RELATED, leaves, strict=True)})
        value = LOSSES[name].function(replace(compared(student, shown), relation_heads=2))
        return value.detach(), list(torch.autograd.grad(value, leaves, allow_unused=True))

    at_once = values()
    monkeypatch.setattr(losses, "SHORTEST", 1)
    in_parts = values()
    assert in_parts[0] > 0
    same(in_parts, at_once)


def direct_scores(inputs: Inputs) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for layer, (heads, origins, shown) in enumerate(zip(STUDENT_HEADS, ORIGINS, LAYER_MAP, strict=True)):
        own, its = (
            model.queries[place][:, which] @ model.keys[place][:, which].mT / model.queries[place].shape[-1] ** 0.5
            for model, place, which in ((inputs.student, layer, heads), (inputs.teacher, shown, origins))
        )
        total = total + (own - its).square().mean()
    return total


@pytest.mark.parametrize("sizes", [(OWN_SIZE, SIZE), (SIZE, OWN_SIZE), (SIZE, SIZE)])
def test_scores_have_values_and_gradients_of_their_direct_form(sizes: tuple[int, int]) -> None:
    student, teacher = side(1, 2, 3, sizes[0], causal=False), side(2, 3, 4, sizes[1], causal=False)
    own = learnt(student, lambda part: LOSSES["scores"].function(compared(part, teacher)))
    same(own, learnt(student, lambda part: direct_scores(compared(part, teacher))))


def test_scores_near_the_teachers_keep_their_digits_in_float32() -> None:
    """A thousandth away: what is left of numbers around 5 is 1e-5."""
    teacher = side(2, 3, 4, 64, causal=False, length=128)
    generator = torch.Generator().manual_seed(0)

    def near(part: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
        own = torch.zeros(BATCH, 3, *part.shape[2:], dtype=torch.float64)
        return own.index_copy(1, heads, part) + 1e-3 * torch.randn(own.shape, generator=generator)

    kept = list(zip(LAYER_MAP, ORIGINS, STUDENT_HEADS, strict=True))
    queries, keys = (
        tuple(near(parts[layer][:, origins], heads) for layer, origins, heads in kept)
        for parts in (teacher.queries, teacher.keys)
    )
    student = Activations(queries=queries, keys=keys)

    def rounded(part: Activations) -> Activations:
        return Activations(queries=tuple(x.float() for x in part.queries), keys=tuple(x.float() for x in part.keys))

    def exact(part: Activations) -> torch.Tensor:
        return direct_scores(
            compared(
                Activations(queries=tuple(x.double() for x in part.queries), keys=tuple(x.double() for x in part.keys)),
                Activations(queries=tuple(x.float().double() for x in teacher.queries),
                            keys=tuple(x.float().double() for x in teacher.keys)),
            )
        )  # fmt: skip

    function = LOSSES["scores"].function
    value, gradients = learnt(rounded(student), lambda own: function(compared(own, rounded(teacher))))
    true_value, true_gradients = learnt(rounded(student), exact)
    assert 0 < true_value < 1e-4
    assert float(value) == pytest.approx(float(true_value), rel=1e-5)
    for own, theirs in zip(gradients, true_gradients, strict=True):
        assert (own - theirs).norm() < 1e-5 * theirs.norm()


def test_scores_that_are_equal_by_a_rotation_are_not_negative() -> None:
    generator = torch.Generator().manual_seed(3)
    turn = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator)).Q
    teacher = side(2, 2, 3, SIZE, causal=False)._asdict()
    shown = Activations(**{name: tuple(x.float() for x in teacher[name]) for name in ("queries", "keys")})
    turned = Activations(queries=tuple(x @ turn for x in shown.queries), keys=tuple(x @ turn for x in shown.keys))
    inputs = replace(compared(turned, shown), layer_map=(), head_origins=STUDENT_HEADS)
    assert 0 <= float(LOSSES["scores"].function(inputs)) < 1e-5


class Sizes(TorchDispatchMode):
    """Notes the most entries of a tensor that any operator made, and how many products there were."""

    def __init__(self) -> None:
        super().__init__()
        self.most = self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.products += "bmm" in str(func)
        for part in out if isinstance(out, tuple | list) else (out,):
            if isinstance(part, torch.Tensor):
                self.most = max(self.most, part.numel())
        return out


@pytest.mark.parametrize("name", [*OF_MAPS, "scores"])
def test_no_tensor_grows_with_the_square_of_the_length(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_maps, "MOST_ENTRIES", 1)
    most = {}
    for length in (128, 256):
        student, teacher = (side(seed, 2, 4, SIZE, causal=False, length=length) for seed in (1, 2))
        inputs = replace(compared(student, teacher), layer_map=())
        with Sizes() as seen:
            learnt(student, lambda own, inputs=inputs: LOSSES[name].function(replace(inputs, student=own)))
        assert seen.products > (12 if name == "scores" else 2 * length // 16)  # the backward pass was seen
        most[length] = seen.most
        assert seen.most < BATCH * 4 * length * length / 4
    assert most[256] == 2 * most[128]


def test_a_tile_is_small_and_never_the_whole() -> None:
    assert rows_at_once(1, 1, 256) == 64
    assert rows_at_once(32, 12, 512) * 32 * 12 * 512 <= attention_maps.MOST_ENTRIES
    assert rows_at_once(512, 16, 8192) == attention_maps.LEAST_ROWS
    assert rows_at_once(1, 1, 3) == 1


def test_maps_are_compared_in_tiles_where_positions_are_in_the_states_and_rows_are_long() -> None:
    families = {name for name, family in FAMILIES.items() if in_tiles(family, attention_maps.SHORTEST)}
    assert families == {"bert", "roberta", "distilbert", "electra", "gpt2", "opt"}
    assert not any(in_tiles(family, attention_maps.SHORTEST - 1) for family in FAMILIES.values())


@torch.no_grad()
@pytest.mark.parametrize("variant", PLAIN)
def test_queries_and_keys_make_the_models_own_maps(variant: str) -> None:
    model = tiny_model(variant)
    ids = torch.randint(5, 185, (3, 10), generator=torch.Generator().manual_seed(0))
    found = Teacher(model, plan_for(model.config).family, ("attention", "queries", "keys"))(
        ids, ids[:, :1], reads=("attention", "queries", "keys")
    )
    assert found.scale is not None
    for queries, keys, maps in zip(found.queries, found.keys, found.attention, strict=True):
        torch.testing.assert_close(Scored(queries, keys, found.scale, found.causal).maps(0, 10), maps)


@pytest.mark.parametrize("smaller", [False, True])
@pytest.mark.parametrize("variant", PLAIN)
def test_a_pruned_student_has_the_same_losses_and_gradients_in_tiles(variant: str, smaller: bool) -> None:
    """Masked or cut it attends by the teacher's scale (H5), and its kept heads are compared with their origins."""
    teacher = tiny_model(variant).double()
    plan = plan_for(teacher.config)
    masks = Masks(plan)
    generator = torch.Generator().manual_seed(0)
    masks.narrow({group: torch.rand(size, generator=generator) for group, size in plan.groups().items()},
                 odd_widths(plan))  # fmt: skip
    model = twin(teacher, plan).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        masks.apply(whole((f"model.{name}", parameter) for name, parameter in model.named_parameters()))
    if smaller:
        model = cut(model, plan, odd_widths(plan), masks.indices()).double()
    origins = masks.head_origins()
    assert len(origins[0]) < plan.full.heads
    heads = [torch.arange(len(own)) for own in origins] if smaller else origins
    ids = torch.randint(5, 185, (3, 24), generator=torch.Generator().manual_seed(1))

    def losses(tiled: bool) -> tuple[torch.Tensor, list[Any]]:
        loss = LossConfig(mlm=0.0, kl=0.0, hidden=0.0, embedding=0.0, attention=1.0, attention_kl=2.0)
        objective = Objective(loss, with_teacher=True, tiled=tiled)
        assert objective.student_reads() == ({"queries", "keys"} if tiled else {"attention"})
        own: PreTrainedModel = copy.deepcopy(model).requires_grad_(True)
        student = Student(own, plan.family, objective.student_reads(), teacher_hidden=None)
        assert own.config._attn_implementation == ("sdpa" if tiled else "eager")
        with torch.no_grad():
            shown = Teacher(copy.deepcopy(teacher), plan.family, objective.teacher_reads())(
                ids, ids[:, :1], reads=objective.teacher_reads()
            )
        inputs = Inputs(student=student(ids, ids[:, :1]), teacher=shown, labels=ids, student_heads=heads,
                        head_origins=origins, **objective.settings)  # fmt: skip
        total, _ = objective(inputs)
        total.backward()
        return total.detach(), [parameter.grad for parameter in own.parameters()]

    in_parts, at_once = losses(True), losses(False)
    assert in_parts[0] > 0
    same(in_parts, at_once, rel=1e-5)  # the norms of a student, and OPT's attention, round to float32
