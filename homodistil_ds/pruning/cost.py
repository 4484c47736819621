"""What one training step costs at given widths: FLOPs per token, from the width table alone. No seconds, no bytes.

A multiply-add is 2 FLOPs. Element-wise work (norms, activations, softmax, the losses, Adam) is left out: it falls with
the width like attention does, and is small beside the matrices. So are the products that losses make anew: `scores`
six of [D, L] by [L, D] for each head and layer, whose cost per token knows no length; `value_relation` and `relation`
one and three like queries by keys, in one layer. Maps that are made in tiles for the losses do count.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from homodistil_ds.models.width import Stack, WidthPlan, Widths, count

FORWARD, FORWARD_AND_BACKWARD = 1, 3
Stacks = Sequence[tuple[Stack, int, float]]  # name, layers, what it reads of a row


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
    tiled_layers: int = 0,
) -> Mapping[str, float]:
    """The terms of `step_flops`: teacher, body, head, projections and maps.

    Losses on whole attention maps add no matrix work: the maps are a by-product of the forward pass. In tiles they are
    made for the losses, `tiled_layers` times those of one layer, and once more for the backward pass, by both models.
    The projections lift the student's own states, so their backward pass makes two products, as a layer's does. Logits
    in parts ("predicted") are made once more for the backward pass, by both heads.
    """
    its = teacher_plan or plan
    head_share = predicted_share * speaks(reads)
    teacher = 0.0
    if teacher_reads is not None:
        teacher_share = predicted_share * speaks(teacher_reads)
        heads = 2 * FORWARD if "predicted" in teacher_reads else FORWARD
        teacher = FORWARD * body_flops(its, its.full, sequence_length, predicted_share)
        teacher += heads * teacher_share * head_flops(its, its.full)
    return {
        "teacher": teacher,
        "body": FORWARD_AND_BACKWARD * body_flops(plan, student, sequence_length, predicted_share),
        "head": (FORWARD_AND_BACKWARD + ("predicted" in reads)) * head_share * head_flops(plan, student),
        "projections": FORWARD_AND_BACKWARD * projection_flops(plan, student, reads, sequence_length, predicted_share),
        "maps": tiled_layers * sequence_length * _in_maps(student, its.full),
    }


def _in_maps(student: Widths, teacher: Widths) -> int:
    """FLOPs of one number of every head's map: made twice by both models, two products of a backward pass."""
    own, shown = 2 * student.head_size, 2 * teacher.head_size
    # Of the teacher's heads those alone that the student's are compared with.
    return student.heads * ((1 + FORWARD_AND_BACKWARD) * own + 2 * FORWARD * shown)


def speaks(reads: Collection[str]) -> bool:
    """Whether the vocabulary head runs, at once or in parts."""
    return "logits" in reads or "predicted" in reads


def body_flops(plan: WidthPlan, widths: Widths, sequence_length: int, predicted_share: float) -> float:
    """FLOPs per token of a forward pass through the layers; every token attends to all of its sequence, and in a
    decoder's layer to all that the encoder reads. Products with a table of positions count; that table's keys and
    queries are `table_flops`."""
    of_stacks = stacks(plan, sequence_length, predicted_share)
    shares = {stack: share for stack, _, share in of_stacks}
    matrices = 0.0
    for _, row in plan.parameters():
        lifts = row.axes == ("hidden", "embedding")  # a narrower embedding
        if lifts or (row.part == "matrices" and row.reads != "positions"):
            entries = math.prod(plan.size(axis, widths) for axis in row.axes)
            matrices += entries * shares["first" if row.reads == "encoder" else row.stack]
    pairs = sum(layers * share**2 for _, layers, share in of_stacks) + crossed(of_stacks)
    compared = plan.fixed.get("compared", 0) * sum(layers for _, layers, _ in of_stacks)
    return 2 * matrices + widths.heads * widths.head_size * (4 * sequence_length * pairs + 2 * compared)


def table_flops(plan: WidthPlan, widths: Widths) -> float:
    """FLOPs of a forward pass that makes keys and queries of a table of positions, once for a micro batch."""
    rows = plan.layers * plan.fixed.get("compared", 0)
    return 2 * rows * widths.hidden * widths.heads * widths.head_size


def stacks(plan: WidthPlan, sequence_length: int, predicted_share: float) -> Stacks:
    """The stacks of a model: name, layers, and the ids that it reads, in shares of a row's tokens.

    Of a row with spans taken out (data/spans.py) the decoder reads K ids, the predicted ones, and the encoder about
    L - (K - 1) / 2 + 1: a span of three is one sentinel there and four ids here.
    """
    if not plan.encoder_layers:
        return [("first", plan.layers, 1.0)]
    read, said = 1 - predicted_share / 2 + 1.5 / sequence_length, predicted_share
    return [("first", plan.encoder_layers, read), ("decoder", plan.layers - plan.encoder_layers, said)]


def crossed(of_stacks: Stacks) -> float:
    """Layers that look at an encoder, each times what it and the encoder read of a row; 0 without an encoder."""
    *encoder, (_, layers, said) = of_stacks
    return sum(layers * said * read for _, _, read in encoder)


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
    of_stacks = stacks(plan, sequence_length, predicted_share)
    states = ("hidden" in reads) * sum(layers * share for _, layers, share in of_stacks)
    states += ("embedding" in reads) * of_stacks[0][2]
    return 2 * states * plan.full.hidden * widths.hidden
