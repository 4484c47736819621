"""The width table: which logical axis each dimension of each parameter runs along, and counting over it. No tensors."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# `queries` and `keys` are those of grouped heads: several query heads around one head of keys and values.
Axis = (
    Literal["vocab", "position", "relative", "type", "embedding", "head_size", "teacher", "classes", "compared"]
    | Literal["hidden", "ffn", "qk", "vo", "queries", "keys", "heads", "crossing"]
)
LanguageModel = Literal["masked", "causal", "denoising"]
Stack = Literal["first", "decoder"]  # of layers; a model without an encoder before its decoder has one
# The group that each axis of a layer belongs to; a neuron of `heads` is one head of keys and values with its queries,
# of `cross` one with which a decoder's layer looks at the encoder.
LAYER_GROUPS: Mapping[str, str] = {
    **{"ffn": "ffn", "qk": "qk", "vo": "vo"},
    **{"queries": "heads", "keys": "heads", "heads": "heads", "crossing": "cross"},
}
INTO_HEADS: tuple[Axis, ...] = ("qk", "vo", "queries", "keys")  # what a matrix that makes heads gives
TRAINED_PREFIX = "model."  # of a parameter inside models.forward.Student


@dataclass(frozen=True, kw_only=True)
class Widths:
    """How many neurons each axis keeps; `qk` and `vo` both hold heads * head_size of them. `heads` are query heads."""

    hidden: int
    ffn: int
    heads: int
    head_size: int

    def __str__(self) -> str:
        return f"{self.hidden}/{self.ffn}/{self.heads}x{self.head_size}"


@dataclass(frozen=True)
class Dim:
    """One dimension of a parameter: the group its neurons belong to, and the neighbouring entries that each owns."""

    group: str
    block: int = 1


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a family's table; `{layer}` in the pattern stands for a layer number.

    `part` says what a count reports the parameter under: embeddings, matrices (of the layers), vectors (their biases
    and norms), head. `when` asks the configuration whether a model has the parameter; without it all models have.
    Layers before number `since` lack it. `stack` is that of the decoder in a model with an encoder before it; `reads`
    is what a matrix is multiplied with, which in a decoder's stack may be the encoder's states, and elsewhere a table
    of positions.
    """

    pattern: str
    axes: tuple[Axis, ...]
    part: Literal["embeddings", "matrices", "vectors", "head"]
    scored: bool = True
    when: Callable[[Any], bool] | None = None
    since: int = 0
    stack: Stack = "first"
    reads: Literal["own", "encoder", "positions"] = "own"


Asked = Callable[[Any], bool]


def matrices(
    place: str, axes: Mapping[str, tuple[Axis, Axis]], biased: Mapping[str, Asked] | None = None
) -> tuple[Row, ...]:
    """Rows of a layer's matrices [out, in] at `place`, name -> axes: all weights, then their biases; those named in
    `biased` have one where the configuration says so."""
    asked = biased or {}
    return (
        *(Row(pattern=f"{place}.{name}.weight", axes=own, part="matrices") for name, own in axes.items()),
        *(
            Row(pattern=f"{place}.{name}.bias", axes=own[:1], part="vectors", when=asked.get(name))
            for name, own in axes.items()
        ),
    )


# The projections of a Student, [teacher hidden, hidden]: masked and cut, never scored, counted or exported.
PROJECTIONS = tuple(
    Row(pattern=f"projections.{name}.weight", axes=("teacher", "hidden"), part="head", scored=False)
    for name in ("hidden", "embedding")
)


