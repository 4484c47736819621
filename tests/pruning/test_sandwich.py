"""Nested students: each is what would be cut out, they share one set of weights, and their gradients add up in it."""

from __future__ import annotations

import pytest
import torch
from family_models import tiny_config
from transformers import AutoModelForSequenceClassification

from homodistil_ds.models import norms
from homodistil_ds.models.tasks import task_forward, task_plan
from homodistil_ds.models.width import WidthPlan, Widths
from homodistil_ds.pruning.sandwich import Sandwich, first_indices, first_neurons
from homodistil_ds.pruning.shrink import cut, export, set_scales

MEMBERS = (
    Widths(hidden=18, ffn=32, heads=3, head_size=6),
    Widths(hidden=12, ffn=21, heads=3, head_size=4),
    Widths(hidden=6, ffn=8, heads=2, head_size=3),
)
FAMILIES = ("bert", "roberta", "distilbert", "electra")


def nested(variant: str, dropout: float = 0.0) -> tuple[Sandwich, WidthPlan]:
    """The members in a stored model that is narrower than the plan's."""
    torch.manual_seed(0)
    config = tiny_config(variant)
    config.num_labels = 3
    whole = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    plan = task_plan(whole.config)
    stored = MEMBERS[0]
    model = cut(whole, plan, stored, first_indices(plan, plan.full, stored))
    sandwich = Sandwich(
        model, plan, stored, MEMBERS, {"logits", "hidden"}, plan.full.hidden, run=task_forward, dropout=dropout
    )
    return sandwich, plan


def rows(sandwich: Sandwich) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(5, sandwich.model.config.vocab_size, (4, 7))
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    return ids, mask


@pytest.mark.parametrize("variant", FAMILIES)
@pytest.mark.parametrize("place", range(len(MEMBERS)))
def test_a_member_is_what_would_be_cut_out(variant: str, place: int) -> None:
    sandwich, plan = nested(variant)
    ids, mask = rows(sandwich)
    inside = sandwich.eval()(ids, mask, member=place)
    small = cut(sandwich.model, plan, MEMBERS[place], first_indices(plan, MEMBERS[0], MEMBERS[place])).eval()
    alone = small(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    torch.testing.assert_close(inside.logits, alone.logits, rtol=1e-5, atol=1e-6)
    lift = sandwich.projections["hidden"].weight[:, : MEMBERS[place].hidden]
    for ours, theirs in zip(inside.hidden, alone.hidden_states[1:], strict=True):
        tokens = mask > 0
        torch.testing.assert_close(ours[tokens], (theirs @ lift.T)[tokens], rtol=1e-5, atol=1e-5)
    plain = export(sandwich.model, plan, MEMBERS[place], first_indices(plan, MEMBERS[0], MEMBERS[place]))
    torch.testing.assert_close(plain(input_ids=ids, attention_mask=mask).logits, inside.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("place", range(1, len(MEMBERS)))
def test_a_member_is_the_stored_model_with_the_rest_masked(place: int) -> None:
    """Zeros for every entry of the other neurons, and norms over those that are kept."""
    sandwich, plan = nested("bert")
    ids, mask = rows(sandwich)
    kept = first_indices(plan, MEMBERS[0], MEMBERS[place])
    model = cut(sandwich.model, plan, MEMBERS[0], first_indices(plan, MEMBERS[0], MEMBERS[0])).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            for axis, dim in enumerate(plan.dims(name)):
                if dim is not None:
                    gone = torch.ones(parameter.shape[axis], dtype=torch.bool)
                    gone[kept[dim.group]] = False
                    parameter.index_fill_(axis, gone.nonzero().flatten(), 0.0)
    norms.widen(model, plan)
    hidden = torch.zeros(MEMBERS[0].hidden, dtype=torch.bool)
    hidden[kept["hidden"]] = True
    norms.keep(model, hidden)
    set_scales(model, plan, plan.full)
    masked = model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(masked, sandwich.eval()(ids, mask, member=place).logits, rtol=1e-5, atol=1e-5)


def test_gradients_of_all_members_add_up_in_the_shared_weights() -> None:
    sandwich, plan = nested("bert")
    ids, mask = rows(sandwich)
    own = {name: torch.zeros_like(p, requires_grad=True) for name, p in sandwich.model.named_parameters()}
    for widths in MEMBERS:
        small = cut(sandwich.model, plan, widths, first_indices(plan, MEMBERS[0], widths)).eval()
        small(input_ids=ids, attention_mask=mask).logits.square().sum().backward()
        for name, parameter in small.named_parameters():
            (first_neurons(plan, name, own[name], MEMBERS[0], widths) * parameter.grad).sum().backward()
    for place in range(len(MEMBERS)):
        sandwich.eval()(ids, mask, member=place, reads=("logits",)).logits.square().sum().backward()
    for name, parameter in sandwich.model.named_parameters():
        torch.testing.assert_close(parameter.grad, own[name].grad, rtol=1e-4, atol=1e-5)


def test_members_have_no_weights_of_their_own() -> None:
    sandwich, _ = nested("bert")
    trained = {name: parameter.numel() for name, parameter in sandwich.named_parameters()}
    stored = {f"model.{name}": parameter.numel() for name, parameter in sandwich.model.named_parameters()}
    assert trained.keys() - stored.keys() == {"projections.hidden.weight"}
    assert all(parameter.is_meta for form in sandwich.forms for parameter in form.parameters())


def test_members_drop_only_while_they_train() -> None:
    sandwich, _ = nested("bert", dropout=0.5)
    ids, mask = rows(sandwich)
    still = [sandwich.eval()(ids, mask, member=1).logits for _ in range(2)]
    assert torch.equal(*still)
    moving = [sandwich.train()(ids, mask, member=1).logits for _ in range(2)]
    assert not torch.equal(*moving)
