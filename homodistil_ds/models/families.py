"""The families that can be pruned, and the width plan of a loaded model."""

from __future__ import annotations

from typing import Any

from homodistil_ds.errors import HomodistilError
from homodistil_ds.models.bert import BERT
from homodistil_ds.models.width import Family, WidthPlan, Widths

FAMILIES: dict[str, Family] = {family.model_type: family for family in (BERT,)}


def plan_for(config: Any) -> WidthPlan:
    """The width plan of a Hugging Face configuration. Raises HomodistilError for a family without a table."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise HomodistilError(
            "CFG-FAMILY",
            f"the teacher is of type '{config.model_type}', which has no width table",
            f"Supported: {', '.join(FAMILIES)}.",
        )
    hidden, heads = config.hidden_size, config.num_attention_heads
    return WidthPlan(
        family=family,
        full=Widths(hidden=hidden, ffn=config.intermediate_size, heads=heads, head_size=hidden // heads),
        layers=config.num_hidden_layers,
        fixed={axis: getattr(config, family.fields[axis]) for axis in ("vocab", "position", "type")},
    )


def target_widths(plan: WidthPlan, hidden: int | None, ffn: int | None, heads: int | None) -> Widths:
    """The student's widths; None keeps the teacher's value.

    Raises HomodistilError for widths outside 1..teacher, and, where the head size is tied to hidden / heads, for a
    hidden size that the heads do not divide or that would need larger heads than the teacher has.
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
            f"{plan.family.model_type} folder can hold: its heads have hidden_size / num_attention_heads entries each, "
            f"at most the teacher's {full.head_size}",
            f"Nearest legal shapes (hidden_size with heads): {', '.join(_nearest(legal, hidden, heads))}.",
        )
    return Widths(hidden=hidden, ffn=ffn, heads=heads, head_size=hidden // heads)


def legal_shapes(plan: WidthPlan) -> set[tuple[int, int]]:
    """Every (hidden size, heads) that a plain folder of this family holds and that can be cut from this teacher."""
    full = plan.full
    return {
        (heads * head_size, heads)
        for heads in range(1, full.heads + 1)
        for head_size in range(1, full.head_size + 1)
        if heads * head_size <= full.hidden
    }


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
