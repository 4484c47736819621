"""The norm of a masked student computes over the kept neurons what the plain norm computes on the cut ones (H4)."""

import pytest
import torch
from torch import nn

from homodistil_ds.models.norms import KEPT_FORMS, keep, widen
from homodistil_ds.models.width import Family, Row, WidthPlan, Widths

HIDDEN = 12
KEPT = torch.tensor([0, 3, 4, 7, 11])
KINDS = list(KEPT_FORMS)
PLAN = WidthPlan(
    family=Family(
        model_type="one norm",
        language_model="masked",
        rows=(
            Row(pattern="norm.weight", axes=("hidden",), part="vectors"),
            Row(pattern="other.weight", axes=("embedding",), part="vectors"),
        ),
        fields={},
        attention="",
        head=(),
    ),
    full=Widths(hidden=HIDDEN, ffn=1, heads=1, head_size=1),
    layers=0,
    fixed={"embedding": HIDDEN},
    positions=1,
)


class Holder(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.norm = kind(HIDDEN, eps=1e-3)
        self.other = kind(HIDDEN)
        for parameter in self.norm.parameters():
            nn.init.normal_(parameter)


def mask(indices: torch.Tensor) -> torch.Tensor:
    return torch.zeros(HIDDEN, dtype=torch.bool).index_fill_(0, indices, True)


def masked_norm(kind: type[nn.Module]) -> nn.Module:
    """A norm in the state that masking leaves it in: gain and bias of masked neurons are 0."""
    holder = Holder(kind)
    widen(holder, PLAN)
    keep(holder, mask(KEPT))
    with torch.no_grad():
        for parameter in holder.norm.parameters():
            parameter.masked_fill_(~mask(KEPT), 0.0)
    return holder.norm


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_all_kept_it_is_the_plain_norm_to_the_bit(kind: type[nn.Module], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    holder, states = Holder(kind).to(dtype), torch.randn(5, HIDDEN, dtype=dtype)
    expected = holder.norm(states)
    widen(holder, PLAN)
    assert type(holder.norm) is KEPT_FORMS[kind]
    assert torch.equal(holder.norm(states), expected)
    keep(holder, mask(KEPT))
    assert not torch.equal(holder.norm(states), expected)
    assert holder.norm(states).dtype is dtype
    keep(holder, torch.ones(HIDDEN, dtype=torch.bool))
    assert torch.equal(holder.norm(states), expected)


def test_a_norm_along_an_axis_that_is_never_cut_stays_as_it_is() -> None:
    holder = Holder(nn.LayerNorm)
    widen(holder, PLAN)
    assert type(holder.other) is nn.LayerNorm


def test_a_norm_that_the_table_lacks_is_an_error() -> None:
    with pytest.raises(KeyError, match="not in the width table"):
        widen(nn.Sequential(nn.LayerNorm(HIDDEN)), PLAN)


@pytest.mark.parametrize("kind", KINDS)
def test_on_kept_neurons_it_equals_the_norm_of_the_cut_states_whatever_the_masked_ones_hold(
    kind: type[nn.Module],
) -> None:
    torch.manual_seed(0)
    norm = masked_norm(kind)
    states = 3.0 + 2.0 * torch.randn(4, 6, HIDDEN)
    cut = kind(len(KEPT), eps=1e-3)
    with torch.no_grad():
        for own, wide in zip(cut.parameters(), norm.parameters(), strict=True):
            own.copy_(wide[KEPT])
    torch.testing.assert_close(norm(states)[..., KEPT], cut(states[..., KEPT]), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_masked_outputs_and_gradients_of_masked_inputs_are_exactly_zero(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    norm = masked_norm(kind)
    states = torch.randn(4, HIDDEN, requires_grad=True)
    output = norm(states)
    output.square().mul(torch.randn_like(output)).sum().backward()
    assert states.grad is not None
    assert not output[:, ~mask(KEPT)].any()
    assert not states.grad[:, ~mask(KEPT)].any()
    assert not norm.weight.grad[~mask(KEPT)].any()
    assert states.grad[:, mask(KEPT)].all()