@dataclass(frozen=True, kw_only=True)
class Family:
    """Everything the project knows about one Hugging Face architecture.

    `fields` maps an axis, and heads, layers, head_size and key_value_heads where they have one, to the configuration
    field with its size. An axis in `merges` runs along the neurons of another in models where both have one size.
    `head_size` is "derived" where a plain folder computes it from the hidden size and "kept" where it is the teacher's;
    `hidden` says what a hidden size must then be: anything, a multiple of the heads, or just what the heads hold.
    `computed` gives the size of an axis that no field names.
    `query` names the parameters that an export rescales when the head size changed (H5), `attention` the modules whose
    `scaling` must stay the teacher's, None where heads keep their size and no module has it. `scaled_embedding` is the
    module whose output is multiplied by the root of the hidden size, `last_norm` the gain, less 1, through which the
    vocabulary head reads. `head` are the modules of that head in the order they run, `head_transform` is the path of
    its first matrix; `task_head` are the rows that take its place in a model that classifies texts. `padded_positions`:
    positions count from the padding id on; `positions_before`: rows of the position table that the configuration's size
    leaves out. `fused`: how the names of matrices end that hold several, one after the other, and what these are called
    once they are apart; a table has them apart, and every matrix as [out, in]. `layers_alike`: any layer may take the
    place of any other; the configuration decides. `follows`: further fields that are as large as an axis. `refused`
    says what of a configuration a table cannot hold, "" if it can. `plain_scores`: attention scores are what the query
    and key matrices put out, multiplied, times `scaling`: positions neither turn queries and keys nor are added.
    `heads_in_common`: all layers of a stack have the same heads, because one table says how each sees distances.
    `divides_head`: whether the states that the vocabulary head reads are divided by the root of the hidden size, which
    the model holds under the name `head_divisor`; `head_gain` is the gain that they come from. `own_head`: whether that
    head has a matrix of its own although transformers ties it.
    """

    model_type: str
    language_model: LanguageModel
    rows: tuple[Row, ...]
    fields: Mapping[str, str]
    attention: str | None
    head: tuple[str, ...]
    head_transform: str | None = None
    task_head: tuple[Row, ...] = ()
    head_size: Literal["derived", "kept"] = "derived"
    hidden: Literal["free", "multiple", "exact"] = "multiple"
    computed: Mapping[Axis, Callable[[Any], int]] = field(default_factory=dict)
    query: tuple[str, ...] = ()
    merges: Mapping[Axis, Axis] = field(default_factory=dict)
    padded_positions: bool = False
    positions_before: int = 0
    scaled_embedding: str | None = None
    last_norm: str | None = None
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    layers_alike: bool = True
    plain_scores: bool = False
    heads_in_common: bool = False
    divides_head: Asked | None = None
    head_divisor: str = ""
    head_gain: str = ""
    own_head: Asked | None = None
    follows: Mapping[str, str] = field(default_factory=dict)
    refused: Callable[[Any], str] | None = None

    @property
    def decodes(self) -> bool:
        """Whether there is a decoder behind an encoder."""
        return self.language_model == "denoising"

    def attention_inputs(self) -> dict[str, str]:
        """queries, keys, values -> how the name of that matrix ends in every layer: a table's first, in this order."""
        matrices = (row for row in self.rows if row.axes[1:] == ("hidden",) and row.axes[0] in INTO_HEADS)
        ends = (row.pattern.rpartition("{layer}")[2] for row in matrices)
        return dict(zip(("queries", "keys", "values"), ends, strict=False))


