"""Number formats are those of weights; what a model computes from its configuration stays exact."""

import torch
from family_models import tiny_model

from homodistil_ds.runtime.rounding import in_format, rounded_to


def test_weights_are_rounded_and_rotary_frequencies_are_not() -> None:
    model = tiny_model("llama")
    before = {name: tensor.clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    rounded = rounded_to(model, torch.bfloat16)
    for name, parameter in rounded.named_parameters():
        assert torch.equal(parameter, before[name].bfloat16().float())
    assert any(not torch.equal(parameter, before[name]) for name, parameter in rounded.named_parameters())
    assert any(name.endswith("inv_freq") for name, _ in rounded.named_buffers())
    in_format(model, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])
