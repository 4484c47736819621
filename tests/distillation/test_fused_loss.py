"""Liger's kernels give the values and gradients of logits in parts. Without a GPU Triton's interpreter runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from family_models import tiny_model
from torch import nn

from homodistil_ds.distillation import fused_loss
from homodistil_ds.distillation.fused_loss import fits, serves
from homodistil_ds.distillation.losses import Inputs
from homodistil_ds.models.families import plan_for
from homodistil_ds.models.forward import Activations, Student, lone_matrix

COMPARED = """
import json, sys, torch
from homodistil_ds.config import LossConfig
from homodistil_ds.distillation import fused_loss, objective
from homodistil_ds.distillation.losses import LOSSES, Inputs
from homodistil_ds.models.forward import Activations

torch.manual_seed(0)
V, OWN, SHOWN = 300, 16, 24
own, shown = torch.nn.Linear(OWN, V, bias=False), torch.nn.Linear(SHOWN, V, bias=False).requires_grad_(False)
states, taught = torch.randn(3, 10, OWN, requires_grad=True), torch.randn(3, 10, SHOWN)
inputs = Inputs(
    student=Activations(predicted=states, head=own, matrix=own.weight),
    teacher=Activations(predicted=taught, head=shown, matrix=shown.weight),
    labels=torch.randint(V, (3, 10)), temperature=2.0, vocabulary=V,
)
fused_loss.LEAST_ROWS = 0
found = {}
for name in ("mlm", "kl", "reverse_kl", "jsd"):
    for by_liger in (False, True):
        objective.serves = lambda names: by_liger
        value = objective.values_of({name: LOSSES[name]}, inputs)[name]
        gradients = torch.autograd.grad(0.3 * value, [states, own.weight])
        found[f"{name} {by_liger}"] = [value.tolist(), *(gradient.tolist() for gradient in gradients)]
assert "liger_kernel" in sys.modules
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def compared() -> dict[str, list[float]]:
    if find_spec("liger_kernel") is None:
        pytest.skip("pip install -e '.[liger]'")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", COMPARED]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["mlm", *fused_loss.BETAS])
def test_values_and_gradients_are_those_of_logits_in_parts(compared: dict[str, list[float]], name: str) -> None:
    for own, theirs in zip(compared[f"{name} True"], compared[f"{name} False"], strict=True):
        torch.testing.assert_close(torch.tensor(own), torch.tensor(theirs), rtol=1e-5, atol=1e-7)
        assert torch.tensor(own).abs().sum() > 0


@pytest.mark.parametrize(("variant", "there"), [("llama", True), ("gpt2", True), ("bert", False)])
def test_a_head_is_a_matrix_where_that_is_all_of_it(variant: str, there: bool) -> None:
    model = tiny_model(variant)
    student = Student(model, plan_for(model.config).family, {"predicted"}, None)
    found = student.head_matrix()
    assert (found is not None) is there
    states = torch.randn(2, model.config.hidden_size)
    if found is not None:
        torch.testing.assert_close(states @ found.T, student.head(states))


def test_only_one_loss_of_logits_on_a_gpu_with_liger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_loss, "installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [serves(names) for names in (["kl"], ["mlm"], ["kl", "mlm"], ["pair_kl"], [])] == [True, True] + [False] * 3
    monkeypatch.setattr(fused_loss, "installed", lambda: False)
    assert not serves(["kl"])
    monkeypatch.undo()
    assert serves(["kl"]) is (torch.cuda.is_available() and fused_loss.find_spec("liger_kernel") is not None)


def test_a_head_in_pieces_with_a_bias_in_fp16_of_few_rows_or_without_gradients_does_not_fit() -> None:
    """Enough rows are 256 for every V / H positions."""
    plain, biased = nn.Linear(4, 9, bias=False), nn.Linear(4, 9)
    assert lone_matrix([biased]) is None
    assert lone_matrix([plain, plain]) is None

    def inputs(head: nn.Linear, positions: int = 576, dtype: torch.dtype = torch.bfloat16) -> Inputs:
        states = torch.randn(1, positions, 4, dtype=dtype)
        side = Activations(predicted=states, head=head, matrix=lone_matrix([head]))
        return Inputs(student=side, teacher=Activations(), labels=torch.zeros(1, positions, dtype=torch.long))

    assert fits(inputs(plain))
    assert not fits(inputs(plain, positions=575))
    assert not fits(inputs(plain, dtype=torch.float16))
    assert not fits(inputs(biased))
    with torch.no_grad():
        assert not fits(inputs(plain))
    plain.weight.ds_id = 0  # as ZeRO-3 marks what it shards
    assert not fits(inputs(plain))
