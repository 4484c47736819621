"""Nested students in one set of weights: each is the first neurons of every axis, and all are trained together (M4)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedModel

from homodistil_ds.models.forward import Activations, Read, Run, Student, choose_attention
from homodistil_ds.models.loading import empty_model, with_dropout
from homodistil_ds.models.width import WidthPlan, Widths
from homodistil_ds.pruning.shrink import set_scales


def first_neurons(plan: WidthPlan, name: str, tensor: torch.Tensor, stored: Widths, widths: Widths) -> torch.Tensor:
    """The part of a parameter of the `stored` widths that a student of `widths` has; a view where strides allow it."""
    found = plan.find(name)
    assert found is not None, name
    for place, axis in enumerate(found[0].axes):
        if axis in ("qk", "vo"):
            heads = tensor.unflatten(place, (stored.heads, stored.head_size)).narrow(place, 0, widths.heads)
            tensor = heads.narrow(place + 1, 0, widths.head_size).flatten(place, place + 1)
        elif axis in ("hidden", "ffn"):
            tensor = tensor.narrow(place, 0, getattr(widths, axis))
    return tensor


def first_indices(plan: WidthPlan, stored: Widths, widths: Widths) -> dict[str, torch.Tensor]:
    """Group -> indices, among the neurons of a model of the `stored` widths, that a student of `widths` has."""
    inside = torch.arange(widths.heads)[:, None] * stored.head_size + torch.arange(widths.head_size)
    sizes = {"hidden": torch.arange(widths.hidden), "ffn": torch.arange(widths.ffn)}
    return {group: sizes.get(group.partition(".")[0], inside.flatten()) for group in plan.groups()}


class Sandwich(Student):
    """A student of the widths `stored`, whose neurons are in descending order of worth, and smaller ones inside it.

    `member` of the forward pass says which of `members` runs. They share the weights: a step of the optimizer after
    every member's backward pass moves all of them. Under ZeRO-3 the shared weights are whole on every rank from a
    member's forward pass to the end of its backward pass.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        plan: WidthPlan,
        stored: Widths,
        members: Sequence[Widths],
        reads: Collection[Read],
        teacher_hidden: int | None,
        run: Run,
        dropout: float,
    ) -> None:
        super().__init__(model, plan.family, reads, teacher_hidden, run)
        self.plan, self.stored, self.members = plan, stored, tuple(members)
        forms = [form_of(model, plan, widths, dropout) for widths in members]
        for form in forms:
            choose_attention(form, self.reads)
        self.forms = tuple(forms)  # on the meta device; a tuple, so that they are no submodules

    def forward(self, *shown: torch.Tensor, reads: Collection[Read] | None = None, member: int = 0) -> Activations:
        widths, form = self.members[member], self.forms[member].train(self.training)
        own: dict[str, torch.Tensor] = dict(self.model.named_buffers())
        for name, parameter in self.model.named_parameters():
            own[name] = first_neurons(self.plan, name, parameter, self.stored, widths)
        found = functional_call(
            _Call(form, self.run, self.family, self.reads if reads is None else reads),
            {f"form.{name}": tensor for name, tensor in own.items()},
            shown,
        )
        if not self.projections or not found.hidden:
            return found
        lift = self.projections["hidden"].get_parameter("weight")[:, : widths.hidden]
        return found._replace(hidden=tuple(nn.functional.linear(state, lift) for state in found.hidden))


class _Call(nn.Module):
    """Runs a form through `run` where functional_call lends it weights."""

    def __init__(self, form: PreTrainedModel, run: Run, family: Any, reads: Collection[Read]) -> None:
        super().__init__()
        self.form, self.run, self.family, self.reads = form, run, family, reads

    def forward(self, *shown: torch.Tensor) -> Activations:
        return self.run(self.form, self.family, *shown, reads=self.reads)


def form_of(model: PreTrainedModel, plan: WidthPlan, widths: Widths, dropout: float) -> PreTrainedModel:
    """A model of these widths without weights, in the form that goes on training."""
    with torch.device("meta"):
        form = empty_model(model, plan, widths, random=False)
    set_scales(form, plan, plan.full)
    return with_dropout(form, dropout)
