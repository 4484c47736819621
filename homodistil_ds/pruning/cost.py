"""What one training step costs at given widths: FLOPs per token, from the width table alone. No seconds, no bytes.

A multiply-add is 2 FLOPs. Element-wise work (norms, activations, softmax, the losses, Adam) is left out: it falls with
the width like attention does, and is small beside the matrices. So are the products that losses make anew: `scores`
six of [D, L] by [L, D] for each head and layer, whose cost per token knows no length; `value_relation` and `relation`
one and three like queries by keys, in one layer; `attention` and, in one layer, `attention_kl`, where maps are compared
in tiles, 8 L d + 4 L d' FLOPs per token and layer for heads of d and d' neurons in student and teacher.
"""

from __future__ import annotations

import math
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
        teacher = FORWARD * body_flops(its, its.full, sequence_length, predicted_share)
        teacher += heads * teacher_share * head_flops(its, its.full)
    return {
        "teacher": teacher,
        "body": FORWARD_AND_BACKWARD * body_flops(plan, student, sequence_length, predicted_share),
        "head": (FORWARD_AND_BACKWARD + ("predicted" in reads)) * head_share * head_flops(plan, student),
        "projections": FORWARD_AND_BACKWARD * projection_flops(plan, student, reads, sequence_length, predicted_share),
    }


def _speaks(reads: Collection[str]) -> bool:
    """Whether the vocabulary head runs, at once or in parts."""
    return "logits" in reads or "predicted" in reads


def body_flops(plan: WidthPlan, widths: Widths, sequence_length: int, predicted_share: float) -> float:
    """FLOPs per token of a forward pass through the layers; every token attends to all of its sequence, and in a
    decoder's layer to all that the encoder reads."""
    attention = 4 * widths.heads * widths.head_size
    if not plan.encoder_layers:
        return 2 * count(plan, widths).matrices + plan.layers * attention * sequence_length
    read, said = read_and_said(sequence_length, predicted_share)
    matrices = 0.0
    for _, row in plan.parameters():
        if row.part == "matrices":
            entries = math.prod(plan.size(axis, widths) for axis in row.axes)
            matrices += entries * (read if row.stack == "first" or row.reads == "encoder" else said)
    decoder_layers = plan.layers - plan.encoder_layers
    pairs = plan.encoder_layers * read**2 + decoder_layers * said * (said + read)
    return 2 * matrices + attention * sequence_length * pairs


def read_and_said(sequence_length: int, predicted_share: float) -> tuple[float, float]:
    """What encoder and decoder read of a row with spans taken out (data/spans.py), in shares of its tokens.

    The decoder reads K ids, the predicted ones, and the encoder about L - (K - 1) / 2 + 1: a span of three is one
    sentinel there and four ids here.
    """
    return 1 - predicted_share / 2 + 1.5 / sequence_length, predicted_share


def head_flops(plan: WidthPlan, widths: Widths) -> float:
    """FLOPs of a forward pass through the vocabulary head, per token whose logits are computed.

    The product with the vocabulary matrix counts once, tied to the word embedding or not; looking a word up is free.
    """
    entries = count(plan, widths).word_embedding
    for row in plan.family.rows:
        if row.part == "head" and len(row.axes) == 2 and "vocab" not in row.axes:
            entries += plan.size(row.axes[0], widths) * plan.size(row.axes[1], widths)
    return 2 * entries


def projection_flops(
    plan: WidthPlan, widths: Widths, reads: Collection[str], sequence_length: int, predicted_share: float
) -> float:
    """FLOPs per token of a forward pass of the student's states, layers' and embedding's, up to the teacher's width."""
    read, said = read_and_said(sequence_length, predicted_share) if plan.encoder_layers else (1.0, 1.0)
    encoder_layers = plan.encoder_layers or plan.layers
    states = ("hidden" in reads) * (encoder_layers * read + (plan.layers - encoder_layers) * said)
    states += ("embedding" in reads) * read
    return 2 * states * plan.full.hidden * widths.hidden
