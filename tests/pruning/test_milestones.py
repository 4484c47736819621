"""Where cuts go and how wide the student is after each: legal, monotone, never too narrow, and the best there is."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, LlamaConfig

from homodistil_ds.models.families import legal_shapes, plan_for
from homodistil_ds.models.width import WidthPlan, Widths
from homodistil_ds.pruning.cost import step_flops
from homodistil_ds.pruning.masks import Masks
from homodistil_ds.pruning.milestones import Milestone, multiple, physical_widths, place_cuts, relative_cost
from homodistil_ds.pruning.schedule import WidthSchedule

ALL = ("logits", "hidden", "attention", "embedding")


def bert(hidden: int, ffn: int, heads: int, layers: int = 2, vocab: int = 100) -> WidthPlan:
    config = BertConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_attention_heads=heads,
        num_hidden_layers=layers,
    )
    return plan_for(config)


BASE = bert(768, 3072, 12, layers=12, vocab=30522)
HOMO_BASE = Widths(hidden=576, ffn=2304, heads=12, head_size=48)
HOMO_SMALL = Widths(hidden=256, ffn=1024, heads=8, head_size=32)
HOMO_TINY = Widths(hidden=224, ffn=896, heads=7, head_size=32)

# plan, target, start, end, interval: of runs of 100 steps
RUNS = {
    "fewer heads": (BASE, HOMO_SMALL, 0, 70, 1),
    "heads stay": (BASE, HOMO_BASE, 0, 70, 10),
    "heads keep their size": (BASE, Widths(hidden=512, ffn=2048, heads=8, head_size=64), 10, 60, 3),
    "one shot": (BASE, HOMO_TINY, 20, 20, 1),
    "an event every 40 steps": (BASE, HOMO_SMALL, 0, 70, 40),
    "pruned to the last step": (BASE, HOMO_SMALL, 0, 100, 5),
    "feed-forward alone": (BASE, Widths(hidden=768, ffn=1000, heads=12, head_size=64), 0, 50, 1),
    "odd": (bert(30, 50, 3), Widths(hidden=14, ffn=11, heads=2, head_size=7), 0, 70, 1),
    "odd with one head": (bert(35, 101, 5), Widths(hidden=7, ffn=13, heads=1, head_size=7), 0, 70, 1),
    "the teacher's shape": (BASE, BASE.full, 0, 70, 1),
    "25 heads": (bert(1600, 6400, 25), Widths(hidden=800, ffn=3200, heads=25, head_size=32), 0, 70, 1),
}


def schedule_of(name: str) -> tuple[WidthPlan, WidthSchedule]:
    plan, target, start, end, interval = RUNS[name]
    return plan, WidthSchedule(full=plan.full, target=target, start=start, end=end, interval=interval)


def flops(plan: WidthPlan) -> Callable[[Widths], float]:
    return lambda widths: step_flops(
        plan, widths, sequence_length=128, predicted_share=0.15, reads=ALL, teacher_reads=ALL
    )


def holds(outer: Widths, inner: Widths) -> bool:
    return all(getattr(outer, axis) >= size for axis, size in vars(inner).items())


@pytest.mark.parametrize("cuts", [1, 3, 99])
@pytest.mark.parametrize("name", RUNS)
def test_the_student_is_always_legal_never_too_narrow_and_never_grows(name: str, cuts: int) -> None:
    plan, schedule = schedule_of(name)
    placed = place_cuts(schedule, plan, cuts, 100, flops(plan))
    assert len(placed) <= cuts
    assert all(schedule.is_event(milestone.step) for milestone in placed)
    ways = [Milestone(step=0, widths=plan.full), *placed]
    for before, after in itertools.pairwise(ways):
        assert before.step < after.step
        assert holds(before.widths, after.widths)
        assert before.widths != after.widths
    for step in range(100):
        widths = [milestone.widths for milestone in ways if milestone.step <= step][-1]
        assert holds(widths, schedule.widths_at(step))
        assert (widths.hidden, widths.heads) in legal_shapes(plan)
        assert widths.heads * widths.head_size == widths.hidden
    if schedule.end < 100 and plan.full != schedule.target and cuts == 99:
        assert placed[-1].widths == schedule.target


@pytest.mark.parametrize("cuts", [0, 1, 2, 3])
@pytest.mark.parametrize("name", ["fewer heads", "odd", "one shot", "an event every 40 steps", "heads stay"])
def test_no_other_choice_of_events_is_cheaper(name: str, cuts: int) -> None:
    plan, schedule = schedule_of(name)
    schedule = replace(schedule, interval=max(schedule.interval, 8))
    cost = flops(plan)
    found = relative_cost(place_cuts(schedule, plan, cuts, 100, cost), plan.full, 100, cost)
    events = [step for step in range(100) if schedule.is_event(step)]
    others = []
    for number in range(cuts + 1):
        for steps in itertools.combinations(events, number):
            current, placed = plan.full, []
            for step in steps:
                current = physical_widths(plan, schedule.widths_at(step), current, schedule.target)
                placed.append(Milestone(step=step, widths=current))
            others.append(relative_cost(placed, plan.full, 100, cost))
    assert found == pytest.approx(min(others), rel=1e-12)


@pytest.mark.parametrize("name", ["fewer heads", "odd", "heads keep their size"])
def test_the_masks_of_that_step_leave_room_for_every_milestone(name: str) -> None:
    plan, schedule = schedule_of(name)
    masks, random = Masks(plan), torch.Generator().manual_seed(0)
    for milestone in place_cuts(schedule, plan, 6, 100, flops(plan)):
        values = {group: torch.rand(int(here.sum()), generator=random) for group, here in masks.present.items()}
        masks.narrow(values, schedule.widths_at(milestone.step))
        masks.remove(masks.staying(milestone.widths))
        assert masks.physical() == milestone.widths


def test_without_cuts_or_without_a_gain_nothing_is_placed() -> None:
    plan, schedule = schedule_of("fewer heads")
    assert place_cuts(schedule, plan, 0, 100, flops(plan)) == ()
    assert place_cuts(schedule, plan, 8, 100, lambda widths: 1.0) == ()
    assert relative_cost((), plan.full, 100, flops(plan)) == 1
    late = replace(schedule, start=100, end=100)
    assert place_cuts(late, plan, 8, 100, flops(plan)) == ()


def test_one_shot_is_one_cut_at_once_to_the_target() -> None:
    plan, schedule = schedule_of("one shot")
    assert place_cuts(schedule, plan, 8, 100, flops(plan)) == (Milestone(step=20, widths=HOMO_TINY),)


def test_equal_gains_take_the_fewest_cuts_and_the_earliest_event() -> None:
    plan, schedule = schedule_of("fewer heads")
    narrow = place_cuts(schedule, plan, 8, 100, lambda widths: 1.0 if widths.ffn < 2000 else 2.0)
    assert len(narrow) == 1
    before = schedule.widths_at(narrow[0].step - 1)
    assert physical_widths(plan, before, plan.full, schedule.target).ffn >= 2000


def test_more_cuts_never_cost_more() -> None:
    plan, schedule = schedule_of("fewer heads")
    cost = flops(plan)
    shares = [relative_cost(place_cuts(schedule, plan, cuts, 100, cost), plan.full, 100, cost) for cuts in range(9)]
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize(("full", "expected"), [(30, 8), (256, 8), (768, 16), (1024, 16), (3072, 64), (16384, 64)])
def test_the_multiple_suits_the_size(full: int, expected: int) -> None:
    assert multiple(full) == expected


def test_shapes_are_rounded_up_to_what_hardware_likes() -> None:
    def at(hidden: int, ffn: int, heads: int, head_size: int, current: Widths = BASE.full) -> str:
        logical = Widths(hidden=hidden, ffn=ffn, heads=heads, head_size=head_size)
        return str(physical_widths(BASE, logical, current, HOMO_SMALL))

    assert at(761, 3041, 12, 64) == "768/3072/12x64"  # 12 heads of 63 would be no multiple of 16
    assert at(700, 2800, 12, 60) == "720/2816/12x60"
    assert at(512, 2048, 10, 48) == "528/2048/11x48"  # 10 heads of 52 would be no multiple of 8
    assert at(400, 1500, 9, 40, Widths(hidden=450, ffn=1530, heads=9, head_size=50)) == "432/1504/9x48"
    assert at(257, 1025, 9, 33) == "360/1088/9x40"


def test_the_target_is_reached_exactly_and_a_shape_without_a_smaller_one_stays() -> None:
    plan, target = bert(30, 50, 3), Widths(hidden=14, ffn=11, heads=2, head_size=7)
    assert physical_widths(plan, target, plan.full, target) == target
    assert physical_widths(plan, replace(plan.full, hidden=29), plan.full, target) == plan.full
    smaller = physical_widths(plan, Widths(hidden=26, ffn=47, heads=3, head_size=9), plan.full, target)
    assert smaller == Widths(hidden=27, ffn=48, heads=3, head_size=9)


def test_a_family_with_heads_of_a_fixed_size_has_one_at_any_hidden_size() -> None:
    plan = plan_for(
        LlamaConfig(
            hidden_size=1024, intermediate_size=4096, num_attention_heads=8, num_key_value_heads=4, head_dim=128
        )
    )
    target = Widths(hidden=504, ffn=1000, heads=6, head_size=128)
    logical = Widths(hidden=701, ffn=2001, heads=7, head_size=128)
    found = physical_widths(plan, logical, plan.full, target)
    assert found == Widths(hidden=704, ffn=2048, heads=8, head_size=128)  # heads in pairs that divide the hidden size
    schedule = WidthSchedule(full=plan.full, target=target, start=0, end=70, interval=1)
    assert place_cuts(schedule, plan, 99, 100, flops(plan))[-1].widths == target


@pytest.mark.parametrize(
    ("target", "end", "expected"),
    [
        (HOMO_BASE, 0.5, (1.23, 1.31, 1.33, 1.34, 1.34)),
        (HOMO_BASE, 0.7, (1.21, 1.25, 1.28, 1.29, 1.29)),
        (HOMO_SMALL, 0.5, (1.84, 2.06, 2.24, 2.31, 2.33)),
        (HOMO_SMALL, 0.7, (1.68, 1.91, 2.05, 2.14, 2.17)),
        (HOMO_TINY, 0.5, (1.88, 2.16, 2.31, 2.39, 2.42)),
    ],
)
def test_the_published_run_gains_what_free_shapes_would_gain(
    target: Widths, end: float, expected: tuple[float, ...]
) -> None:
    """Expected: hidden and head sizes in multiples of 64 whatever the heads; a plain folder's shapes lie 3 % around."""
    steps, asked = 28_000, []
    schedule = WidthSchedule(full=BASE.full, target=target, start=0, end=round(end * steps), interval=100)

    def cost(widths: Widths) -> float:
        asked.append(widths)
        return flops(BASE)(widths)

    for cuts, ratio in zip((1, 2, 4, 8, 16), expected, strict=True):
        placed = place_cuts(schedule, BASE, cuts, steps, cost)
        assert 1 / relative_cost(placed, BASE.full, steps, cost) == pytest.approx(ratio, rel=0.03)
    assert len(set(asked)) < 100
