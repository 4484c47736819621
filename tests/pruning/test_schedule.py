"""The cubic schedule (H6, H7): its ends, its direction, its events, and the published run."""

import itertools
import math
from fractions import Fraction

import pytest

from homodistil_ds.errors import HomodistilError
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


STOPS = (
    Widths(hidden=640, ffn=2560, heads=10, head_size=64),
    Widths(hidden=512, ffn=2304, heads=10, head_size=51),
    Widths(hidden=288, ffn=1032, heads=9, head_size=32),
)


def with_stops(steps: int, interval: int, rest: int) -> WidthSchedule:
    return WidthSchedule(full=FULL, target=SMALL, start=5, end=steps, interval=interval, stops=STOPS, rest=rest)


@pytest.mark.parametrize(("steps", "interval", "rest"), [(105, 1, 0), (105, 5, 1), (400, 10, 20), (401, 7, 13)])
def test_every_stop_is_reached_left_after_its_rest_and_nothing_ever_grows(steps: int, interval: int, rest: int) -> None:
    run = with_stops(steps, interval, rest)
    widths = [run.widths_at(step) for step in range(steps + 20)]
    for earlier, later in itertools.pairwise(widths):
        assert all(vars(earlier)[axis] >= vars(later)[axis] for axis in vars(earlier))
    events = [step for step in range(steps + 20) if run.is_event(step)]
    for stop, leaves in zip(STOPS, run.leaves(), strict=True):
        first = widths.index(stop)
        assert run.is_event(first), "it is reached by an event"
        assert first + rest == leaves
        assert widths[leaves] == stop
        assert not any(run.is_event(step) for step in range(first + 1, leaves + interval))
    assert (events[-1], widths[steps]) == (steps, SMALL)


def test_between_events_what_is_kept_is_asked_for_at_events_alone() -> None:
    run = with_stops(400, 10, 20)
    gaps = {second - first for first, second in itertools.pairwise(s for s in range(401) if run.is_event(s))}
    assert gaps - {run.end - max(s for s in range(run.end) if run.is_event(s))} == {10, 10 + 20}


def test_a_schedule_without_stops_is_what_it_was() -> None:
    plain, empty = schedule(7, 50, 9), WidthSchedule(full=FULL, target=SMALL, start=7, end=50, interval=9, rest=4)
    assert all(plain.widths_at(step) == empty.widths_at(step) for step in range(60))
    assert all(plain.is_event(step) == empty.is_event(step) for step in range(60))
    assert plain.leaves() == empty.leaves() == ()


@pytest.mark.parametrize(("steps", "interval", "rest"), [(15, 5, 0), (105, 40, 0), (105, 1, 40)])
def test_too_few_events_for_the_stops_are_refused(steps: int, interval: int, rest: int) -> None:
    with pytest.raises(HomodistilError, match="too few events") as caught:
        with_stops(steps, interval, rest)
    assert caught.value.error_id == "CFG-SCHEDULE"
