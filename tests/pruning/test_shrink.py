"""Masked equals cut equals exported, in every family: norms, attention scale, tying, no gradient where masked."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from family_models import VARIANTS, odd_widths, plainly, shown, tiny_model
from transformers import PreTrainedModel

from homodistil_ds.config import LossConfig
from homodistil_ds.distillation.losses import LOSSES, Inputs
from homodistil_ds.distillation.objective import Objective
from homodistil_ds.models import norms
from homodistil_ds.models.families import plan_for, target_widths
from homodistil_ds.models.forward import Activations, Student, forward, is_divided
from homodistil_ds.models.fused import put_together
from homodistil_ds.models.loading import AUTO_CLASSES, empty_model, twin
from homodistil_ds.models.width import TRAINED_PREFIX, Dim, WidthPlan, Widths
from homodistil_ds.pruning.masks import Masks
from homodistil_ds.pruning.shrink import cut, cut_tensor, export, set_scales
from homodistil_ds.runtime.shards import whole

Values = dict[str, torch.Tensor]


@dataclass(kw_only=True)
class Pruned:
    teacher: PreTrainedModel
    plan: WidthPlan
    widths: Widths
    objective: Objective
    student: Student
    masks: Masks


@pytest.fixture(scope="module", params=VARIANTS)
def pruned(request: pytest.FixtureRequest) -> Pruned:
    """A student with random neurons masked, in the state that a prune event leaves it in."""
    teacher = tiny_model(request.param)
    plan = plan_for(teacher.config)
    widths = odd_widths(plan)
    objective = Objective(LossConfig(attention_kl=1.0), with_teacher=True)
    student = Student(twin(teacher, plan), plan.family, objective.student_reads(), plan.full.hidden)
    masks = Masks(plan)
    masks.narrow(random_values(plan.groups(), 0), widths)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in student.parameters():  # away from the teacher, so that every distance has a gradient
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    mask(student, masks)
    return Pruned(teacher=teacher, plan=plan, widths=widths, objective=objective, student=student, masks=masks)


def random_values(sizes: dict[str, int], seed: int) -> Values:
    generator = torch.Generator().manual_seed(seed)
    return {group: torch.rand(size, generator=generator) for group, size in sizes.items()}


@torch.no_grad()
def mask(model: torch.nn.Module, masks: Masks) -> None:
    masks.apply(whole(model.named_parameters()))
    norms.keep(model, masks.local()["hidden"])


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(5, 185, (4, 12), generator=torch.Generator().manual_seed(1))


POSITIONS = torch.tensor([[1, 4, 5], [2, 9, 10], [5, 6, 7], [1, 2, 3]])


@pytest.mark.parametrize("shrink", [cut, export])
@torch.no_grad()
def test_a_masked_student_computes_what_the_smaller_model_computes(
    pruned: Pruned, ids: torch.Tensor, shrink: Callable[..., PreTrainedModel]
) -> None:
    small = shrink(pruned.student.model, pruned.plan, pruned.widths, pruned.masks.indices())
    wide = plainly(pruned.student.model, ids)
    own = plainly(small, ids)
    assert own.hidden_states[0].shape[-1] == pruned.widths.hidden
    kept = pruned.masks.kept["hidden"]
    torch.testing.assert_close(own.logits, wide.logits, atol=1e-5, rtol=1e-5)
    states = list(own.hidden_states)
    scaled = pruned.plan.family.last_norm and pruned.teacher.config.tie_word_embeddings
    if shrink is export and (scaled or is_divided(small, pruned.plan.family)):
        # What the head reads makes up for its scaled embedding, or for what it divides by.
        states[-1] = states[-1] * math.sqrt(pruned.plan.full.hidden / pruned.widths.hidden)
    for theirs, mine in zip(wide.hidden_states, states, strict=True):
        torch.testing.assert_close(mine, theirs[..., kept], atol=1e-5, rtol=1e-5)
        assert not theirs[..., ~kept].any()
    for theirs, mine, heads in zip(wide.attentions, own.attentions, pruned.masks.head_origins(), strict=True):
        torch.testing.assert_close(mine, theirs[:, heads], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_attention_scale_of_the_example_matters(pruned: Pruned, ids: torch.Tensor) -> None:
    """Guards the tests around it: a cut with another scale than the teacher's must be visible in the logits."""
    if pruned.plan.family.attention is None:
        pytest.skip("heads keep their size, and the model scales by it itself")
    small = cut(pruned.student.model, pruned.plan, pruned.widths, pruned.masks.indices())
    right = plainly(small, ids).logits
    set_scales(small, pruned.plan, replace(pruned.plan.full, head_size=pruned.plan.full.head_size - 2))
    assert (plainly(small, ids).logits - right).abs().max() > 1e-3


