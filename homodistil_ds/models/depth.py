"""Students with fewer layers than their teacher: which of its layers they have, and how those are read. No training."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from homodistil_ds.errors import HomodistilError
from homodistil_ds.models.fused import taken_apart
from homodistil_ds.models.pieces import Read
from homodistil_ds.models.width import WidthPlan


def check_depth(plan: WidthPlan, asked: int | None) -> None:
    """Raises HomodistilError for a number of layers where an encoder and a decoder both keep theirs."""
    if plan.encoder_layers and asked is not None:
        raise HomodistilError(
            "CFG-DEPTH",
            f"a {plan.family.model_type} of {asked} layers: an encoder and a decoder keep theirs",
            "Leave --student.num_hidden_layers out, or set it to None where a preset has one.",
        )


def layer_map(teacher: int, student: int | None, which: str) -> tuple[int, ...]:
    """The teacher's layer behind each of the student's, counted from 0.

    "uniform" takes the last layer of each of as many stretches (B3: g(m) = m L_T / L_S), "spread" the first, the last
    and evenly between them (of 12 layers DistilBERT's 0, 2, 4, 7, 9, 11), "first" the first ones.
    Raises HomodistilError for more layers than the teacher's and for none.
    """
    student = teacher if student is None else student
    if not 1 <= student <= teacher:
        raise HomodistilError(
            "CFG-DEPTH",
            f"a student of {student} layers (--student.num_hidden_layers)",
            f"The teacher has {teacher}: use 1 to {teacher}.",
        )
    if which == "first":
        return tuple(range(student))
    if which == "spread":
        return tuple(round(place * (teacher - 1) / max(1, student - 1)) for place in range(student))
    return tuple((place + 1) * teacher // student - 1 for place in range(student))


def shallower(plan: WidthPlan, layers: tuple[int, ...]) -> WidthPlan:
    """The table of a model with only these layers of `plan`'s.

    Raises HomodistilError where a layer would take the place of one that is not like it, and for an encoder with a
    decoder, which both keep all of theirs.
    """
    if plan.encoder_layers and len(layers) < plan.layers:
        check_depth(plan, len(layers))
    if not plan.family.layers_alike and layers != tuple(range(len(layers))):
        raise HomodistilError(
            "CFG-DEPTH",
            f"a {plan.family.model_type} of the layers {', '.join(map(str, layers))}: its layers are not alike",
            "Use --student.layers first, or leave --student.num_hidden_layers out.",
        )
    return replace(plan, layers=len(layers))


def outline_of(model: PreTrainedModel, plan: WidthPlan, layers: tuple[int, ...]) -> PreTrainedModel:
    """Names and shapes, on the meta device, of the same model with only these layers."""
    config = copy.deepcopy(model.config)
    if len(layers) < plan.layers:
        setattr(config, plan.family.fields["layers"], len(layers))
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[layer] for layer in layers]
    with torch.device("meta"):
        shallow = type(model)._from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
        return taken_apart(shallow, plan.family)


def from_layers(read: Read, plan: WidthPlan, layers: tuple[int, ...]) -> Read:
    """Reads a shallower student's tensors from the teacher's layers that it has."""

    def renamed(name: str, start: int, count: int) -> torch.Tensor:
        row, layer = plan.find(name) or (None, None)
        if row is None or layer is None:
            return read(name, start, count)
        return read(plan.name_in(layers[layer], row), start, count)

    return renamed
