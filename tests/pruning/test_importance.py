"""Sums per neuron over arbitrary runs of entries, and the four criteria against a loop over neurons in float64."""

import re
from collections.abc import Iterator

import pytest
import torch
from family_models import tiny_model
from transformers import BertConfig, BertForMaskedLM

from homodistil_ds.models.families import plan_for
from homodistil_ds.models.forward import Student
from homodistil_ds.models.width import Dim
from homodistil_ds.pruning.criteria import CRITERIA
from homodistil_ds.pruning.importance import Importance, add_per_neuron
from homodistil_ds.runtime.shards import Shard

HEADS, HEAD_SIZE, FFN, LAYERS = 2, 4, 12, 2
HIDDEN = HEADS * HEAD_SIZE
Values = dict[str, torch.Tensor]


@pytest.mark.parametrize(
    ("shape", "dims"),
    [
        ((6,), (Dim("a"),)),
        ((6,), (None,)),
        ((6,), (Dim("a", 3),)),
        ((4, 3), (Dim("a"), Dim("b"))),
        ((2, 7), (Dim("a"), Dim("b"))),
        ((5, 1), (Dim("a"), Dim("b"))),
        ((4, 3), (None, Dim("b"))),
        ((4, 3), (Dim("a"), None)),
        ((4, 3), (Dim("a", 2), Dim("b", 3))),
        ((3, 4), (Dim("a"), Dim("b", 2))),
        ((5, 5), (Dim("a"), Dim("a"))),
    ],
)
def test_every_run_of_a_parameter_adds_what_its_entries_add_densely(
    shape: tuple[int, ...], dims: tuple[Dim | None, ...]
) -> None:
    """All runs; a split of a parameter is a set of runs, so every split is covered. Whole numbers: sums are exact."""
    size = torch.Size(shape).numel()
    values = torch.randint(1, 1000, (size,), generator=torch.Generator().manual_seed(0)).float()
    sizes = {dim.group: length // dim.block for dim, length in zip(dims, shape, strict=True) if dim is not None}
    for start in range(size + 1):
        for stop in range(start, size + 1):
            dense = torch.zeros(size)
            dense[start:stop] = values[start:stop]
            dense = dense.view(shape)
            expected = {group: torch.full((length,), 7.0) for group, length in sizes.items()}
            for place, dim in enumerate(dims):
                if dim is not None:
                    expected[dim.group] += dense.movedim(place, 0).reshape(sizes[dim.group], -1).sum(1)
            if len(dims) == 2 and dims[0] is not None and dims[0] == dims[1]:
                expected[dims[0].group] -= dense.diagonal()
            sums = {group: torch.full((length,), 7.0) for group, length in sizes.items()}
            add_per_neuron(values[start:stop], start, shape, dims, sums)
            for group in sizes:
                assert torch.equal(sums[group], expected[group]), (start, stop, group)


def test_a_diagonal_entry_counts_once() -> None:
    sums = {"a": torch.zeros(3)}
    add_per_neuron(torch.ones(9), 0, (3, 3), (Dim("a"), Dim("a")), sums)
    assert sums["a"].tolist() == [5.0, 5.0, 5.0]


def entries_of(name: str, shape: torch.Size, group: str, neuron: int) -> torch.Tensor:
    """True at the entries of one neuron, written down from the description of BERT and not from the width table."""
    mine = torch.zeros(shape, dtype=torch.bool)
    axis, _, number = group.partition(".")
    name = name.removeprefix("model.")
    layer = re.search(r"\.layer\.(\d+)\.(.*)", name)
    if axis == "hidden":
        reads_columns = ("embeddings.weight", "query.weight", "key.weight", "value.weight", "intermediate.dense.weight")
        if name.startswith("projections") or name == "cls.predictions.bias":
            return mine
        if "LayerNorm" in name or name.endswith("output.dense.bias") or name == "cls.predictions.transform.dense.bias":
            mine[neuron] = True
        if name.endswith(reads_columns) or name == "cls.predictions.transform.dense.weight":
            mine[:, neuron] = True
        if name.endswith("output.dense.weight") or name == "cls.predictions.transform.dense.weight":
            mine[neuron, :] = True
    elif layer and layer[1] == number:
        rows = {"ffn": ("intermediate.dense",), "qk": ("self.query", "self.key"), "vo": ("self.value",)}[axis]
        columns = {"ffn": "output.dense.weight", "qk": None, "vo": "attention.output.dense.weight"}[axis]
        if any(part in layer[2] for part in rows):
            mine[neuron] = True
        if layer[2] == columns:
            mine[:, neuron] = True
    return mine


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20,
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_attention_heads=HEADS,
        num_hidden_layers=LAYERS,
        max_position_embeddings=10,
        initializer_range=0.3,
        attn_implementation="eager",
    )
    model = BertForMaskedLM(config).eval()
    return Student(model, plan_for(config).family, ("logits", "hidden", "embedding"), teacher_hidden=HIDDEN)


