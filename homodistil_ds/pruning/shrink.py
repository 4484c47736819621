"""Kept neurons -> a smaller ordinary model, and the same slices of any tensor of a parameter's shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from homodistil_ds.models import norms
from homodistil_ds.models.forward import is_divided
from homodistil_ds.models.loading import empty_model
from homodistil_ds.models.width import Dim, Family, WidthPlan, Widths
from homodistil_ds.runtime.shards import runs

Kept = Mapping[str, torch.Tensor]


def cut_tensor(tensor: torch.Tensor, dims: tuple[Dim | None, ...], kept: Kept) -> torch.Tensor:
    """The kept slices of a tensor whose dimensions run along the given groups; `kept` maps a group to int64 indices.

    Works on a weight and on anything of its shape: a gradient, an Adam moment.
    """
    small = tensor
    for place, dim in enumerate(dims):
        if dim is not None and dim.group in kept:
            small = small.index_select(place, entries(kept[dim.group], dim.block).to(tensor.device))
    return tensor.clone() if small is tensor else small


def cut_run(
    values: torch.Tensor, offset: int, shape: tuple[int, ...], dims: tuple[Dim | None, ...], kept: Kept
) -> tuple[int, torch.Tensor]:
    """The kept entries of a run [..., count] of a flattened parameter, and where they begin in the cut one.

    Indices ascend, so what is left of a run is a run again: every rank cuts its own shard, and nothing is gathered.
    Where every entry is kept, they are a view of `values`.
    """
    if not any(dim is not None and dim.group in kept for dim in dims):
        return offset, values
    places = [_entries_along(size, dim, kept).to(values.device) for size, dim in zip(shape, dims, strict=True)]
    if len(shape) == 1:
        return _before(places[0], offset), _kept_along(values, -1, places[0], offset)
    rows, columns = places
    row, column = divmod(offset, shape[1])
    start = _before(rows, row) * len(columns)
    if _before(rows, row + 1) > _before(rows, row):
        start += _before(columns, column)
    parts = [
        _kept_along(_kept_along(block, -2, rows, row), -1, columns, column).flatten(-2)
        for row, column, block in runs(values, offset, shape[1])
    ]
    if not parts:  # an empty run
        return start, values
    return start, torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]


def _entries_along(size: int, dim: Dim | None, kept: Kept) -> torch.Tensor:
    return torch.arange(size) if dim is None or dim.group not in kept else entries(kept[dim.group], dim.block)


def _before(places: torch.Tensor, limit: int) -> int:
    """How many of the ascending places are below the limit."""
    return int(torch.searchsorted(places, limit))


def _kept_along(values: torch.Tensor, axis: int, places: torch.Tensor, first: int) -> torch.Tensor:
    """The entries of `values` at the places along an axis whose own first entry is at place `first`."""
    count = values.shape[axis]
    chosen = places[_before(places, first) : _before(places, first + count)]
    return values if len(chosen) == count else values.index_select(axis, chosen - first)


def entries(neurons: torch.Tensor, block: int) -> torch.Tensor:
    """Indices of the entries that the neurons own along a dimension: int64 [neurons * block]."""
    return neurons if block == 1 else (neurons[:, None] * block + torch.arange(block)).flatten()


def cut(model: PreTrainedModel, plan: WidthPlan, widths: Widths, kept: Kept) -> PreTrainedModel:
    """A smaller model in the form that goes on training: what is scaled by a size is by the teacher's still (H5)."""
    small = empty_model(model, plan, widths, vocab=len(kept["vocab"]) if "vocab" in kept else None, random=False)
    source = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in small.named_parameters():
            parameter.copy_(cut_tensor(source[name], _dims(plan, name), kept))
    set_scales(small, plan, plan.full)
    return small.train(model.training)


def blank(like: PreTrainedModel, plan: WidthPlan, widths: Widths) -> PreTrainedModel:
    """A model of the form that goes on training, of no particular weights, to take up those of a cut student."""
    small = empty_model(like, plan, widths, random=False)
    norms.widen(small, plan)
    set_scales(small, plan, plan.full)
    return small


def export(model: PreTrainedModel, plan: WidthPlan, widths: Widths, kept: Kept) -> PreTrainedModel:
    """A smaller plain model: the scales of the teacher's sizes are folded into its weights (H5)."""
    small = cut(model, plan, widths, kept)
    factor = math.sqrt(widths.head_size / plan.full.head_size)
    with torch.no_grad():
        for name, parameter in small.named_parameters():
            if name.endswith(plan.family.query):
                parameter.mul_(factor)
        if plan.family.scaled_embedding is not None:
            _fold_embedding_scale(small, plan.family, math.sqrt(plan.full.hidden / widths.hidden))
        if is_divided(small, plan.family):
            small.get_parameter(plan.family.head_gain).mul_(math.sqrt(widths.hidden / plan.full.hidden))
    set_scales(small, plan, widths)
    return small.eval()


def _fold_embedding_scale(small: PreTrainedModel, family: Family, factor: float) -> None:
    """Multiply the embedding by `factor`, and take it off again where a tied vocabulary head reads."""
    embedding = small.get_submodule(str(family.scaled_embedding)).get_parameter("weight")
    embedding.mul_(factor)
    if small.config.tie_word_embeddings:
        gain = small.get_parameter(str(family.last_norm))
        gain.add_(1).div_(factor).sub_(1)


def set_scales(model: PreTrainedModel, plan: WidthPlan, widths: Widths) -> None:
    """Make every attention layer divide its scores by the root of these widths' head size, and what is multiplied or
    divided by the root of the hidden size so by theirs: an embedding's output, a vocabulary head's input."""
    if is_divided(model, plan.family):
        setattr(model, plan.family.head_divisor, widths.hidden)
    if plan.family.attention is not None:
        for name, module in model.named_modules():
            if name.endswith(plan.family.attention):
                module.scaling = widths.head_size**-0.5
    if plan.family.scaled_embedding is not None:
        embedding: Any = model.get_submodule(plan.family.scaled_embedding)
        embedding.scalar_embed_scale = widths.hidden**0.5
        embedding.embed_scale = embedding.embed_scale.new_tensor(embedding.scalar_embed_scale)


def _dims(plan: WidthPlan, name: str) -> tuple[Dim | None, ...]:
    """Groups along each dimension, and here the vocabulary too: a teacher's vocabulary is cut with the same table."""
    found = plan.find(name)
    assert found is not None, name
    vocabulary = tuple(axis == "vocab" for axis in found[0].axes)
    return tuple(Dim("vocab") if v else dim for v, dim in zip(vocabulary, plan.dims(name), strict=True))
