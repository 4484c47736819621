"""The cubic schedule (H6, H7): its ends, its direction, its events, and the published run."""

import itertools
import math
from fractions import Fraction

import pytest

from homodistil_ds.models.width import Widths
from homodistil_ds.pruning.schedule import WidthSchedule

FULL = Widths(hidden=768, ffn=3072, heads=12, head_size=64)
SMALL = Widths(hidden=256, ffn=1024, heads=8, head_size=32)
TINY = Widths(hidden=224, ffn=896, heads=7, head_size=32)


def schedule(start: int, end: int, interval: int, target: Widths = SMALL) -> WidthSchedule:
    return WidthSchedule(full=FULL, target=target, start=start, end=end, interval=interval)


@pytest.mark.parametrize("target", [SMALL, TINY])
def test_at_every_step_of_the_published_run_the_widths_are_h7_in_exact_arithmetic(target: Widths) -> None:
    run = schedule(0, 19_600, 100, target)
    for step in range(0, 20_001, 100):
        left = max(1 - Fraction(step, 19_600), Fraction(0)) ** 3
        for axis, kept in vars(run.widths_at(step)).items():
            full, aim = getattr(FULL, axis), getattr(target, axis)
            assert kept == aim + math.ceil((full - aim) * left), (step, axis)


def test_the_first_event_of_the_published_run_removes_7_of_512_hidden_neurons() -> None:
    run = schedule(0, 19_600, 100)
    assert not any(run.is_event(step) for step in range(100))
    assert run.is_event(100)
    assert run.widths_at(100) == Widths(hidden=761, ffn=3041, heads=12, head_size=64)


@pytest.mark.parametrize(("start", "end", "interval"), [(0, 70, 10), (7, 50, 9), (3, 4, 10), (20, 20, 1), (0, 1, 1)])
def test_widths_start_full_never_grow_and_end_at_the_target(start: int, end: int, interval: int) -> None:
    run = schedule(start, end, interval)
    widths = [vars(run.widths_at(step)) for step in range(101)]
    assert all(run.widths_at(step) == FULL for step in range(start + (start < end)))
    assert all(run.widths_at(step) == SMALL for step in range(end, 101))
    for earlier, later in itertools.pairwise(widths):
        assert all(earlier[axis] >= later[axis] for axis in earlier)


@pytest.mark.parametrize(("start", "end", "interval"), [(0, 70, 10), (7, 50, 9), (3, 4, 10), (0, 1, 1)])
def test_events_lie_inside_the_window_an_interval_apart_and_the_last_one_hits_the_target(
    start: int, end: int, interval: int
) -> None:
    run = schedule(start, end, interval)
    events = [step for step in range(101) if run.is_event(step)]
    assert events == sorted({*range(start + interval, end, interval), end})
    assert run.widths_at(events[-1]) == SMALL
    assert all(run.is_scored(step) for step in events)
    assert not run.is_scored(end + 1)


def test_start_equal_to_end_prunes_in_one_shot() -> None:
    run = schedule(20, 20, 1)
    assert [step for step in range(101) if run.is_event(step)] == [20]
    assert run.widths_at(19) == FULL
    assert run.widths_at(20) == SMALL


def test_a_student_of_the_teachers_shape_has_no_event_and_no_score() -> None:
    run = schedule(0, 70, 10, target=FULL)
    assert not any(run.is_event(step) or run.is_scored(step) for step in range(101))
    assert run.widths_at(70) == FULL
