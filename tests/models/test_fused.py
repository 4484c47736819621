"""Fused matrices: a model taken apart computes the same, and put together it is transformers' own again."""

from __future__ import annotations

import copy

import pytest
import torch
from family_models import VARIANTS, tiny_config

from homodistil_ds.models.families import FAMILIES
from homodistil_ds.models.fused import put_together, taken_apart
from homodistil_ds.models.pieces import AUTO_CLASSES

FUSED = [name for name, (family, _) in VARIANTS.items() if FAMILIES[family].fused]


@pytest.mark.parametrize("variant", FUSED)
@torch.no_grad()
def test_apart_and_together_it_is_the_same_model(variant: str) -> None:
    family = FAMILIES[VARIANTS[variant][0]]
    torch.manual_seed(0)
    plain = AUTO_CLASSES[family.language_model].from_config(tiny_config(variant)).eval()
    for parameter in plain.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    apart = taken_apart(copy.deepcopy(plain), family)
    ids = torch.randint(5, 185, (2, 9), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(apart(ids).logits, plain(ids).logits, atol=1e-6, rtol=1e-6)
    assert len(list(apart.parameters())) > len(list(plain.parameters()))
    again = put_together(apart)
    assert again.state_dict().keys() == plain.state_dict().keys()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[name]), name


def test_a_model_without_fused_matrices_is_left_as_it_is() -> None:
    plain = AUTO_CLASSES["masked"].from_config(tiny_config("bert"))
    before = dict(plain.named_parameters())
    assert taken_apart(plain, FAMILIES["bert"]) is plain
    assert put_together(plain) is plain
    assert dict(plain.named_parameters()).keys() == before.keys()
