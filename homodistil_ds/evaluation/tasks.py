"""Predictions and scores of a model on the splits of a task. It trains nothing and writes nothing.

Shapes: N examples of a split, C classes, 1 for a regression.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from homodistil_ds.data.glue import Task
from homodistil_ds.data.task_batches import Encoded, padded
from homodistil_ds.evaluation.glue_metrics import primary_score, scores
from homodistil_ds.evaluation.heldout import Forward
from homodistil_ds.runtime import ranks

ROWS = 64  # examples at a time


@torch.no_grad()
def predict(model: Forward, examples: Encoded, pad_id: int) -> torch.Tensor:
    """Logits [N, C] in float32 on the CPU, the same on all ranks, each of which reads a share. All ranks call it.

    All ranks read as many batches, because models in pieces need every rank in every forward pass.
    """
    by_length = np.argsort(examples.lengths, kind="stable")
    own = by_length[ranks.rank() :: ranks.world_size()]
    most = -(-len(examples) // ranks.world_size())
    found: torch.Tensor | None = None
    for start in range(0, most, ROWS):
        rows = own[start : start + ROWS]
        batch = padded(examples.take(rows if len(rows) else by_length[:1]), pad_id)
        logits = model(*(None if part is None else part.to(ranks.device()) for part in batch)).logits
        assert logits is not None
        if found is None:
            found = torch.zeros(len(examples), logits.shape[-1], device=logits.device)
        if len(rows):
            found[torch.from_numpy(rows).to(found.device)] = logits.float()
    assert found is not None
    return ranks.add_up(found).cpu()


def measure_on(
    task: Task, splits: Mapping[str, Encoded], pad_id: int
) -> Callable[[Forward, Forward | None], dict[str, float]]:
    """`measure` of a stage that learns a task: the student's scores on the splits, and their mean `score`."""

    def measure(student: Forward, teacher: Forward | None) -> dict[str, float]:
        found = scores_on(task, splits, lambda examples: predict(student, examples, pad_id))
        flat = {
            name if len(found) == 1 else f"{split}_{name}": value
            for split, values in found.items()
            for name, value in values.items()
        }
        return {"score": primary_score(task, found), **flat}

    return measure


def scores_on(
    task: Task, splits: Mapping[str, Encoded], predictions: Callable[[Encoded], torch.Tensor]
) -> dict[str, dict[str, float]]:
    """Split -> metric -> value."""
    found = {}
    for split, examples in splits.items():
        assert examples.labels is not None
        found[split] = scores(task, predictions(examples), torch.from_numpy(examples.labels))
    return found


def best_constant(task: Task, splits: Mapping[str, Encoded]) -> float:
    """The primary score of the best single answer to every example; a correlation with one counts as 0."""
    if not task.classes:
        return 0.0
    answers = torch.eye(len(task.classes))
    found = (
        scores_on(task, splits, lambda examples, answer=answer: answer.expand(len(examples), -1))  # type: ignore[misc]
        for answer in answers
    )
    return max(primary_score(task, one) for one in found)
