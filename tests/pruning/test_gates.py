"""Gradients of gates are what autograd says of real gates; the order they make nests heads and their entries."""

from __future__ import annotations

import pytest
import torch
from family_models import MASKED, tiny_config
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from homodistil_ds.models.families import plan_for
from homodistil_ds.models.fused import taken_apart
from homodistil_ds.models.tasks import task_plan
from homodistil_ds.models.width import WidthPlan
from homodistil_ds.pruning.gates import Gates, add_reading, descending, digests
from homodistil_ds.pruning.shrink import cut


def classifier(variant: str) -> tuple[PreTrainedModel, WidthPlan]:
    """Three classes, float64, random weights large enough to matter."""
    torch.manual_seed(0)
    config = tiny_config(variant)
    config.num_labels = 3
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return taken_apart(model, plan_for(model.config).family), task_plan(model.config)


def shown(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(5, model.config.vocab_size, (4, 7))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1, 2, 0])}


def gates_of(model: PreTrainedModel, plan: WidthPlan) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**shown(model)).loss.backward()
    sums = {group: torch.zeros(size, dtype=torch.float64) for group, size in plan.groups().items()}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        add_reading(plan, name, parameter.detach() * parameter.grad, sums)
    return sums


def of_real_gates(model: PreTrainedModel, plan: WidthPlan, end: str) -> list[torch.Tensor]:
    """Gradients of factors of 1 on what the matrices of that name read, per layer."""
    gates, hooks = [], []
    for name, module in model.named_modules():
        if name.endswith(end):
            gate = torch.ones(module.in_features, dtype=torch.float64, requires_grad=True)
            gates.append(gate)
            hooks.append(module.register_forward_pre_hook(lambda _, given, gate=gate: (given[0] * gate,)))
    model(**shown(model)).loss.backward()
    for hook in hooks:
        hook.remove()
    return [gate.grad for gate in gates if gate.grad is not None]


READERS = {
    "bert": ("attention.output.dense", "layer.{}.output.dense"),
    "roberta": ("attention.output.dense", "layer.{}.output.dense"),
    "electra": ("attention.output.dense", "layer.{}.output.dense"),
    "distilbert": ("attention.out_lin", "ffn.lin2"),
}


@pytest.mark.parametrize("variant", READERS)
def test_what_reads_a_neuron_has_the_gradient_of_its_gate(variant: str) -> None:
    model, plan = classifier(variant)
    found = gates_of(model, plan)
    for layer in range(plan.layers):
        vo, ffn = (end.format(layer) for end in READERS[variant])
        ours, theirs = found[f"vo.{layer}"], of_real_gates(model, plan, vo)[layer]
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
        its = of_real_gates(model, plan, ffn)
        torch.testing.assert_close(found[f"ffn.{layer}"], its[layer if len(its) > 1 else 0], rtol=1e-9, atol=1e-12)


def test_the_gates_of_the_residual_stream_are_on_what_every_matrix_reads_of_it() -> None:
    model, plan = classifier("bert")
    ends = (*("query", "key", "value", "intermediate.dense"), "pooler.dense", "classifier")
    theirs = [gate for end in ends for gate in of_real_gates(model, plan, end)]
    torch.testing.assert_close(gates_of(model, plan)["hidden"], torch.stack(theirs).sum(0), rtol=1e-9, atol=1e-12)


def test_the_gates_of_queries_and_keys_are_on_the_queries() -> None:
    model, plan = classifier("bert")
    gates, hooks = [], []
    for name, module in model.named_modules():
        if name.endswith("query"):
            gate = torch.ones(module.out_features, dtype=torch.float64, requires_grad=True)
            gates.append(gate)
            hooks.append(module.register_forward_hook(lambda _, given, out, gate=gate: out * gate))
    model(**shown(model)).loss.backward()
    for hook in hooks:
        hook.remove()
    for layer, gate in enumerate(gates):
        torch.testing.assert_close(gates_of(model, plan)[f"qk.{layer}"], gate.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("variant", MASKED)
def test_the_table_of_a_task_has_every_parameter_of_a_classifier(variant: str) -> None:
    model, plan = classifier(variant)
    assert {name for name, _ in plan.parameters()} == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("variant", ["bert", "roberta", "distilbert", "electra-narrow"])
def test_a_model_whose_neurons_are_in_order_computes_what_it_did(variant: str) -> None:
    model, plan = classifier(variant)
    gates = Gates(plan)
    gates_of(model, plan)
    gates.add(model)
    order = descending(plan, gates.values())
    for group, neurons in order.items():
        assert sorted(neurons.tolist()) == list(range(plan.groups()[group]))
    inputs = shown(model)
    ordered = cut(model, plan, plan.full, order).double().eval()
    torch.testing.assert_close(ordered(**inputs).logits, model(**inputs).logits, rtol=1e-5, atol=1e-6)


def test_heads_of_most_worth_come_first_and_their_entries_by_themselves() -> None:
    _, plan = classifier("bert")
    size = plan.full.head_size
    values = {group: torch.arange(count).float() for group, count in plan.groups().items()}
    values |= {f"heads.{layer}": torch.arange(plan.full.heads).float() for layer in range(plan.layers)}
    order = descending(plan, values)
    assert order["ffn.0"].tolist() == list(range(plan.full.ffn))[::-1]
    heads = [neuron // size for neuron in order["qk.0"].tolist()]
    assert heads == [head for head in reversed(range(plan.full.heads)) for _ in range(size)]
    assert digests(order) == digests(descending(plan, values))
    assert digests(order)["ffn.0"] != digests(descending(plan, {**values, "ffn.0": -values["ffn.0"]}))["ffn.0"]


def test_groups_compare_after_their_own_length_and_batches_add_up() -> None:
    model, plan = classifier("bert")
    gates = Gates(plan)
    for _ in range(2):
        model.zero_grad()
        model(**shown(model)).loss.backward()
        gates.add(model)
    once = gates_of(model, plan)
    one_gate = {f"heads.{layer}": once[f"vo.{layer}"].view(plan.full.heads, -1).sum(1) for layer in range(plan.layers)}
    for group, values in gates.values().items():
        assert float(values.norm()) == pytest.approx(1.0, abs=1e-5)
        own = (once | one_gate)[group].abs()
        torch.testing.assert_close(values.double(), own / own.norm(), rtol=1e-4, atol=1e-6)
