"""Masked equals cut equals exported: norms, attention scale, tying and vocabulary, and no gradient where masked."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from homodistil_ds.config import LossConfig
from homodistil_ds.distillation.losses import LOSSES, Inputs
from homodistil_ds.distillation.objective import Objective
from homodistil_ds.models import norms
from homodistil_ds.models.families import plan_for
from homodistil_ds.models.forward import Student, forward
from homodistil_ds.models.loading import load_teacher, save_folder, twin
from homodistil_ds.models.width import TRAINED_PREFIX, WidthPlan, Widths
from homodistil_ds.pruning.masks import Masks
from homodistil_ds.pruning.shrink import cut, cut_tensor, export

WIDTHS = Widths(hidden=15, ffn=21, heads=3, head_size=5)  # heads removed, and heads made smaller


@dataclass(kw_only=True)
class Pruned:
    teacher: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    plan: WidthPlan
    objective: Objective
    student: Student
    masks: Masks


@pytest.fixture(scope="module")
def pruned(tiny_teacher: Path) -> Pruned:
    """A student with random neurons masked, in the state that a prune event leaves it in."""
    teacher, tokenizer = load_teacher(str(tiny_teacher))
    plan = plan_for(teacher.config)
    objective = Objective(LossConfig(), with_teacher=True)
    student = Student(twin(teacher, plan), plan.family, objective.student_reads(), plan.full.hidden)
    generator = torch.Generator().manual_seed(0)
    masks = Masks(plan)
    masks.narrow({group: torch.rand(size, generator=generator) for group, size in plan.groups().items()}, WIDTHS)
    with torch.no_grad():
        for parameter in student.parameters():  # away from the teacher, so that every distance has a gradient
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        masks.apply([], student.named_parameters())
    norms.keep(student, masks.kept["hidden"])
    return Pruned(teacher=teacher, tokenizer=tokenizer, plan=plan, objective=objective, student=student, masks=masks)


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(0, 185, (4, 12), generator=torch.Generator().manual_seed(1))


POSITIONS = torch.tensor([[1, 4, 5], [2, 9, 10], [5, 6, 7], [1, 2, 3]])


@pytest.mark.parametrize("shrink", [cut, export])
@torch.no_grad()
def test_a_masked_student_computes_what_the_smaller_model_computes(
    pruned: Pruned, ids: torch.Tensor, shrink: type
) -> None:
    small = shrink(pruned.student.model, pruned.plan, WIDTHS, pruned.masks.indices())
    wide = pruned.student.model(ids, output_hidden_states=True, output_attentions=True)
    own = small(ids, output_hidden_states=True, output_attentions=True)
    assert own.hidden_states[0].shape[-1] == WIDTHS.hidden
    kept = pruned.masks.kept["hidden"]
    torch.testing.assert_close(own.logits, wide.logits, atol=1e-5, rtol=1e-5)
    for theirs, mine in zip(wide.hidden_states, own.hidden_states, strict=True):
        torch.testing.assert_close(mine, theirs[..., kept], atol=1e-5, rtol=1e-5)
        assert not theirs[..., ~kept].any()
    for theirs, mine, heads in zip(wide.attentions, own.attentions, pruned.masks.head_origins(), strict=True):
        torch.testing.assert_close(mine, theirs[:, heads], atol=1e-5, rtol=1e-5)


def test_the_attention_scale_of_the_example_matters(pruned: Pruned, ids: torch.Tensor) -> None:
    """Guards the tests around it: a cut that forgot the teacher's scale must be visible in the logits."""
    small = cut(pruned.student.model, pruned.plan, WIDTHS, pruned.masks.indices())
    with torch.no_grad():
        right = small(ids).logits
        for layer in small.bert.encoder.layer:
            layer.attention.self.scaling = WIDTHS.head_size**-0.5
        assert (small(ids).logits - right).abs().max() > 1e-3