@dataclass(frozen=True, kw_only=True)
class WidthPlan:
    """A family's table at one model's sizes: `full` widths, the fixed sizes of the other axes, the number of layers.

    `positions` is the longest sequence; `queries_per_group` query heads share one key and value head. Of the layers
    the first `encoder_layers` are those of an encoder, and a decoder's follow; without a decoder it is 0.
    """

    family: Family
    full: Widths
    layers: int
    fixed: Mapping[str, int]
    positions: int
    queries_per_group: int = 1
    encoder_layers: int = 0
    _found: dict[str, tuple[Row, int | None] | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def groups(self) -> dict[str, int]:
        """Name -> number of neurons of every group that pruning may touch, in the one order used everywhere."""
        sizes = {"hidden": self.full.hidden}
        for layer in range(self.layers):
            sizes |= {name: self.size(kind, self.full) for kind, name in sorted(self.groups_of(layer).items())}
        return sizes

    def groups_of(self, layer: int) -> dict[str, str]:
        """Kind -> name of the groups of a layer; what layers have in common is called after the first of them."""
        rows = (row for row in self.family.rows if "{layer}" in row.pattern and layer in self.layers_of(row))
        kinds = dict.fromkeys(LAYER_GROUPS[axis] for row in rows for axis in row.axes if axis in LAYER_GROUPS)
        return {kind: self.group(kind, layer) for kind in kinds}

    def group(self, kind: str, layer: int) -> str:
        """The name of a layer's group of this kind."""
        if kind == "heads" and self.family.heads_in_common:
            layer = self.encoder_layers if layer >= self.encoder_layers else 0
        return f"{kind}.{layer}"

    def layers_of(self, row: Row) -> range:
        """The layers that have a row of this pattern, counted over both stacks."""
        if row.stack == "decoder":
            return range(self.encoder_layers, self.layers)
        return range(row.since, self.encoder_layers or self.layers)

    def size(self, axis: str, widths: Widths) -> int:
        """Entries along an axis at the given widths, or neurons of the groups `heads` and `cross`."""
        if axis in ("hidden", "ffn"):
            return getattr(widths, axis)
        if axis in ("qk", "vo"):
            return widths.heads * widths.head_size
        if axis in ("heads", "cross", "crossing", "keys", "queries"):
            groups = -(-widths.heads // self.queries_per_group)  # a head that stays keeps its group
            per_group = {"heads": 1, "cross": 1, "queries": self.queries_per_group * widths.head_size}
            return groups * per_group.get(axis, widths.head_size)
        return self.fixed[axis]

    def config_values(self, widths: Widths) -> dict[str, int]:
        """Configuration field -> its value in a model of the given widths; the other fields are the teacher's."""
        values = {name: getattr(widths, name) for name in ("hidden", "ffn", "heads", "head_size")}
        values["key_value_heads"] = self.size("heads", widths)
        values |= {axis: values[other] for axis, other in self.family.merges.items() if axis not in self.fixed}
        found = {self.family.fields[axis]: value for axis, value in values.items() if axis in self.family.fields}
        return found | {name: values[axis] for name, axis in self.family.follows.items()}

    def find(self, name: str) -> tuple[Row, int | None] | None:
        """The row of a parameter and its layer number; None if the table does not know the name.

        A parameter of a Student is found with and without its prefix.
        """
        if name not in self._found:  # asked for every parameter in every step
            self._found[name] = self._match(name)
        return self._found[name]

    def _match(self, name: str) -> tuple[Row, int | None] | None:
        for own in (name, name.removeprefix(TRAINED_PREFIX)):  # some models' own names start with it too
            for row in (*self.family.rows, *PROJECTIONS):
                match = _regex(row.pattern).fullmatch(own)
                if match:
                    return row, int(match[1]) + self._before(row) if match.groups() else None
        return None

    def _before(self, row: Row) -> int:
        """Layers of the stack before the row's."""
        return self.encoder_layers if row.stack == "decoder" else 0

    def dims(self, name: str) -> tuple[Dim | None, ...]:
        """What runs along each dimension of a parameter, None where a dimension is never cut by pruning.

        Raises KeyError for a parameter that the table lacks: an unknown tensor must never be left uncut in silence.
        """
        found = self.find(name)
        if found is None:
            raise KeyError(f"{name} is not in the width table of {self.family.model_type}")
        row, layer = found
        return tuple(self._dim(axis, self._before(row) if layer is None else layer) for axis in row.axes)

    def _dim(self, axis: str, layer: int) -> Dim | None:
        if axis == "hidden":
            return Dim("hidden")
        if axis not in LAYER_GROUPS:
            return None
        kind = LAYER_GROUPS[axis]
        return Dim(self.group(kind, layer), self.size(axis, self.full) // self.size(kind, self.full))

    def name_in(self, layer: int, row: Row) -> str:
        """The parameter of a row in a layer."""
        return row.pattern.replace("{layer}", str(layer - self._before(row)))

    def scored(self, name: str) -> bool:
        found = self.find(name)
        return found is not None and found[0].scored

    def parameters(self) -> Iterator[tuple[str, Row]]:
        """Every parameter name of the architecture with its row."""
        for row in self.family.rows:
            if "{layer}" in row.pattern:
                yield from ((self.name_in(layer, row), row) for layer in self.layers_of(row))
            else:
                yield row.pattern, row


@functools.cache
def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(r"\{layer\}", r"(\d+)"))


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
        """Embeddings and layers, without the head: the number that papers quote."""
        return self.embeddings + self.matrices + self.vectors

    @property
    def with_head(self) -> int:
        """What a model of that shape trains and stores."""
        return self.total + self.head


def count(plan: WidthPlan, widths: Widths) -> Count:
    """Count parameters at the given widths, from the table alone."""
    parts = dict.fromkeys(("embeddings", "matrices", "vectors", "head"), 0)
    word_embedding = 0
    for _, row in plan.parameters():
        size = 1
        for axis in row.axes:
            size *= plan.size(axis, widths)
        parts[row.part] += size
        if row.part == "embeddings" and row.axes[0] == "vocab":
            word_embedding += size
    return Count(word_embedding=word_embedding, **parts)
