"""The width table against real models: every parameter, its shape, and the number of parameters at any width."""

import pytest
from transformers import BertConfig, BertForMaskedLM

from homodistil_ds.models.families import plan_for
from homodistil_ds.models.forward import Student
from homodistil_ds.models.width import PROJECTIONS, TRAINED_PREFIX, WidthPlan, Widths, count
from homodistil_ds.presets import PRESETS


def bert(hidden: int = 24, ffn: int = 40, heads: int = 4, layers: int = 3) -> BertForMaskedLM:
    return BertForMaskedLM(
        BertConfig(
            vocab_size=50,
            hidden_size=hidden,
            intermediate_size=ffn,
            num_attention_heads=heads,
            num_hidden_layers=layers,
            max_position_embeddings=20,
        )
    )


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


def test_every_parameter_of_the_model_has_exactly_one_row_and_every_row_a_parameter() -> None:
    model = bert()
    plan = plan_for(model.config)
    rows = list(plan.parameters())
    assert sorted(name for name, _ in rows) == sorted(name for name, _ in model.named_parameters())
    for name, row in rows:
        found = plan.find(name)
        assert found is not None
        assert found[0] is row


def test_axes_give_the_real_shape_of_every_parameter_of_the_trained_module() -> None:
    model = bert()
    plan = plan_for(model.config)
    student = Student(model, plan.family, ("logits", "hidden", "embedding"), teacher_hidden=30)
    seen = set()
    for name, parameter in student.named_parameters():
        found = plan.find(name)
        assert found is not None, name
        sizes = [30 if axis == "teacher" else plan.size(axis, plan.full) for axis in found[0].axes]
        assert tuple(parameter.shape) == tuple(sizes), name
        groups = plan.groups()
        for size, group in zip(parameter.shape, plan.dims(name), strict=True):
            assert group is None or groups[group] == size, name
        seen.add(name)
    assert {row.pattern for row in PROJECTIONS} < seen
    assert sum(name.startswith(TRAINED_PREFIX) for name in seen) == len(seen) - len(PROJECTIONS)


def test_the_projections_are_cut_with_the_student_and_never_scored() -> None:
    plan = plan_for(bert().config)
    for row in PROJECTIONS:
        assert plan.dims(row.pattern) == (None, "hidden")
        assert not plan.scored(row.pattern)
    assert all(plan.scored(name) for name, _ in plan.parameters())


def test_a_parameter_outside_the_table_is_an_error_and_not_left_uncut() -> None:
    plan = plan_for(bert().config)
    for name in ("bert.pooler.dense.weight", "bert.encoder.layer.x.output.dense.bias", "projections.other.weight"):
        with pytest.raises(KeyError, match="not in the width table"):
            plan.dims(name)


@pytest.mark.parametrize(("hidden", "ffn", "heads"), [(24, 40, 4), (16, 40, 4), (24, 7, 2), (6, 5, 3)])
def test_count_is_the_number_of_parameters_of_the_real_model(hidden: int, ffn: int, heads: int) -> None:
    counted = count(plan_for(bert().config), Widths(hidden=hidden, ffn=ffn, heads=heads, head_size=hidden // heads))
    model = bert(hidden, ffn, heads)
    assert counted.total + counted.head == sum(parameter.numel() for parameter in model.parameters())
    assert counted.word_embedding == model.get_input_embeddings().weight.numel()
    matrices = [p for name, p in model.named_parameters() if ".layer." in name and p.dim() == 2]
    assert counted.matrices == sum(parameter.numel() for parameter in matrices)


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
