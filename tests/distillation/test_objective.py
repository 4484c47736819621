"""The weighted sum (H9): only what has a weight is computed, and only what is read is asked for."""

import pytest
import torch

from homodistil_ds.config import LossConfig
from homodistil_ds.distillation.losses import LOSSES, Inputs
from homodistil_ds.distillation.objective import Objective
from homodistil_ds.models.forward import Activations

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
    ],
)
def test_reads_follow_the_weights(name: str, reads: set[str]) -> None:
    objective = Objective(with_weights(**{name: 0.5}), with_teacher=True)
    assert objective.student_reads() == reads
    assert objective.teacher_reads() == (set() if name == "mlm" else reads)


def test_every_weight_of_the_configuration_reads_everything_and_has_a_loss() -> None:
    objective = Objective(LossConfig(), with_teacher=True)
    assert objective.student_reads() == objective.teacher_reads() == {"logits", "hidden", "attention", "embedding"}
    assert {*LOSSES, "temperature"} == set(vars(LossConfig()))


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
    assert objective.temperature == 2.0
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
