"""What one training step costs at given widths: FLOPs per token, from the width table alone. No seconds, no bytes.

A multiply-add is 2 FLOPs. Element-wise work (norms, activations, softmax, the losses, Adam) is left out: it falls with
the width like attention does, and is small beside the matrices. So are the products that losses make anew: `scores`
six of [D, L] by [L, D] for each head and layer, whose cost per token knows no length; `value_relation` and `relation`
one and three like queries by keys, in one layer; `attention` and, in one layer, `attention_kl`, where maps are compared
in tiles, 8 L d + 4 L d' FLOPs per token and layer for heads of d and d' neurons in student and teacher.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from homodistil_ds.models.width import WidthPlan, Widths, count

FORWARD, FORWARD_AND_BACKWARD = 1, 3


def step_flops(
    plan: WidthPlan,
    student: Widths,
    *,
    sequence_length: int,
    predicted_share: float,
    reads: Collection[str],
    teacher_reads: Collection[str] | None,
    teacher_plan: WidthPlan | None = None,
) -> float:
    """FLOPs per token of one step with a student of these physical widths.

    `reads` and `teacher_reads` name what the losses read of each model: logits, hidden, attention, embedding.
    `teacher_reads` is None for training without a teacher; a teacher has the full widths of `teacher_plan`, which is
    the student's unless it has more layers. `predicted_share` is the share of the tokens whose logits are computed.
    """
    parts = step_parts(
        plan,
        student,
        sequence_length=sequence_length,
        predicted_share=predicted_share,
        reads=reads,
        teacher_reads=teacher_reads,
        teacher_plan=teacher_plan,
    )
    return sum(parts.values())


def step_parts(
    plan: WidthPlan,
    student: Widths,
    *,
    sequence_length: int,
    predicted_share: float,
    reads: Collection[str],
    teacher_reads: Collection[str] | None,
    teacher_plan: WidthPlan | None = None,
) -> Mapping[str, float]:
    """The terms of `step_flops`: teacher, body, head and projections.

    Losses on whole attention maps add no matrix work: the maps are a by-product of the forward pass. What tiles of them
    add is left out. The projections lift the student's own states, so their backward pass makes two products, as a
    layer's does. Logits in parts ("predicted") are made once more for the backward pass, by both heads.
    """
    head_share = predicted_share * _speaks(reads)
    teacher = 0.0
    if teacher_reads is not None:
        its = teacher_plan or plan
        teacher_share = predicted_share * _speaks(teacher_reads)
        heads = 2 * FORWARD if "predicted" in teacher_reads else FORWARD
        teacher = FORWARD * body_flops(its, its.full, sequence_length)
        teacher += heads * teacher_share * head_flops(its, its.full)
    return {
        "teacher": teacher,
        "body": FORWARD_AND_BACKWARD * body_flops(plan, student, sequence_length),
        "head": (FORWARD_AND_BACKWARD + ("predicted" in reads)) * head_share * head_flops(plan, student),
        "projections": FORWARD_AND_BACKWARD * projection_flops(plan, student, reads),
    }


def _speaks(reads: Collection[str]) -> bool:
    """Whether the vocabulary head runs, at once or in parts."""
    return "logits" in reads or "predicted" in reads


def body_flops(plan: WidthPlan, widths: Widths, sequence_length: int) -> float:
    """FLOPs per token of a forward pass through the layers; every token attends to all of its sequence."""
    attention = 4 * sequence_length * widths.heads * widths.head_size
    return 2 * count(plan, widths).matrices + plan.layers * attention


def head_flops(plan: WidthPlan, widths: Widths) -> float:
    """FLOPs of a forward pass through the vocabulary head, per token whose logits are computed.

    The product with the vocabulary matrix counts once, tied to the word embedding or not; looking a word up is free.
    """
    entries = count(plan, widths).word_embedding
    for row in plan.family.rows:
        if row.part == "head" and len(row.axes) == 2 and "vocab" not in row.axes:
            entries += plan.size(row.axes[0], widths) * plan.size(row.axes[1], widths)
    return 2 * entries


def projection_flops(plan: WidthPlan, widths: Widths, reads: Collection[str]) -> float:
    """FLOPs per token of a forward pass of the student's states, layers' and embedding's, up to the teacher's width."""
    states = plan.layers * ("hidden" in reads) + ("embedding" in reads)
    return 2 * states * plan.full.hidden * widths.hidden
