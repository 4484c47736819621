"""The norm of a masked student computes over the kept neurons what nn.LayerNorm computes on the cut ones (H4)."""

import torch
from torch import nn

from homodistil_ds.models.norms import KeptLayerNorm, keep, widen

HIDDEN = 12
KEPT = torch.tensor([0, 3, 4, 7, 11])


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.LayerNorm = nn.LayerNorm(HIDDEN, eps=1e-3)
        self.other = nn.LayerNorm(HIDDEN)
        nn.init.normal_(self.LayerNorm.weight)
        nn.init.normal_(self.LayerNorm.bias)


def mask(indices: torch.Tensor) -> torch.Tensor:
    return torch.zeros(HIDDEN, dtype=torch.bool).index_fill_(0, indices, True)


def masked_norm() -> nn.LayerNorm:
    """A norm in the state that masking leaves it in: gain and bias of masked neurons are 0."""
    holder = Holder()
    widen(holder, "LayerNorm")
    keep(holder, mask(KEPT))
    with torch.no_grad():
        for parameter in holder.LayerNorm.parameters():
            parameter.masked_fill_(~mask(KEPT), 0.0)
    return holder.LayerNorm


def test_with_all_kept_it_is_layer_norm_to_the_bit() -> None:
    torch.manual_seed(0)
    holder, states = Holder(), torch.randn(5, HIDDEN)
    expected = holder.LayerNorm(states)
    widen(holder, "LayerNorm")
    assert isinstance(holder.LayerNorm, KeptLayerNorm)
    assert torch.equal(holder.LayerNorm(states), expected)
    keep(holder, mask(KEPT))
    assert not torch.equal(holder.LayerNorm(states), expected)
    keep(holder, torch.ones(HIDDEN, dtype=torch.bool))
    assert torch.equal(holder.LayerNorm(states), expected)


def test_only_the_named_norms_change() -> None:
    holder = Holder()
    widen(holder, "LayerNorm")
    assert type(holder.other) is nn.LayerNorm


def test_on_kept_neurons_it_equals_layer_norm_of_the_cut_states_whatever_the_masked_ones_hold() -> None:
    torch.manual_seed(0)
    norm = masked_norm()
    states = 3.0 + 2.0 * torch.randn(4, 6, HIDDEN)
    cut = nn.LayerNorm(len(KEPT), eps=norm.eps)
    with torch.no_grad():
        cut.weight.copy_(norm.weight[KEPT])
        cut.bias.copy_(norm.bias[KEPT])
    torch.testing.assert_close(norm(states)[..., KEPT], cut(states[..., KEPT]), atol=1e-6, rtol=1e-6)


def test_masked_outputs_and_gradients_of_masked_inputs_are_exactly_zero() -> None:
    torch.manual_seed(0)
    norm = masked_norm()
    states = torch.randn(4, HIDDEN, requires_grad=True)
    output = norm(states)
    output.square().mul(torch.randn_like(output)).sum().backward()
    assert states.grad is not None
    assert not output[:, ~mask(KEPT)].any()
    assert not states.grad[:, ~mask(KEPT)].any()
    assert not norm.weight.grad[~mask(KEPT)].any()
    assert states.grad[:, mask(KEPT)].all()
