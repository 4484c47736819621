"""Losses over the vocabulary in parts: values and gradients of all logits at once, in a tenth of the memory."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from homodistil_ds.config import LossConfig
from homodistil_ds.distillation import vocabulary
from homodistil_ds.distillation.losses import LOSSES, Inputs
from homodistil_ds.distillation.objective import Objective, values_of
from homodistil_ds.models.forward import Activations

OF_LOGITS = {name: term for name, term in LOSSES.items() if "logits" in term.reads}
BATCH, PREDICTED, VOCABULARY, OWN, SHOWN = 3, 7, 11, 5, 8


class Both:
    """A student and a teacher that are heads alone, in float64."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.own, self.shown = (self.head(size) for size in (OWN, SHOWN))
        states = (torch.randn(BATCH, PREDICTED, size, generator=generator).double() for size in (OWN, SHOWN))
        self.states, self.taught = states
        self.states.requires_grad_(True)
        self.labels = torch.randint(VOCABULARY, (BATCH, PREDICTED), generator=generator)

    def head(self, size: int) -> nn.Module:
        torch.manual_seed(size)
        return nn.Sequential(nn.Linear(size, size), nn.GELU(), nn.Linear(size, VOCABULARY)).double()

    def inputs(self, parted: bool) -> Inputs:
        if not parted:
            own, shown = Activations(logits=self.own(self.states)), Activations(logits=self.shown(self.taught).detach())
            return Inputs(student=own, teacher=shown, labels=self.labels, temperature=2.0)
        own = Activations(predicted=self.states, head=self.own)
        shown = Activations(predicted=self.taught, head=self.shown)
        return Inputs(student=own, teacher=shown, labels=self.labels, temperature=2.0, vocabulary=VOCABULARY)

    def gradients(self, parted: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        values = torch.stack(list(values_of(OF_LOGITS, self.inputs(parted)).values()))
        weighted = (values * torch.arange(1, 1 + len(values))).sum()
        return values.detach(), list(torch.autograd.grad(weighted, [self.states, *self.own.parameters()]))


@pytest.mark.parametrize("most", [1, 4 * VOCABULARY, 1 << 23])
def test_values_and_gradients_are_those_of_all_logits_at_once(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "MOST_ENTRIES", most)
    both = Both()
    values, gradients = both.gradients(parted=False)
    own_values, own_gradients = both.gradients(parted=True)
    torch.testing.assert_close(own_values, values, atol=1e-12, rtol=1e-12)
    for own, theirs in zip(own_gradients, gradients, strict=True):
        torch.testing.assert_close(own, theirs, atol=1e-12, rtol=1e-12)
    assert all(parameter.grad is None for parameter in both.shown.parameters())


def test_parts_are_small_and_not_too_many() -> None:
    assert vocabulary.rows_at_once(100, 1 << 30) == -(-100 // vocabulary.MOST_PARTS)
    assert vocabulary.rows_at_once(64, vocabulary.MOST_ENTRIES // 8) == 8
    assert vocabulary.fits(8, vocabulary.MOST_ENTRIES // 8)
    assert not vocabulary.fits(9, vocabulary.MOST_ENTRIES // 8)


def test_an_objective_in_parts_reads_states_and_keeps_its_terms() -> None:
    both = Both()
    weights = LossConfig(mlm=0.5, kl=2.0, hidden=0.0, attention=0.0, embedding=3.0)
    embedded = torch.ones(BATCH, PREDICTED, 2).double()
    totals = []
    for parted in (0, VOCABULARY):
        objective = Objective(weights, with_teacher=True, parted=parted)
        assert objective.student_reads() == {"predicted" if parted else "logits", "embedding"}
        inputs = both.inputs(bool(parted))
        own, shown = (
            part._replace(embedding=embedded * size) for size, part in ((1, inputs.student), (2, inputs.teacher))
        )
        total, terms = objective(replace(inputs, student=own, teacher=shown))
        assert list(terms) == ["mlm", "kl", "embedding"]
        totals.append(total.detach())
    torch.testing.assert_close(*totals)


def test_it_takes_a_tenth_of_the_memory() -> None:
    """Of a vocabulary of 128k; what a process peaks at beyond the models and their gradients."""
    peaks = {}
    for parted in (False, True):
        script = f"""
import json, resource, torch
from homodistil_ds.distillation.losses import LOSSES, Inputs
from homodistil_ds.distillation.objective import values_of
from homodistil_ds.models.forward import Activations
torch.set_num_threads(1)
V, H, N = 1 << 17, 16, 1024
own, shown = torch.nn.Linear(H, V, bias=False), torch.nn.Linear(H, V, bias=False)
own.weight.grad = torch.zeros_like(own.weight)
states, taught = torch.randn(1, N, H, requires_grad=True), torch.randn(1, N, H)
spare = torch.zeros(4, V, H)
del spare
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if {parted}:
    student, teacher = Activations(predicted=states, head=own), Activations(predicted=taught, head=shown)
else:
    with torch.no_grad():
        its = shown(taught)
    student, teacher = Activations(logits=own(states)), Activations(logits=its)
inputs = Inputs(student=student, teacher=teacher, labels=torch.zeros(1, N, dtype=torch.long), vocabulary=V)
values_of({{"kl": LOSSES["kl"]}}, inputs)["kl"].backward()
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        peaks[parted] = json.loads(done.stdout)
    assert peaks[False] > 2e6  # KiB
    assert peaks[True] <= 0.1 * peaks[False]
