"""The width table against real models: every parameter, its shape, and the number of parameters at any width."""

import re

import pytest
import torch
from family_models import VARIANTS, odd_widths, tiny_config, tiny_model
from transformers import BertConfig

from homodistil_ds.models.families import plan_for
from homodistil_ds.models.forward import Student
from homodistil_ds.models.loading import empty_model
from homodistil_ds.models.width import PROJECTIONS, TRAINED_PREFIX, Dim, WidthPlan, Widths, count
from homodistil_ds.presets import PRESETS


def base_plan() -> WidthPlan:
    return plan_for(
        BertConfig(
            vocab_size=30522,
            hidden_size=768,
            intermediate_size=3072,
            num_attention_heads=12,
            num_hidden_layers=12,
            max_position_embeddings=512,
            type_vocab_size=2,
        )
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_of_the_model_has_exactly_one_row_and_every_row_a_parameter(variant: str) -> None:
    model = tiny_model(variant)
    plan = plan_for(model.config)
    rows = list(plan.parameters())
    assert sorted(name for name, _ in rows) == sorted(name for name, _ in model.named_parameters())
    for name, row in rows:
        found = plan.find(name)
        assert found is not None
        assert found[0] is row
        assert plan.find(f"{TRAINED_PREFIX}{name}") == found


@pytest.mark.parametrize("variant", VARIANTS)
def test_axes_give_the_real_shape_of_every_parameter_of_the_trained_module(variant: str) -> None:
    model = tiny_model(variant)
    plan = plan_for(model.config)
    student = Student(model, plan.family, ("logits", "hidden", "embedding"), teacher_hidden=30)
    groups = plan.groups()
    seen, touched = set(), set()
    for name, parameter in student.named_parameters():
        found = plan.find(name)
        assert found is not None, name
        sizes = [30 if axis == "teacher" else plan.size(axis, plan.full) for axis in found[0].axes]
        assert tuple(parameter.shape) == tuple(sizes), name
        for size, dim in zip(parameter.shape, plan.dims(name), strict=True):
            assert dim is None or groups[dim.group] * dim.block == size, name
            touched |= {dim.group} if dim else set()
        seen.add(name)
    assert touched == set(groups)
    assert {row.pattern for row in PROJECTIONS} < seen
    assert sum(name.startswith(TRAINED_PREFIX) for name in seen) == len(seen) - len(PROJECTIONS)


def test_the_projections_are_cut_with_the_student_and_never_scored() -> None:
    plan = plan_for(tiny_config("bert"))
    for row in PROJECTIONS:
        assert plan.dims(row.pattern) == (None, Dim("hidden"))
        assert not plan.scored(row.pattern)
    assert all(plan.scored(name) for name, _ in plan.parameters())


def test_a_parameter_outside_the_table_is_an_error_and_not_left_uncut() -> None:
    plan = plan_for(tiny_config("bert"))
    for name in ("bert.pooler.dense.weight", "bert.encoder.layer.x.output.dense.bias", "projections.other.weight"):
        with pytest.raises(KeyError, match="not in the width table"):
            plan.dims(name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_count_is_the_number_of_parameters_of_the_real_model(variant: str) -> None:
    teacher = tiny_model(variant)
    plan = plan_for(teacher.config)
    for widths in (plan.full, odd_widths(plan)):
        counted = count(plan, widths)
        model = empty_model(teacher, plan, widths)
        assert counted.total + counted.head == sum(parameter.numel() for parameter in model.parameters())
        assert counted.word_embedding == model.get_input_embeddings().weight.numel()
        tables = {m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding)}  # T5's of distances
        inside = [p for name, p in model.named_parameters() if re.search(r"\.\d+\.", name) and p not in tables]
        assert counted.matrices == sum(parameter.numel() for parameter in inside if parameter.dim() == 2)


# Millions: 30,522 d | encoder matrices W | W + biases + norms | embedding + W | all but the head.
SIZES = {
    "homobert_base": (17.58, 47.78, 47.87, 65.36, 65.74),
    "homobert_small": (7.81, 9.44, 9.48, 17.25, 17.42),
    "homobert_xsmall": (7.33, 8.29, 8.33, 15.62, 15.78),
    "homobert_tiny": (6.84, 7.23, 7.26, 14.06, 14.21),
}


@pytest.mark.parametrize("preset", SIZES)
def test_the_published_shapes_have_the_corrected_published_sizes(preset: str) -> None:
    student = PRESETS[preset]().student
    assert student.hidden_size
    assert student.intermediate_size
    assert student.num_attention_heads
    widths = Widths(
        hidden=student.hidden_size,
        ffn=student.intermediate_size,
        heads=student.num_attention_heads,
        head_size=student.hidden_size // student.num_attention_heads,
    )
    counted = count(base_plan(), widths)
    columns = (
        counted.word_embedding,
        counted.matrices,
        counted.matrices + counted.vectors,
        counted.word_embedding + counted.matrices,
        counted.total,
    )
    assert tuple(round(column / 1e6, 2) for column in columns) == SIZES[preset]


def test_bert_base_has_56208_scored_neurons_and_108_89_million_parameters() -> None:
    plan = base_plan()
    assert sum(plan.groups().values()) == 768 + 12 * (3072 + 768 + 768)
    assert round(count(plan, plan.full).total / 1e6, 2) == 108.89
