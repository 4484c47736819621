"""Target widths: what a plain Hugging Face folder can hold, and what is refused with a way out."""

import copy
import re

import pytest
import torch
from family_models import SIZES, VARIANTS, plainly, tiny_config
from huggingface_hub.errors import StrictDataclassError
from transformers import BertConfig, BloomConfig, LlamaConfig, PreTrainedConfig, RobertaConfig
from transformers.initialization import no_init_weights

from homodistil_ds.errors import HomodistilError
from homodistil_ds.models.families import legal_shapes, plan_for, target_widths
from homodistil_ds.models.fused import taken_apart
from homodistil_ds.models.loading import AUTO_CLASSES
from homodistil_ds.models.width import WidthPlan, Widths

BASE = plan_for(BertConfig())


def test_none_keeps_the_teachers_width() -> None:
    assert target_widths(BASE, None, None, None) == BASE.full
    assert target_widths(BASE, 576, None, None) == Widths(hidden=576, ffn=3072, heads=12, head_size=48)
    assert target_widths(BASE, None, 100, None) == Widths(hidden=768, ffn=100, heads=12, head_size=64)


def test_heads_that_do_not_divide_the_width_are_refused_with_the_nearest_legal_shapes() -> None:
    with pytest.raises(HomodistilError) as caught:
        target_widths(BASE, 256, 1024, 12)
    assert caught.value.error_id == "CFG-WIDTH"
    named = {(int(hidden), int(heads)) for hidden, heads in re.findall(r"(\d+) with (\d+)", caught.value.remedy)}
    assert {(256, 8), (252, 12)} <= named
    for hidden, heads in named:
        assert target_widths(BASE, hidden, 1024, heads).hidden == hidden


def test_heads_larger_than_the_teachers_are_refused() -> None:
    with pytest.raises(HomodistilError, match="at most the teacher's 64"):
        target_widths(BASE, 768, None, 6)


@pytest.mark.parametrize("place", range(3), ids=["hidden_size", "intermediate_size", "num_attention_heads"])
@pytest.mark.parametrize("value", [100_000, 0, -1], ids=["larger than the teacher", "zero", "negative"])
def test_widths_outside_1_to_the_teachers_are_refused(place: int, value: int) -> None:
    asked: list[int | None] = [None, None, None]
    asked[place] = value
    with pytest.raises(HomodistilError) as caught:
        target_widths(BASE, *asked)
    assert caught.value.error_id == "CFG-WIDTH"


def held(plan: WidthPlan, config: PreTrainedConfig, widths: Widths) -> bool:
    """Whether transformers builds and runs a plain model of this shape, with parameters as the table has them."""
    config = copy.deepcopy(config)
    for name, value in plan.config_values(widths).items():
        setattr(config, name, value)
    try:
        config = type(config)(**config.to_dict())  # as a saved one is read
        with no_init_weights(), torch.no_grad():
            model = AUTO_CLASSES[plan.family.language_model].from_config(config)
            model.tie_weights()
            plainly(model, torch.tensor([[5, 6]]))
            taken_apart(model, plan.family)
    except (StrictDataclassError, ValueError, RuntimeError, ArithmeticError):
        return False
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return shapes == {name: tuple(plan.size(axis, widths) for axis in row.axes) for name, row in plan.parameters()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_legal_shapes_are_exactly_those_that_transformers_holds_and_the_teacher_can_be_cut_to(variant: str) -> None:
    config = tiny_config(variant, SIZES | {"hidden": 16, "embedding": 16, "layers": 1})
    plan = plan_for(config)
    full = plan.full
    legal = legal_shapes(plan)
    kept = plan.family.head_size == "kept"
    for hidden in range(1, full.hidden + 1):
        for heads in range(1, full.heads + 1):
            widths = Widths(hidden=hidden, ffn=7, heads=heads, head_size=full.head_size if kept else hidden // heads)
            can_be_cut = kept or hidden / heads <= full.head_size
            assert ((hidden, heads) in legal) == (can_be_cut and held(plan, config, widths)), (hidden, heads)
            if (hidden, heads) in legal:
                assert target_widths(plan, hidden, 7, heads) == widths
    assert (full.hidden, full.heads) in legal


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_illegal_shape_is_refused_with_legal_ones_whatever_the_family(variant: str) -> None:
    plan = plan_for(tiny_config(variant))
    if (13, 3) in legal_shapes(plan):
        pytest.skip("it holds every shape")
    with pytest.raises(HomodistilError) as caught:
        target_widths(plan, 13, None, 3)
    assert caught.value.error_id == "CFG-WIDTH"
    named = [(int(hidden), int(heads)) for hidden, heads in re.findall(r"(\d+) with (\d+)", caught.value.remedy)]
    assert named
    assert set(named) <= legal_shapes(plan)


def test_a_hidden_size_equal_to_an_embedding_size_of_its_own_is_refused() -> None:
    """A plain ELECTRA of these sizes would lack the projection that the teacher has between them."""
    plan = plan_for(tiny_config("electra-narrow"))
    with pytest.raises(HomodistilError, match="not its embedding size 12"):
        target_widths(plan, 12, None, 4)


def test_grouped_heads_leave_in_whole_groups_and_their_size_stays() -> None:
    plan = plan_for(LlamaConfig(hidden_size=96, num_attention_heads=8, num_key_value_heads=2, head_dim=16))
    assert (plan.full.head_size, plan.queries_per_group) == (16, 4)
    assert target_widths(plan, 64, None, 4) == Widths(hidden=64, ffn=plan.full.ffn, heads=4, head_size=16)
    with pytest.raises(HomodistilError, match="a multiple of 4"):
        target_widths(plan, 66, None, 6)


def test_roberta_has_fewer_positions_than_rows_of_its_table() -> None:
    plan = plan_for(RobertaConfig(max_position_embeddings=514, pad_token_id=1))
    assert (plan.positions, plan.fixed["position"]) == (512, 514)
    assert BASE.positions == BASE.fixed["position"] == 512


def test_a_family_without_a_table_is_refused() -> None:
    with pytest.raises(HomodistilError) as caught:
        plan_for(BloomConfig())
    assert caught.value.error_id == "CFG-FAMILY"
    assert "bert" in caught.value.remedy
