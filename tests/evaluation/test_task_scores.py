"""Predictions are the plain model's, in the order of the examples; scores are those of the predictions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from family_models import tiny_config
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from words import PAD

from homodistil_ds.data.glue import TASKS
from homodistil_ds.data.task_batches import Encoded
from homodistil_ds.evaluation.glue_metrics import scores
from homodistil_ds.evaluation.heldout import Forward
from homodistil_ds.evaluation.tasks import ROWS, best_constant, measure_on, predict
from homodistil_ds.models.families import FAMILIES
from homodistil_ds.models.tasks import task_forward


def model(classes: int) -> PreTrainedModel:
    torch.manual_seed(0)
    config = tiny_config("bert")
    config.num_labels = classes
    made = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


def forward(plain: PreTrainedModel) -> Forward:
    return lambda *shown: task_forward(plain, FAMILIES["bert"], *shown, reads={"logits"})


def examples(count: int, classes: int) -> Encoded:
    generator = np.random.default_rng(0)
    lengths = generator.integers(3, 20, count)
    labels = generator.integers(0, classes, count) if classes > 1 else generator.random(count).astype(np.float32)
    return Encoded(
        ids=[generator.integers(5, 185, length).astype(np.int32) for length in lengths],
        types=[(np.arange(length) > 2).astype(np.int32) for length in lengths],
        labels=labels,
        indices=np.arange(count),
    )


def one_by_one(plain: PreTrainedModel, given: Encoded) -> torch.Tensor:
    """Without padding, without batches."""
    assert given.types is not None
    with torch.no_grad():
        return torch.cat(
            [
                plain(input_ids=torch.tensor(ids)[None].long(), token_type_ids=torch.tensor(types)[None].long()).logits
                for ids, types in zip(given.ids, given.types, strict=True)
            ]
        )


@pytest.mark.parametrize("count", [1, ROWS, ROWS + 1, 150])
@pytest.mark.parametrize("classes", [1, 3])
def test_predictions_are_the_plain_models_in_the_order_of_the_examples(count: int, classes: int) -> None:
    plain, given = model(classes), examples(count, classes)
    found = predict(forward(plain), given, PAD)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, one_by_one(plain, given), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("count", [1, 7, 130])
def test_the_shares_of_the_ranks_add_up_after_equally_many_passes(
    world_size: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, given = model(3), examples(count, 3)
    passes = []
    total = torch.zeros(count, 3)

    def counted(*shown: torch.Tensor) -> object:
        passes[-1] += 1
        return forward(plain)(*shown)

    monkeypatch.setattr("homodistil_ds.runtime.ranks.world_size", lambda: world_size)
    monkeypatch.setattr("homodistil_ds.runtime.ranks.add_up", lambda found: found)
    for rank in range(world_size):
        monkeypatch.setattr("homodistil_ds.runtime.ranks.rank", lambda rank=rank: rank)
        passes.append(0)
        total += predict(counted, given, PAD)  # type: ignore[arg-type]
    assert len(set(passes)) == 1
    torch.testing.assert_close(total, one_by_one(plain, given), atol=1e-5, rtol=1e-5)


def test_a_measure_names_the_split_only_where_there_are_more() -> None:
    for name, classes, count in (("SST-2", 2, 1), ("STS-B", 1, 1), ("MNLI", 3, 2)):
        task, plain = TASKS[name], model(classes)
        splits = dict(zip(task.evaluation, (examples(90, classes), examples(40, classes)), strict=False))
        found = measure_on(task, splits, PAD)(forward(plain), None)
        assert len(splits) == count
        single = {}
        for split, given in splits.items():
            assert given.labels is not None
            for metric, value in scores(task, one_by_one(plain, given), torch.from_numpy(given.labels)).items():
                single[metric if count == 1 else f"{split}_{metric}"] = value
        primary = [value for metric, value in single.items() if metric.rsplit("_", 1)[-1] in task.primary]
        assert found == pytest.approx({"score": sum(primary) / len(primary), **single}, abs=1e-6)


def test_the_best_single_answer_is_the_commoner_class_and_no_correlation() -> None:
    def labelled(*labels: float) -> dict[str, Encoded]:
        few = examples(len(labels), 2)
        return {"dev": Encoded(ids=few.ids, types=few.types, labels=np.array(labels), indices=few.indices)}

    assert best_constant(TASKS["SST-2"], labelled(0, 0, 0, 1)) == pytest.approx(0.75)
    assert best_constant(TASKS["MRPC"], labelled(1, 1, 1, 0)) == pytest.approx((0.75 + 6 / 7) / 2)
    assert best_constant(TASKS["CoLA"], labelled(1, 1, 0)) == 0.0
    assert best_constant(TASKS["STS-B"], labelled(0.1, 0.4)) == 0.0
