"""The forward pass computes what plain transformers computes, but only what is read."""

from typing import get_args

import pytest
import torch
from family_models import VARIANTS, plainly, shown, tiny_model
from torch import nn
from transformers import PreTrainedModel

from homodistil_ds.models.families import plan_for
from homodistil_ds.models.forward import Activations, Read, Student, forward, recompute_layers
from homodistil_ds.models.width import WidthPlan

ALL: tuple[Read, ...] = get_args(Read)


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def plan(model: PreTrainedModel) -> WidthPlan:
    return plan_for(model.config)


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(5, 185, (3, 10), generator=torch.Generator().manual_seed(0))


POSITIONS = torch.tensor([[1, 4], [0, 9], [5, 6]])


@torch.no_grad()
def test_activations_are_those_of_the_plain_model_and_logits_those_at_the_positions(
    model: PreTrainedModel, plan: WidthPlan, ids: torch.Tensor
) -> None:
    plain = plainly(model, ids)
    own = forward(model, plan.family, *shown(model, ids, POSITIONS), reads=ALL)
    assert own.logits is not None
    for row, places in enumerate(POSITIONS):
        torch.testing.assert_close(own.logits[row], plain.logits[row, places], atol=1e-5, rtol=1e-5)
    assert own.embedding is not None
    assert len(own.hidden) == len(own.attention) == plan.layers
    for mine, theirs in zip(
        (own.embedding, *own.hidden, *own.attention), (*plain.hidden_states, *plain.attentions), strict=True
    ):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("variant", ["bert", "llama", "opt", "t5"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_layers_run_twice_and_give_the_same_gradients(
    variant: str, reentrant: bool, ids: torch.Tensor
) -> None:
    gradients, runs = [], []
    for recomputed in (False, True):
        own, counted = tiny_model(variant).requires_grad_(True).train(), []
        if recomputed:
            recompute_layers(own, reentrant)
        # Under the older form nothing that is collected inside a layer has a gradient; a start refuses to read it.
        reads: tuple[Read, ...] = ("logits", "hidden") if reentrant else ("logits", "hidden", "attention", "queries")
        student = Student(own, plan_for(own.config).family, reads, teacher_hidden=None)
        queries = plan_for(own.config).family.attention_inputs()["queries"].removesuffix(".weight")
        watched = next(module for name, module in own.named_modules() if name.endswith(queries))
        watched.register_forward_hook(lambda *_, counted=counted: counted.append(1))
        torch.manual_seed(0)
        found = student(*shown(own, ids, POSITIONS))
        states = (found.logits, *found.hidden, *found.attention, *found.queries)
        torch.stack([state.square().mean() for state in states if state is not None]).sum().backward()
        gradients.append({name: p.grad for name, p in own.named_parameters() if p.grad is not None})
        runs.append(len(counted))
    assert runs == [1, 2]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("read", ALL)
@torch.no_grad()
def test_a_part_that_nobody_reads_is_empty(
    model: PreTrainedModel, plan: WidthPlan, ids: torch.Tensor, read: Read
) -> None:
    own = forward(model, plan.family, *shown(model, ids, POSITIONS), reads=(read,))
    for part in ALL:
        value = getattr(own, part)
        assert (value is not None and len(value) > 0) == (part == read)
    assert forward(model, plan.family, *shown(model, ids, POSITIONS), reads=()) == Activations()


@torch.no_grad()
def test_the_vocabulary_head_runs_at_the_positions_only(
    model: PreTrainedModel, plan: WidthPlan, ids: torch.Tensor
) -> None:
    seen: list[torch.Size] = []

    def record(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(inputs[0].shape)

    hook = model.get_submodule(plan.family.head[0]).register_forward_pre_hook(record)
    forward(model, plan.family, *shown(model, ids, POSITIONS), reads=("hidden", "attention", "embedding"))
    assert seen == []
    forward(model, plan.family, *shown(model, ids, POSITIONS), reads=ALL)
    hook.remove()
    assert seen == [(*POSITIONS.shape, plan.full.hidden)]


@torch.no_grad()
def test_a_student_at_step_0_lifts_its_states_by_the_exact_identity(
    model: PreTrainedModel, plan: WidthPlan, ids: torch.Tensor
) -> None:
    plain = forward(model, plan.family, *shown(model, ids, POSITIONS), reads=ALL)
    own = Student(model, plan.family, ALL, teacher_hidden=plan.full.hidden)(*shown(model, ids, POSITIONS))
    assert plain.embedding is not None
    for mine, theirs in zip((own.embedding, *own.hidden), (plain.embedding, *plain.hidden), strict=True):
        assert torch.equal(mine, theirs)
    wider = Student(model, plan.family, ALL, teacher_hidden=plan.full.hidden + 7)(*shown(model, ids, POSITIONS))
    assert torch.equal(wider.embedding[..., :-7], plain.embedding)
    assert not wider.embedding[..., -7:].any()


@torch.no_grad()
def test_without_the_teachers_width_a_student_is_its_model_alone(
    model: PreTrainedModel, plan: WidthPlan, ids: torch.Tensor
) -> None:
    """Nothing that could be trained lies between its states and those that they are compared with."""
    student = Student(model, plan.family, ALL, teacher_hidden=None)
    assert {name for name, _ in student.named_parameters()} == {f"model.{name}" for name, _ in model.named_parameters()}
    plain, own = (
        forward(model, plan.family, *shown(model, ids, POSITIONS), reads=ALL),
        student(*shown(model, ids, POSITIONS)),
    )
    assert plain.embedding is not None
    for mine, theirs in zip((own.embedding, *own.hidden), (plain.embedding, *plain.hidden), strict=True):
        assert torch.equal(mine, theirs)


@torch.no_grad()
def test_a_student_has_projections_only_for_what_is_read_and_asks_for_less_in_an_evaluation(
    model: PreTrainedModel, plan: WidthPlan, ids: torch.Tensor
) -> None:
    student = Student(model, plan.family, ("logits", "hidden"), teacher_hidden=plan.full.hidden)
    assert list(student.projections) == ["hidden"]
    only_logits = student(*shown(model, ids, POSITIONS), reads=("logits",))
    assert only_logits.logits is not None
    assert only_logits.hidden == ()
