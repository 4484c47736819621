"""Bytes that a student's layers keep for their backward pass: counted in its own forward pass, on the meta device.

Every library has its own habits (norms in float32, activations written out, positions that make maps), so they are
looked at rather than known. What attention's fused kernel keeps is queries, keys, values, its output and one number per
row of each map.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from homodistil_ds.models.depth import outline_of
from homodistil_ds.models.families import plan_for
from homodistil_ds.models.forward import Read, Student
from homodistil_ds.models.loading import config_of, folder_of, unloadable
from homodistil_ds.models.pieces import outline
from homodistil_ds.models.width import WidthPlan, Widths
from homodistil_ds.pruning.shrink import blank

META = torch.device("meta")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A student of some layers and widths of a teacher, and the rows it reads: ids, and those of a decoder behind an
    encoder (0 without one)."""

    teacher: str
    layers: int
    widths: Widths
    reads: frozenset[Read]
    ids: int
    decoder_ids: int
    dtype: torch.dtype


def kept_bytes(plan: WidthPlan, shape: Shape, rows: int) -> float:
    """Of all layers of a student of the table `plan` on a micro batch of so many rows.

    It is linear in rows, and in layers where they are alike, so small ones are counted and the rest is added up.
    """

    def of_layers(layers: int) -> float:
        one, two = (_counted(shape, layers, batch) for batch in (1, 2))
        return one + (rows - 1) * (two - one)

    if not plan.family.layers_alike or plan.encoder_layers or shape.layers < 2:
        return of_layers(shape.layers)
    return of_layers(1) + (shape.layers - 1) * (of_layers(2) - of_layers(1))


@functools.lru_cache(maxsize=4096)
def _counted(shape: Shape, layers: int, batch: int) -> int:
    student = _student(shape, layers)
    shown = [torch.zeros(batch, shape.ids, dtype=torch.int64, device=META)]
    shown.append(torch.zeros(batch, 1, dtype=torch.int64, device=META))
    if shape.decoder_ids:
        shown.append(torch.zeros(batch, shape.decoder_ids, dtype=torch.int64, device=META))
    held = {_storage(tensor) for tensor in (*student.parameters(), *student.buffers(), *shown)}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if _storage(tensor) not in held:
            kept[_storage(tensor)] = tensor.untyped_storage()  # held, so that no other takes its place
        return tensor

    with saved_tensors_hooks(note, _same), _WithoutValues():
        student(*shown)
    return sum(storage.nbytes() for storage in kept.values())


def _student(shape: Shape, layers: int) -> Student:
    own = _outline(shape.teacher, layers)
    plan = plan_for(own.config)
    with META:
        model = blank(own, plan, shape.widths).requires_grad_(True)
        model.config.pad_token_id = None  # else transformers looks for padding in ids that are not there
        student = Student(model, plan.family, shape.reads, teacher_hidden=plan.full.hidden)
    return student.to(shape.dtype)


@functools.lru_cache(maxsize=8)
def _outline(teacher: str, layers: int) -> PreTrainedModel:
    """Names and shapes of the teacher's first layers."""
    config = config_of(folder_of(teacher))
    plan = plan_for(config)
    try:
        whole = outline(config, plan.family)
    except ValueError as error:
        raise unloadable(teacher, error) from error
    return outline_of(whole, plan, tuple(range(layers)))


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


class _WithoutValues(TorchFunctionMode):
    """Attention as a fused kernel keeps it, where there is one: not for positions that are learnt as parts of maps."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            mask = kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
            if mask is None or not mask.requires_grad:
                return _Kept.apply(*args[:3])
        if func is torch.Tensor.__bool__ and args[0].is_meta:
            return True  # transformers asks whether a row is one text
        return func(*args, **kwargs)


class _Kept(torch.autograd.Function):
    """The shapes of fused attention [B, A, L, D] and what it keeps; no values."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise NotImplementedError("only what is kept is asked for")