def full_loss(pruned: Pruned, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        shown = forward(pruned.teacher, pruned.plan.family, ids, POSITIONS, pruned.objective.teacher_reads())
    origins = pruned.masks.head_origins()
    inputs = Inputs(
        student=pruned.student(ids, POSITIONS),
        teacher=shown,
        labels=ids.gather(1, POSITIONS),
        student_heads=origins,
        head_origins=origins,
    )
    total, terms = pruned.objective(inputs)
    assert set(terms) == set(LOSSES)
    assert all(term > 0 for term in terms.values())
    return total


def test_masked_entries_have_exactly_zero_gradient_under_all_five_losses(pruned: Pruned, ids: torch.Tensor) -> None:
    pruned.student.zero_grad()
    full_loss(pruned, ids).backward()
    for name, parameter in pruned.student.named_parameters():
        assert parameter.grad is not None, name
        for dim, group in enumerate(pruned.plan.dims(name)):
            if group is not None:
                gone = (~pruned.masks.kept[group]).nonzero().flatten()
                assert not parameter.grad.index_select(dim, gone).any(), (name, dim)
        kept = cut_tensor(parameter.grad, pruned.plan.dims(name), pruned.masks.indices())
        assert kept.any() or name.endswith("key.bias"), name  # a key bias shifts whole rows of scores


def test_gradients_of_the_masked_student_cut_are_the_gradients_of_the_cut_student(
    pruned: Pruned, ids: torch.Tensor
) -> None:
    """With the gradients, any element-wise optimizer's moments agree as well."""

    def loss(model: PreTrainedModel) -> torch.Tensor:
        return LOSSES["mlm"].function(
            Inputs(
                student=forward(model, pruned.plan.family, ids, POSITIONS, ("logits",)),
                teacher=forward(pruned.teacher, pruned.plan.family, ids, POSITIONS, ()),
                labels=ids.gather(1, POSITIONS),
            )
        )

    small = cut(pruned.student.model, pruned.plan, WIDTHS, pruned.masks.indices())
    pruned.student.zero_grad()
    loss(pruned.student.model).backward()
    loss(small).backward()
    wide = {name.removeprefix(TRAINED_PREFIX): p.grad for name, p in pruned.student.named_parameters()}
    for name, parameter in small.named_parameters():
        theirs = cut_tensor(wide[name], pruned.plan.dims(name), pruned.masks.indices())
        torch.testing.assert_close(parameter.grad, theirs, atol=1e-5, rtol=1e-4, msg=name)


def test_the_exported_folder_gives_the_same_logits_in_plain_transformers(
    pruned: Pruned, ids: torch.Tensor, tmp_path: Path
) -> None:
    small = export(pruned.student.model, pruned.plan, WIDTHS, pruned.masks.indices())
    save_folder(small, pruned.tokenizer, tmp_path, torch.float32, {"widths": vars(WIDTHS)})
    loaded, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.config.hidden_size == WIDTHS.hidden
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, pruned.student.model(ids).logits, atol=1e-5, rtol=1e-5)


def test_an_export_leaves_the_model_it_was_made_from_alone(pruned: Pruned, ids: torch.Tensor) -> None:
    with torch.no_grad():
        before = pruned.student.model(ids).logits
        small = export(pruned.student.model, pruned.plan, pruned.plan.full, {})
        for parameter in small.parameters():
            parameter.zero_()
        assert torch.equal(pruned.student.model(ids).logits, before)


def runs(tensor: torch.Tensor, dims: tuple[str | None, ...], masks: Masks) -> Iterator[torch.Tensor]:
    for dim, group in enumerate(dims):
        yield torch.arange(tensor.shape[dim]) if group is None else masks.kept[group].nonzero().flatten()


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


@pytest.mark.parametrize("shrink", [cut, export])
def test_the_decoder_stays_tied_to_the_word_embedding(pruned: Pruned, shrink: type) -> None:
    small = shrink(pruned.student.model, pruned.plan, WIDTHS, pruned.masks.indices())
    assert small.get_output_embeddings().weight is small.get_input_embeddings().weight
    assert small.get_output_embeddings().bias is small.cls.predictions.bias


@torch.no_grad()
def test_a_vocabulary_cut_gives_the_full_models_logits_at_the_kept_ids(pruned: Pruned) -> None:
    kept = torch.tensor([0, 1, 2, 3, 4, 10, 50, 51, 120, 184])
    small = cut(pruned.teacher, pruned.plan, pruned.plan.full, {"vocab": kept})
    ids = torch.randint(0, len(kept), (3, 9), generator=torch.Generator().manual_seed(2))
    assert small.config.vocab_size == len(kept)
    assert small.get_output_embeddings().weight is small.get_input_embeddings().weight
    torch.testing.assert_close(small(ids).logits, pruned.teacher(kept[ids]).logits[..., kept], atol=1e-5, rtol=1e-5)
