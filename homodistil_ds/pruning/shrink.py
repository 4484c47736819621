"""Kept neurons -> a smaller ordinary model, and the same slices of any tensor of a parameter's shape."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from homodistil_ds.models.loading import empty_model
from homodistil_ds.models.width import WidthPlan, Widths

Kept = Mapping[str, torch.Tensor]


def cut_tensor(tensor: torch.Tensor, dims: tuple[str | None, ...], kept: Kept) -> torch.Tensor:
    """The kept slices of a tensor whose dimensions run along the named groups; `kept` maps a group to int64 indices.

    Works on a weight and on anything of its shape: a gradient, an Adam moment.
    """
    for dim, group in enumerate(dims):
        if group is not None and group in kept:
            tensor = tensor.index_select(dim, kept[group].to(tensor.device))
    return tensor.clone()


def cut(model: PreTrainedModel, plan: WidthPlan, widths: Widths, kept: Kept) -> PreTrainedModel:
    """A smaller model in the form that goes on training: attention still divides by the teacher's head size (H5)."""
    small = empty_model(model, plan, widths, vocab=len(kept["vocab"]) if "vocab" in kept else None)
    source = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in small.named_parameters():
            parameter.copy_(cut_tensor(source[name], _dims(plan, name), kept))
    set_attention_scale(small, plan, plan.full.head_size)
    return small.train(model.training)


def export(model: PreTrainedModel, plan: WidthPlan, widths: Widths, kept: Kept) -> PreTrainedModel:
    """A smaller plain model: the attention scale of the teacher is folded into query weight and bias (H5)."""
    small = cut(model, plan, widths, kept)
    factor = math.sqrt(widths.head_size / plan.full.head_size)
    with torch.no_grad():
        for name, parameter in small.named_parameters():
            if name.endswith(plan.family.query):
                parameter.mul_(factor)
    set_attention_scale(small, plan, widths.head_size)
    return small.eval()


def set_attention_scale(model: PreTrainedModel, plan: WidthPlan, head_size: int) -> None:
    """Make every attention layer divide its scores by sqrt(head_size)."""
    for name, module in model.named_modules():
        if name.endswith(plan.family.attention):
            module.scaling = head_size**-0.5


def _dims(plan: WidthPlan, name: str) -> tuple[str | None, ...]:
    """Groups along each dimension, and here the vocabulary too: a teacher's vocabulary is cut with the same table."""
    found = plan.find(name)
    assert found is not None, name
    vocabulary = tuple(axis == "vocab" for axis in found[0].axes)
    return tuple("vocab" if v else group for v, group in zip(vocabulary, plan.dims(name), strict=True))
