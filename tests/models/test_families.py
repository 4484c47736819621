"""Target widths: what a plain Hugging Face folder can hold, and what is refused with a way out."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, BertConfig, BertModel, RobertaConfig

from homodistil_ds.errors import HomodistilError
from homodistil_ds.models.families import legal_shapes, plan_for, target_widths
from homodistil_ds.models.width import Widths

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


def held(hidden: int, heads: int) -> bool:
    """Whether transformers builds a BERT of this shape."""
    config = BertConfig(hidden_size=hidden, num_attention_heads=heads, num_hidden_layers=1, vocab_size=1)
    try:
        with torch.device("meta"):
            BertModel(config)
    except ValueError:
        return False
    return True


def test_legal_shapes_are_exactly_those_that_transformers_holds_and_the_teacher_can_be_cut_to(
    tiny_teacher: Path,
) -> None:
    plan = plan_for(AutoConfig.from_pretrained(tiny_teacher))
    full = plan.full
    legal = legal_shapes(plan)
    for hidden in range(1, full.hidden + 1):
        for heads in range(1, full.heads + 1):
            can_be_cut = hidden / heads <= full.head_size
            assert ((hidden, heads) in legal) == (held(hidden, heads) and can_be_cut), (hidden, heads)
    for hidden, heads in legal:
        assert target_widths(plan, hidden, None, heads).head_size * heads == hidden


def test_a_family_without_a_table_is_refused() -> None:
    with pytest.raises(HomodistilError) as caught:
        plan_for(RobertaConfig())
    assert caught.value.error_id == "CFG-FAMILY"
    assert "bert" in caught.value.remedy