@torch.no_grad()
def test_two_cuts_with_masked_neurons_left_in_between_equal_one(pruned: Pruned, ids: torch.Tensor) -> None:
    """A live cut may have to keep masked neurons, because no plain model has just the kept ones."""
    exact = pruned.plan.family.hidden == "exact"
    plan, legal = pruned.plan, target_widths(pruned.plan, 32 if exact else 28, 40, pruned.plan.full.heads)
    kept = dataclasses.replace(legal, hidden=25, ffn=31)
    live, at_once = Masks(plan), Masks(plan)
    first, second = (random_values(plan.groups(), seed) for seed in (3, 4))
    model = twin(pruned.teacher, plan)
    for masks in (live, at_once):
        masks.narrow(first, kept)
    mask(model, live)
    whole_logits = plainly(model, ids).logits

    stay = live.staying(legal)
    small = cut(model, plan, legal, stay)
    live.remove(stay)
    norms.widen(small, plan)
    norms.keep(small, live.local()["hidden"])
    assert (live.widths(), live.physical()) == (kept, legal)
    torch.testing.assert_close(plainly(small, ids).logits, whole_logits, atol=1e-5, rtol=1e-5)

    live.narrow({group: second[group][present] for group, present in live.present.items()}, pruned.widths)
    at_once.narrow(second, pruned.widths)
    assert live.digest() == at_once.digest()
    for model_, masks in ((small, live), (model, at_once)):
        mask(model_, masks)
    twice = cut(small, plan, pruned.widths, live.staying(pruned.widths))
    once = cut(model, plan, pruned.widths, at_once.indices())
    for name, parameter in once.named_parameters():
        assert torch.equal(twice.get_parameter(name), parameter), name
    torch.testing.assert_close(plainly(small, ids).logits, plainly(once, ids).logits, atol=1e-5, rtol=1e-5)
    assert torch.equal(plainly(twice, ids).logits, plainly(once, ids).logits)


def test_a_cut_model_has_the_buffers_and_the_sharing_of_one_made_in_full(pruned: Pruned) -> None:
    """The model to be written to is built without its random initialisation."""
    small = cut(pruned.student.model, pruned.plan, pruned.widths, pruned.masks.indices())
    full = empty_model(pruned.teacher, pruned.plan, pruned.widths)
    set_scales(full, pruned.plan, pruned.plan.full)
    theirs = dict(full.named_buffers())
    assert {name for name, _ in small.named_buffers()} == set(theirs)
    for name, buffer in small.named_buffers():
        assert torch.equal(buffer, theirs[name]), name
    assert shared(small) == shared(full) == shared(pruned.teacher)


