"""The family's shapes are legal, nested and of their scales; the choice of the assistant is MiniDisc's rule."""

from __future__ import annotations

import itertools
import math

import pytest
from transformers import BertConfig, LlamaConfig, RobertaConfig

from homodistil_ds.errors import HomodistilError
from homodistil_ds.methods.assistant import choose_assistant
from homodistil_ds.models.families import legal_shapes, plan_for
from homodistil_ds.models.width import WidthPlan, count
from homodistil_ds.pruning.family import (
    CLOSE,
    assistant_by_gap,
    best_assistant,
    check_scales,
    members_of,
    relative_likelihood,
    scale_of,
    trade_off,
    would_teach,
)

SCALES = (0.75, 0.5, 0.35, 0.25, 0.15, 0.10, 0.05)
SMALL = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 1024}
PLANS = {
    "bert-base": plan_for(BertConfig()),
    "small": plan_for(BertConfig(**SMALL)),
    "roberta": plan_for(RobertaConfig()),
    "grouped heads": plan_for(
        LlamaConfig(hidden_size=512, num_attention_heads=8, num_key_value_heads=4, intermediate_size=1408)
    ),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_members_are_legal_nested_and_near_their_scales(plan: WidthPlan) -> None:
    members = members_of(plan, SCALES)
    assert [member.scale for member in members] == list(SCALES)
    whole = count(plan, plan.full).matrices
    for member in members:
        widths = member.widths
        assert (widths.hidden, widths.heads) in legal_shapes(plan)
        assert count(plan, widths).matrices == pytest.approx(member.scale * whole, rel=CLOSE)
        assert count(plan, widths).matrices / whole == pytest.approx(scale_of(plan, widths))
    for larger, smaller in itertools.pairwise([plan.full, *(member.widths for member in members)]):
        assert all(vars(larger)[axis] >= vars(smaller)[axis] for axis in vars(larger))
        assert larger != smaller


def test_a_second_descent_reaches_the_shapes_of_the_first() -> None:
    plan = PLANS["small"]
    first = members_of(plan, SCALES)
    for place in range(1, len(SCALES)):
        assert members_of(plan, SCALES[place:], within=first[place - 1].widths) == first[place:]


def test_the_whole_teacher_is_the_member_of_scale_1() -> None:
    assert members_of(PLANS["small"], (1.0, 0.5))[0].widths == PLANS["small"].full


@pytest.mark.parametrize("scales", [(0.5, 0.75), (0.5, 0.5), (1.1, 0.5), (0.5, 0.0), (0.5, -0.1), (math.nan,)])
def test_scales_that_make_no_descent_are_refused(scales: tuple[float, ...]) -> None:
    with pytest.raises(HomodistilError, match="--family") as caught:
        check_scales(scales)
    assert caught.value.error_id == "CFG-SCALE"


def test_a_scale_that_no_shape_meets_names_the_nearest_that_one_does() -> None:
    tiny = plan_for(BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64))
    with pytest.raises(HomodistilError) as caught:
        members_of(tiny, (0.5, 0.0001))
    assert caught.value.error_id == "CFG-SCALE"
    assert "The nearest is 1/1/1x1" in caught.value.remedy


# MRPC's row of the published motivation figure: assistants of 0.7 ... 0.2, their metric, and the trade-off drawn there.
MRPC = {0.7: (0.915, 0.973), 0.6: (0.913, 0.994), 0.5: (0.913, 1.013), 0.4: (0.899, 1.019), 0.2: (0.870, 1.031)}


@pytest.mark.parametrize(("scale", "metric", "drawn"), [(scale, *values) for scale, values in MRPC.items()])
def test_the_trade_off_is_that_of_the_published_figure(scale: float, metric: float, drawn: float) -> None:
    assert trade_off(metric, scale, 0.2) == pytest.approx(drawn, abs=0.0025)  # both are read off a picture


def test_the_assistant_has_the_best_trade_off_and_is_the_largest_among_equals() -> None:
    assert best_assistant([0.3, 0.5, 0.4]) == 1
    assert best_assistant([0.3, 0.5, 0.5]) == 1
    assert would_teach([0.3, 0.5, 0.9]) == 1, "the last one is taught"
    assert would_teach([0.3]) is None


def test_the_capacity_gap_law_takes_two_and_a_half_times_the_student() -> None:
    assert assistant_by_gap([100, 60, 24, 15, 10]) == 2
    assert assistant_by_gap([30, 20, 10]) == 0
    assert assistant_by_gap([100, 10]) == 0, "never the student itself"


def test_the_student_itself_is_no_assistant() -> None:
    values = zip((0.75, 0.5, 0.1), (1.0, 1.2, 1.5), (100, 40, 16), strict=True)
    rows = [{"scale": scale, "trade_off": worth, "parameters": size} for scale, worth, size in values]
    assert choose_assistant("auto", rows) == 1
    assert choose_assistant("capacity", rows) == 1
    assert choose_assistant("0.75", rows) == 0


def test_the_metric_of_a_loss_lies_between_0_and_1() -> None:
    assert relative_likelihood(3.5, 3.5) == 1.0
    assert relative_likelihood(3.4, 3.5) == 1.0
    assert relative_likelihood(3.5 + math.log(2), 3.5) == pytest.approx(0.5)
