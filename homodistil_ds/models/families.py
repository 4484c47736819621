"""The families that can be pruned, the width plan of a loaded model, and the shapes it can be cut to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from homodistil_ds.errors import HomodistilError
from homodistil_ds.models.bert import BERT
from homodistil_ds.models.deberta_v2 import DEBERTA_V2
from homodistil_ds.models.distilbert import DISTILBERT
from homodistil_ds.models.electra import ELECTRA
from homodistil_ds.models.gemma import GEMMA
from homodistil_ds.models.gpt2 import GPT2
from homodistil_ds.models.llama import LLAMA
from homodistil_ds.models.mistral import MISTRAL
from homodistil_ds.models.modernbert import MODERNBERT
from homodistil_ds.models.opt import OPT
from homodistil_ds.models.qwen2 import QWEN2
from homodistil_ds.models.qwen3 import QWEN3
from homodistil_ds.models.roberta import ROBERTA
from homodistil_ds.models.t5 import T5
from homodistil_ds.models.width import Axis, Family, Row, WidthPlan, Widths

MASKED = (BERT, ROBERTA, DISTILBERT, ELECTRA, DEBERTA_V2, MODERNBERT)
CAUSAL = (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA, OPT, GPT2)
DENOISING = (T5,)
FAMILIES: dict[str, Family] = {family.model_type: family for family in (*MASKED, *CAUSAL, *DENOISING)}
ALWAYS = ("hidden", "ffn", "heads", "layers", "vocab")  # axes whose size every configuration states
UNLIMITED = 1 << 30  # positions of a model that knows distances alone


def plan_for(config: Any) -> WidthPlan:
    """The width plan of a Hugging Face configuration. Raises HomodistilError for a family without a table."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise without_table(config.model_type)
    if getattr(config, "auto_map", None):
        raise with_own_code(f"{_called(config)}, of type '{config.model_type}',")
    if kind := getattr(config, "quantization_config", None):
        method = kind.get("quant_method") if isinstance(kind, dict) else getattr(kind, "quant_method", kind)
        what = f"the weights of the teacher are quantised ({getattr(method, 'value', method)})"
        raise HomodistilError("DATA-QUANTISED", what, "Use the model that they were made from, in bf16 or float32.")
    reason = "cross-attention" if getattr(config, "add_cross_attention", False) else ""
    if reason := reason or (family.refused(config) if family.refused else ""):
        what = f"a {config.model_type} with {reason}, which its width table does not hold"
        raise HomodistilError("CFG-FAMILY", what, "Use another model of this family, or another family.")
    sizes: dict[str, Any] = {axis: getattr(config, name, None) for axis, name in family.fields.items()}
    sizes |= {axis: size(config) for axis, size in family.computed.items()}
    _check_sizes(config, family, sizes)
    merged = {axis: other for axis, other in family.merges.items() if sizes[axis] == sizes[other]}
    heads = sizes["heads"]
    head_size = sizes.get("head_size") or sizes["hidden"] // heads
    rows = _rows_of(family, config, merged)
    sizes |= {"head_size": head_size, "position": sizes.get("position", UNLIMITED) + family.positions_before}
    fixed = ("vocab", "position", "type", "relative", "head_size", *family.merges, *family.computed)
    alike = family.layers_alike and len(set(getattr(config, "layer_types", None) or ())) < 2
    decoder_layers = sizes.get("decoder_layers", 0)
    return WidthPlan(
        family=replace(family, rows=rows, layers_alike=alike),
        full=Widths(hidden=sizes["hidden"], ffn=sizes["ffn"], heads=heads, head_size=head_size),
        layers=sizes["layers"] + decoder_layers,
        encoder_layers=sizes["layers"] if decoder_layers else 0,
        fixed={axis: sizes[axis] for axis in fixed if axis in sizes and axis not in merged},
        positions=sizes["position"]
        - family.positions_before
        - (config.pad_token_id + 1 if family.padded_positions else 0),
        queries_per_group=heads // (sizes.get("key_value_heads") or heads),
    )


def _called(config: Any) -> str:
    """The folder or hub name that a configuration was read from."""
    return config.name_or_path or "the teacher"


def _check_sizes(config: Any, family: Family, sizes: Mapping[str, Any]) -> None:
    """Raises HomodistilError for sizes that no model has."""
    counted = ("hidden", "ffn", "heads", "layers", "vocab", "head_size", "key_value_heads", "decoder_layers")
    known = {axis: sizes[axis] for axis in counted if sizes.get(axis) is not None or axis in ALWAYS}
    wrong = [axis for axis, size in known.items() if not isinstance(size, int) or size < 1]
    groups = known.get("key_value_heads", 1)
    if not wrong and known["heads"] % groups:
        wrong = ["heads", "key_value_heads"]
    if not wrong and "head_size" not in known and known["hidden"] % known["heads"]:
        wrong = ["hidden", "heads"]
    if wrong:
        told = " with ".join(f"{family.fields.get(axis, axis)} {known[axis]}" for axis in wrong)
        raise HomodistilError(
            "DATA-TEACHER",
            f"the config.json of {_called(config)} has {told}: no {family.model_type} has such sizes",
            "Put the config.json that the weights were saved with beside them.",
        )


