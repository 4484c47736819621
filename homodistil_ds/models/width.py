"""The width table: which logical axis each dimension of each parameter runs along, and counting over it. No tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Axis = Literal["vocab", "position", "type", "teacher", "hidden", "ffn", "qk", "vo"]
PRUNED_AXES = ("hidden", "ffn", "qk", "vo")
PER_LAYER_AXES = ("ffn", "qk", "vo")
TRAINED_PREFIX = "model."  # of a parameter inside models.forward.Student


@dataclass(frozen=True, kw_only=True)
class Widths:
    """How many neurons each axis keeps; `qk` and `vo` both hold heads * head_size of them."""

    hidden: int
    ffn: int
    heads: int
    head_size: int

    def __str__(self) -> str:
        return f"{self.hidden}/{self.ffn}/{self.heads}x{self.head_size}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a family's table; `{layer}` in the pattern stands for a layer number.

    `part` says what a count reports the parameter under: embeddings, matrices (of the encoder), vectors (its biases and
    norms), head.
    """

    pattern: str
    axes: tuple[Axis, ...]
    part: Literal["embeddings", "matrices", "vectors", "head"]
    scored: bool = True


# The projections of a Student, [teacher hidden, hidden]: masked and cut, never scored, counted or exported.
PROJECTIONS = tuple(
    Row(pattern=f"projections.{name}.weight", axes=("teacher", "hidden"), part="head", scored=False)
    for name in ("hidden", "embedding")
)


@dataclass(frozen=True, kw_only=True)
class Family:
    """Everything the project knows about one Hugging Face architecture.

    `fields` maps an axis to the configuration field that holds its size. `query` names the parameters that an export
    rescales when the head size changed (H5), `norms` the normalisation modules, `attention` the modules whose `scaling`
    must stay the teacher's. `head` is the path of the vocabulary head, `head_transform` that of its square matrix.
    """

    model_type: str
    rows: tuple[Row, ...]
    fields: Mapping[str, str]
    norms: str
    attention: str
    query: tuple[str, ...]
    head: str
    head_transform: str


@dataclass(frozen=True, kw_only=True)
class WidthPlan:
    """A family's table at one model's sizes: `full` widths, the fixed sizes of the other axes, the number of layers."""

    family: Family
    full: Widths
    layers: int
    fixed: Mapping[str, int]

    def groups(self) -> dict[str, int]:
        """Name -> number of neurons of every group that pruning may touch, in the one order used everywhere."""
        sizes = {"hidden": self.full.hidden}
        for layer in range(self.layers):
            for axis in PER_LAYER_AXES:
                sizes[f"{axis}.{layer}"] = self.size(axis, self.full)
        return sizes

    def size(self, axis: str, widths: Widths) -> int:
        """Neurons along an axis at the given widths."""
        if axis in ("qk", "vo"):
            return widths.heads * widths.head_size
        if axis in ("hidden", "ffn"):
            return getattr(widths, axis)
        return self.fixed[axis]

    def find(self, name: str) -> tuple[Row, int | None] | None:
        """The row of a parameter and its layer number; None if the table does not know the name.

        A parameter of a Student is found with and without its prefix.
        """
        name = name.removeprefix(TRAINED_PREFIX)
        for row in (*self.family.rows, *PROJECTIONS):
            match = re.fullmatch(re.escape(row.pattern).replace(r"\{layer\}", r"(\d+)"), name)
            if match:
                return row, int(match[1]) if match.groups() else None
        return None

    def dims(self, name: str) -> tuple[str | None, ...]:
        """Group name along each dimension of a parameter, None where a dimension is never cut by pruning.

        Raises KeyError for a parameter that the table lacks: an unknown tensor must never be left uncut in silence.
        """
        found = self.find(name)
        if found is None:
            raise KeyError(f"{name} is not in the width table of {self.family.model_type}")
        row, layer = found
        return tuple(group_name(axis, layer) for axis in row.axes)

    def scored(self, name: str) -> bool:
        found = self.find(name)
        return found is not None and found[0].scored

    def parameters(self) -> Iterator[tuple[str, Row]]:
        """Every parameter name of the architecture with its row."""
        for row in self.family.rows:
            if "{layer}" in row.pattern:
                yield from ((row.pattern.replace("{layer}", str(layer)), row) for layer in range(self.layers))
            else:
                yield row.pattern, row


def group_name(axis: str, layer: int | None) -> str | None:
    if axis == "hidden":
        return "hidden"
    return f"{axis}.{layer}" if axis in PER_LAYER_AXES else None


@dataclass(frozen=True, kw_only=True)
class Count:
    """Parameters of one architecture at one shape. Tied parameters count once."""

    word_embedding: int
    embeddings: int
    matrices: int
    vectors: int
    head: int

    @property
    def total(self) -> int:
        """Embeddings and encoder, without the head: the number that papers quote."""
        return self.embeddings + self.matrices + self.vectors


def count(plan: WidthPlan, widths: Widths) -> Count:
    """Count parameters at the given widths, from the table alone."""
    parts = dict.fromkeys(("embeddings", "matrices", "vectors", "head"), 0)
    word_embedding = 0
    for _, row in plan.parameters():
        size = 1
        for axis in row.axes:
            size *= plan.size(axis, widths)
        parts[row.part] += size
        if row.axes == ("vocab", "hidden"):
            word_embedding += size
    return Count(word_embedding=word_embedding, **parts)
