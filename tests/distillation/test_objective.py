"""The weighted sum (H9): only what has a weight is computed, and only what is read is asked for."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from family_models import SIZES, tiny_config
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from homodistil_ds.config import LossConfig
from homodistil_ds.data.corpus import Order
from homodistil_ds.data.task_batches import Encoded, TaskBatches, padded
from homodistil_ds.distillation import mixup
from homodistil_ds.distillation.losses import LOSSES, Inputs
from homodistil_ds.distillation.objective import Objective, check_losses
from homodistil_ds.errors import HomodistilError
from homodistil_ds.models.families import FAMILIES
from homodistil_ds.models.forward import Activations
from homodistil_ds.models.tasks import task_forward
from homodistil_ds.models.width import Widths
from homodistil_ds.presets import PRESETS

NOTHING = dict.fromkeys(LOSSES, 0.0)


def with_weights(**weights: float) -> LossConfig:
    return LossConfig(**{**NOTHING, **weights})


def inputs(student: Activations, teacher: Activations) -> Inputs:
    return Inputs(student=student, teacher=teacher, labels=torch.tensor([[1, 0]]))


@pytest.mark.parametrize(
    ("name", "reads"),
    [
        ("mlm", {"logits"}),
        ("kl", {"logits"}),
        ("hidden", {"hidden"}),
        ("attention", {"attention"}),
        ("embedding", {"embedding"}),
        ("cosine", {"last"}),
        ("scores", {"queries", "keys"}),
        ("attention_kl", {"attention"}),
        ("value_relation", {"values"}),
        ("relation", {"queries", "keys", "values"}),
    ],
)
def test_reads_follow_the_weights(name: str, reads: set[str]) -> None:
    objective = Objective(with_weights(**{name: 0.5}), with_teacher=True)
    assert objective.student_reads() == reads
    assert objective.teacher_reads() == (set() if name == "mlm" else reads)


def test_the_default_is_the_method_and_every_weight_of_the_configuration_has_a_loss() -> None:
    objective = Objective(LossConfig(), with_teacher=True)
    assert objective.student_reads() == objective.teacher_reads() == {"logits", "hidden", "attention", "embedding"}
    assert {*LOSSES, "temperature", "relation_heads"} == set(vars(LossConfig()))


def test_without_a_teacher_only_mlm_is_left_and_nothing_is_asked_of_a_teacher() -> None:
    objective = Objective(LossConfig(), with_teacher=False)
    assert list(objective.weights) == ["mlm"]
    assert objective.student_reads() == {"logits"}
    assert objective.teacher_reads() == set()
    logits = torch.randn(1, 2, 3, requires_grad=True)
    total, terms = objective(inputs(Activations(logits=logits), Activations()))
    assert list(terms) == ["mlm"]
    assert torch.equal(total.detach(), terms["mlm"])


def test_a_term_of_weight_zero_is_not_computed() -> None:
    """Its activations do not even exist here, so computing it would fail."""
    own, shown = Activations(embedding=torch.ones(1, 2, 3)), Activations(embedding=torch.zeros(1, 2, 3))
    total, terms = Objective(with_weights(embedding=2.0), with_teacher=True)(inputs(own, shown))
    assert {name: float(term) for name, term in terms.items()} == {"embedding": 1.0}
    assert float(total) == 2.0


def test_the_total_is_the_weighted_sum_of_the_unweighted_terms_and_carries_the_gradient() -> None:
    weights = {"mlm": 0.5, "kl": 2.0, "embedding": 3.0}
    objective = Objective(LossConfig(**{**NOTHING, **weights}, temperature=2.0), with_teacher=True)
    assert objective.settings == {"temperature": 2.0, "relation_heads": 12}
    torch.manual_seed(0)
    logits, states = torch.randn(1, 2, 5, requires_grad=True), torch.randn(1, 2, 3, requires_grad=True)
    shown = Activations(logits=torch.randn(1, 2, 5), embedding=torch.randn(1, 2, 3))
    own = inputs(Activations(logits=logits, embedding=states), shown)
    total, terms = objective(own)
    assert {name: float(term) for name, term in terms.items()} == {
        name: float(LOSSES[name].function(own).detach()) for name in weights
    }
    assert float(total.detach()) == pytest.approx(
        sum(weights[name] * float(term) for name, term in terms.items()), rel=1e-6
    )
    assert not any(term.requires_grad for term in terms.values())
    total.backward()
    assert states.grad is not None
    torch.testing.assert_close(states.grad, 3.0 * 2.0 * (states.detach() - shown.embedding) / states.numel())


def classifier(layers: int, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = tiny_config("bert", SIZES | {"layers": layers})
    config.num_labels = 3
    return AutoModelForSequenceClassification.from_config(config).eval()


def test_mixed_in_shares_of_one_mixkd_is_plain_distillation(monkeypatch: pytest.MonkeyPatch) -> None:
    """(X5) at lambda 1, through real batches and models: the labels count twice, the teacher's logits once."""

    def wholly_the_first(seed: int, step: int, count: int, alpha: float) -> tuple[np.ndarray, np.ndarray]:
        return np.roll(np.arange(count), 1), np.ones(count, np.float32)

    monkeypatch.setattr(mixup, "draw", wholly_the_first)
    generator = np.random.default_rng(0)
    lengths = [6] * 8  # of one length, so that a partner adds no padding, which a row's mask would let it read
    examples = Encoded(
        ids=[generator.integers(5, 185, length).astype(np.int32) for length in lengths],
        types=[(np.arange(length) > 2).astype(np.int32) for length in lengths],
        labels=np.arange(8) % 3,
        indices=np.arange(8),
    )
    config = PRESETS["mixkd"]()
    objective = Objective(config.task_loss, with_teacher=True)
    batches = TaskBatches(
        examples=examples, order=Order(8, 0), seed=0, global_batch=8, micro_batch=4, rank=0, world_size=1, pad_id=0,
        mixing=config.mixup, teacher_reads_plain=False,
    )  # fmt: skip
    student, teacher = classifier(1, 1), classifier(2, 2)
    found = []
    with torch.no_grad():
        for batch in batches.micro_batches(1):
            own, shown = (
                task_forward(model, FAMILIES["bert"], *seen, reads={"logits"})
                for model, seen in ((student, batch.shown), (teacher, batch.taught))
            )
            assert shown.logits is not None
            assert len(shown.logits) == 4
            given = Inputs(student=own, teacher=shown, labels=batch.labels, pairs=batch.pairs, **objective.settings)
            found.append(objective(given)[0])
        rows = examples.take(batches.rows(1))
        ids, mask, types = padded(rows, 0)
        logits, its = (
            model(input_ids=ids, attention_mask=mask, token_type_ids=types).logits for model in (student, teacher)
        )
        labels = torch.tensor(rows.labels)
        plain = [F.cross_entropy(logits, labels), F.cross_entropy(logits, labels), F.mse_loss(logits, its)]
    assert float(torch.stack(found).mean()) == pytest.approx(float(torch.stack(plain).sum()), rel=1e-5)


@pytest.mark.parametrize("name", ["attention_kl", "value_relation", "relation", "scores"])
def test_losses_on_the_last_layer_or_whole_scores_are_refused_for_an_encoder_with_a_decoder(name: str) -> None:
    full = Widths(hidden=32, ffn=64, heads=4, head_size=6)
    with pytest.raises(HomodistilError, match=f"--loss.{name}"):
        check_losses(LossConfig(**{name: 1.0}), full, full, pruned=False, family=FAMILIES["t5"])
    check_losses(LossConfig(), full, full, pruned=True, family=FAMILIES["t5"])