def with_own_code(what: str) -> HomodistilError:
    return HomodistilError(
        "DATA-CODE",
        f"{what} comes with code of its own, which is never run",
        f"Only what transformers knows itself is loaded: {', '.join(FAMILIES)}. If it is one of these without that "
        "code, take auto_map out of its config.json.",
    )


def without_table(model_type: str) -> HomodistilError:
    file = f"homodistil_ds/models/{model_type.replace('-', '_')}.py"
    return HomodistilError(
        "CFG-FAMILY",
        f"the teacher is of type '{model_type}', which has no width table",
        f"Supported: {', '.join(FAMILIES)}. For another one write its table into {file}, like llama.py beside it, and "
        "name it in homodistil_ds/models/families.py.",
    )


def _rows_of(family: Family, config: Any, merged: Mapping[Axis, Axis]) -> tuple[Row, ...]:
    """The rows of the parameters that a model of this configuration has, with merged axes replaced."""
    return tuple(
        replace(row, axes=tuple(merged.get(axis, axis) for axis in row.axes))
        for row in family.rows
        if row.when is None or row.when(config)
    )


def target_widths(plan: WidthPlan, hidden: int | None, ffn: int | None, heads: int | None) -> Widths:
    """The student's widths; None keeps the teacher's value.

    Raises HomodistilError for widths outside 1..teacher, and for a shape that a plain folder of the family cannot hold.
    """
    full = plan.full
    hidden = full.hidden if hidden is None else hidden
    ffn = full.ffn if ffn is None else ffn
    heads = full.heads if heads is None else heads
    for flag, value, limit in (
        ("hidden_size", hidden, full.hidden),
        ("intermediate_size", ffn, full.ffn),
        ("num_attention_heads", heads, full.heads),
    ):
        if not 1 <= value <= limit:
            raise HomodistilError(
                "CFG-WIDTH", f"--student.{flag} {value}", f"The teacher has {limit}: use 1 to {limit}."
            )
    legal = legal_shapes(plan)
    if (hidden, heads) not in legal:
        raise HomodistilError(
            "CFG-WIDTH",
            f"--student.hidden_size {hidden} with --student.num_attention_heads {heads} is not a shape that a plain "
            f"{plan.family.model_type} folder can hold: {_rule(plan)}",
            f"Nearest legal shapes (hidden_size with heads): {', '.join(_nearest(legal, hidden, heads))}.",
        )
    head_size = full.head_size if plan.family.head_size == "kept" else hidden // heads
    return Widths(hidden=hidden, ffn=ffn, heads=heads, head_size=head_size)


def legal_shapes(plan: WidthPlan) -> set[tuple[int, int]]:
    """Every (hidden size, heads) that a plain folder of this family holds and that can be cut from this teacher."""
    full = plan.full
    some = range(plan.queries_per_group, full.heads + 1, plan.queries_per_group)
    if plan.family.hidden == "free":
        return {(hidden, heads) for hidden in range(1, full.hidden + 1) for heads in some}
    if plan.family.hidden == "exact":
        return {(heads * full.head_size, heads) for heads in some}
    largest = full.hidden if plan.family.head_size == "kept" else full.head_size
    return {
        (heads * factor, heads)
        for heads in some
        for factor in range(1, largest + 1)
        if heads * factor <= full.hidden and heads * factor not in _apart(plan)
    }


def _apart(plan: WidthPlan) -> set[int]:
    """Hidden sizes at which a plain folder would merge an axis that the teacher has apart, and lack its projection."""
    return {plan.fixed[axis] for axis in plan.family.merges if axis in plan.fixed}


def _rule(plan: WidthPlan) -> str:
    """What makes a shape legal, in words."""
    rule = f"its heads have hidden_size / num_attention_heads entries each, at most the teacher's {plan.full.head_size}"
    if plan.family.head_size == "kept":
        grouped = f"a multiple of {plan.queries_per_group}, the query heads of one key and value head"
        rule = {
            "free": f"its num_attention_heads are {grouped}",
            "multiple": f"its hidden_size is a multiple of num_attention_heads, and those are {grouped}",
            "exact": f"its hidden_size is {plan.full.head_size} times its num_attention_heads",
        }[plan.family.hidden]
    return "; ".join([rule, *(f"its hidden_size is not its embedding size {size}" for size in _apart(plan))])


def _nearest(legal: set[tuple[int, int]], hidden: int, heads: int) -> list[str]:
    """Legal shapes: the nearest width for these heads, the nearest heads for this width, the nearest multiple of 8."""
    distance = {shape: abs(shape[0] - hidden) + 4 * abs(shape[1] - heads) for shape in legal}
    choices = [
        [shape for shape in legal if shape[1] == heads],
        [shape for shape in legal if shape[0] == hidden],
        [shape for shape in legal if shape[0] % 8 == 0],
    ]
    best = [min(shapes, key=lambda shape: (distance[shape], shape)) for shapes in choices if shapes]
    return [f"{hidden} with {heads}" for hidden, heads in dict.fromkeys(best)]