def shared(model: PreTrainedModel) -> list[list[str]]:
    """Names of parameters that are one tensor."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [each for each in names.values() if len(each) > 1]


def full_loss(pruned: Pruned, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        taught = forward(
            pruned.teacher,
            pruned.plan.family,
            *shown(pruned.teacher, ids, POSITIONS),
            reads=pruned.objective.teacher_reads(),
        )
    origins = pruned.masks.head_origins()
    inputs = Inputs(
        student=pruned.student(*shown(pruned.teacher, ids, POSITIONS)),
        teacher=taught,
        labels=ids.gather(1, POSITIONS),
        student_heads=origins,
        head_origins=origins,
    )
    total, terms = pruned.objective(inputs)
    assert set(terms) == set(pruned.objective.weights)
    assert all(term > 0 for term in terms.values())
    return total


def test_masked_entries_have_exactly_zero_gradient_under_all_losses(pruned: Pruned, ids: torch.Tensor) -> None:
    pruned.student.zero_grad()
    full_loss(pruned, ids).backward()
    kept_of = pruned.masks.indices()
    for name, parameter in pruned.student.named_parameters():
        assert parameter.grad is not None, name
        dims = pruned.plan.dims(name)
        for place, dim in enumerate(dims):
            if dim is not None:
                gone = ~pruned.masks.kept[dim.group].repeat_interleave(dim.block)
                assert not parameter.grad.index_select(place, gone.nonzero().flatten()).any(), (name, dim)
        # A key bias shifts whole rows of scores, if nothing turns it with the position.
        assert cut_tensor(parameter.grad, dims, kept_of).any() or re.search(r"\bk(ey|_lin)\.bias$", name), name


def test_gradients_of_the_masked_student_cut_are_the_gradients_of_the_cut_student(
    pruned: Pruned, ids: torch.Tensor
) -> None:
    """With the gradients, any element-wise optimizer's moments agree as well."""

    def loss(model: PreTrainedModel) -> torch.Tensor:
        return LOSSES["mlm"].function(
            Inputs(
                student=forward(model, pruned.plan.family, *shown(model, ids, POSITIONS), reads=("logits",)),
                teacher=Activations(),
                labels=ids.gather(1, POSITIONS),
            )
        )

    small = cut(pruned.student.model, pruned.plan, pruned.widths, pruned.masks.indices())
    pruned.student.zero_grad()
    loss(pruned.student.model).backward()
    loss(small).backward()
    wide = {name.removeprefix(TRAINED_PREFIX): p.grad for name, p in pruned.student.named_parameters()}
    for name, parameter in small.named_parameters():
        theirs = cut_tensor(wide[name], pruned.plan.dims(name), pruned.masks.indices())
        torch.testing.assert_close(parameter.grad, theirs, atol=1e-5, rtol=1e-4, msg=name)


@torch.no_grad()
def test_the_exported_folder_gives_the_same_logits_in_plain_transformers(
    pruned: Pruned, ids: torch.Tensor, tmp_path: Path
) -> None:
    small = export(pruned.student.model, pruned.plan, pruned.widths, pruned.masks.indices())
    put_together(small).save_pretrained(tmp_path)
    plain = AUTO_CLASSES[pruned.plan.family.language_model]
    loaded, info = plain.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    values = pruned.plan.config_values(pruned.widths)
    assert {name: getattr(loaded.config, name) for name in values} == values
    assert plan_for(loaded.config).full == pruned.widths
    logits = plainly(pruned.student.model, ids).logits
    assert (plainly(loaded, ids).logits - logits).abs().max() <= 1e-5 * logits.abs().max()


def test_an_export_leaves_the_model_it_was_made_from_alone(pruned: Pruned, ids: torch.Tensor) -> None:
    with torch.no_grad():
        before = plainly(pruned.student.model, ids).logits
        small = export(pruned.student.model, pruned.plan, pruned.plan.full, {})
        for parameter in small.parameters():
            parameter.zero_()
        assert torch.equal(plainly(pruned.student.model, ids).logits, before)


def runs(tensor: torch.Tensor, dims: tuple[Dim | None, ...], masks: Masks) -> Iterator[torch.Tensor]:
    for place, dim in enumerate(dims):
        everywhere = torch.arange(tensor.shape[place])
        yield everywhere if dim is None else everywhere[masks.kept[dim.group].repeat_interleave(dim.block)]


def test_cut_tensor_slices_anything_of_a_parameters_shape_and_copies_it(pruned: Pruned) -> None:
    for name, parameter in pruned.student.named_parameters():
        dims = pruned.plan.dims(name)
        moment = torch.arange(parameter.numel(), dtype=torch.float64).view(parameter.shape)
        whole = moment.clone()
        small = cut_tensor(moment, dims, pruned.masks.indices())
        assert small.dtype is torch.float64
        assert torch.equal(small, whole[torch.meshgrid(*runs(moment, dims, pruned.masks), indexing="ij")])
        small.zero_()
        assert torch.equal(moment, whole), name


@torch.no_grad()
def test_a_vocabulary_cut_gives_the_full_models_logits_at_the_kept_ids(pruned: Pruned) -> None:
    kept = torch.tensor([0, 1, 2, 3, 4, 10, 50, 51, 120, 184])
    small = cut(pruned.teacher, pruned.plan, pruned.plan.full, {"vocab": kept})
    ids = torch.randint(2, len(kept), (3, 9), generator=torch.Generator().manual_seed(2))
    assert small.config.vocab_size == len(kept)
    assert shared(small) == shared(pruned.teacher)
    torch.testing.assert_close(
        plainly(small, ids).logits, plainly(pruned.teacher, kept[ids]).logits[..., kept], atol=1e-5, rtol=1e-5
    )