def gradients(student: Student, seed: int) -> Values:
    """Real gradients of a loss that reads logits and lifted states."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 20, (3, 8), generator=generator)
    student.zero_grad()
    own = student(ids, torch.tensor([[1, 3]] * 3))
    (own.logits.square().mean() + own.hidden[0].sin().sum() + own.embedding.cos().sum()).backward()
    return {name: parameter.grad.clone() for name, parameter in student.named_parameters()}


def shards(weights: Values, gradient: Values) -> Iterator[Shard]:
    """Every parameter in three runs whose ends lie inside rows."""
    for name, weight in weights.items():
        for places in torch.arange(weight.numel()).tensor_split(3):
            if len(places):
                run = slice(int(places[0]), int(places[-1]) + 1)
                yield Shard(
                    name=name,
                    shape=weight.shape,
                    offset=run.start,
                    weight=weight.flatten()[run],
                    gradient=gradient[name].flatten()[run],
                    moments=(),
                )


def naive_sums(values: Values, groups: dict[str, int]) -> torch.Tensor:
    """S_n of every neuron, one at a time."""
    sums = [
        sum(value[entries_of(name, value.shape, group, neuron)].sum() for name, value in values.items())
        for group, size in groups.items()
        for neuron in range(size)
    ]
    return torch.stack([torch.as_tensor(total) for total in sums])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_two_updates_equal_a_loop_over_neurons_in_float64(student: Student, criterion: str) -> None:
    beta = 0.85
    plan = plan_for(student.model.config)
    importance = Importance(plan, criterion, beta)
    weights = {name: parameter.detach() for name, parameter in student.named_parameters()}
    mean = uncertainty = torch.zeros(sum(plan.groups().values()), dtype=torch.float64)
    for seed in (1, 2):
        gradient = gradients(student, seed)
        importance.update(importance.measure(shards(weights, gradient)))
        exact = {name: (weight.double(), gradient[name].double()) for name, weight in weights.items()}
        if criterion == "magnitude":
            mean = naive_sums({name: w.abs() for name, (w, _) in exact.items()}, plan.groups())
            continue
        if criterion == "taylor":
            score = naive_sums({name: w * g for name, (w, g) in exact.items()}, plan.groups()).abs()
        else:
            score = naive_sums({name: (w * g).abs() for name, (w, g) in exact.items()}, plan.groups())
        mean = beta * mean + (1 - beta) * score
        uncertainty = 0.95 * uncertainty + 0.05 * (score - mean).abs()
    expected = mean * uncertainty if criterion == "platon" else mean
    own = torch.cat(list(importance.values().values()))
    assert expected.abs().min() > 0
    torch.testing.assert_close(own.double(), expected, rtol=1e-4, atol=1e-6 * float(expected.max()))


@pytest.mark.parametrize("variant", ["llama", "llama-tied"])
def test_a_group_of_heads_is_worth_the_sum_of_all_its_entries(variant: str) -> None:
    """Of its key and value rows, and of the query rows and output columns of all its query heads."""
    model = tiny_model(variant)
    plan = plan_for(model.config)
    importance = Importance(plan, "magnitude", 0.0)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    importance.update(importance.measure(shards(weights, weights)))
    for layer, block in enumerate(model.model.layers):
        attention, groups = block.self_attn, model.config.num_key_value_heads
        parts = [attention.q_proj, attention.k_proj, attention.v_proj]
        tensors = [tensor for part in parts for tensor in part.parameters()] + [attention.o_proj.weight.T]
        expected = sum(tensor.detach().abs().reshape(groups, -1).sum(1) for tensor in tensors)
        torch.testing.assert_close(importance.values()[f"heads.{layer}"], expected)


def test_the_moving_average_starts_at_zero_and_weighs_the_newest_score_with_one_minus_beta(student: Student) -> None:
    plan = plan_for(student.model.config)
    weights = {name: parameter.detach() for name, parameter in student.named_parameters()}
    gradient = gradients(student, 1)
    once, raw = Importance(plan, "sensitivity", 0.85), Importance(plan, "sensitivity", 0.0)
    raw.update(raw.measure(shards(weights, gradient)))
    for updates in range(1, 4):
        once.update(once.measure(shards(weights, gradient)))
        torch.testing.assert_close(once.mean, (1 - 0.85**updates) * raw.mean)


def test_state_dict_carries_all_that_decides_the_next_values(student: Student) -> None:
    plan = plan_for(student.model.config)
    weights = {name: parameter.detach() for name, parameter in student.named_parameters()}
    first, second = Importance(plan, "platon", 0.85), Importance(plan, "platon", 0.85)
    first.update(first.measure(shards(weights, gradients(student, 1))))
    second.load_state_dict(first.state_dict(), first.groups)
    for importance in (first, second):
        importance.update(importance.measure(shards(weights, gradients(student, 2))))
    for group, values in first.values().items():
        assert torch.equal(values, second.values()[group])
        assert values.any()
