"""Who is slow, for how long, and how often it is said."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from homodistil_ds.runtime.pace import PATIENCE, Pace, Spent, curves, evenness, warning


def rows(*own: float, step: float = 1.0) -> torch.Tensor:
    """Figures of as many ranks; a tenth of each one's own seconds is data."""
    return torch.tensor([[0.1 * seconds, 0.9 * seconds, step] for seconds in own])


def test_the_ratio_is_the_middle_rank_s_seconds_over_the_slowest_s() -> None:
    assert evenness(rows(0.2, 0.2, 0.2)) == (pytest.approx(1.0), 0)
    assert evenness(rows(0.2, 0.4)) == (pytest.approx(0.5), 1)
    assert evenness(rows(0.1, 0.4, 0.2, 0.2, 0.2)) == (pytest.approx(0.5), 1)
    assert evenness(rows(0.0, 0.0)) == (0.0, 0)


def test_a_rank_is_named_after_some_intervals_and_once_until_it_recovers() -> None:
    pace, slow, even = Pace(), rows(0.2, 0.5), rows(0.2, 0.2)
    named = [pace.slow_rank(slow) for _ in range(4 * PATIENCE)]
    assert named == [None] * (PATIENCE - 1) + [1] + [None] * 3 * PATIENCE
    assert pace.slow_rank(even) is None
    assert not any(pace.slow_rank(slow) for _ in range(PATIENCE)), "one even interval is no recovery"
    assert not any(pace.slow_rank(even) for _ in range(PATIENCE))
    assert [pace.slow_rank(slow) for _ in range(PATIENCE)][-1] == 1


def test_what_changes_from_rank_to_rank_or_costs_nothing_is_not_named() -> None:
    pace = Pace()
    for _ in range(3 * PATIENCE):
        assert pace.slow_rank(rows(0.2, 0.5)) is None
        assert pace.slow_rank(rows(0.5, 0.2)) is None
    for _ in range(3 * PATIENCE):
        assert pace.slow_rank(rows(0.002, 0.005)) is None, "3 ms of a step of 1 s"


def test_curves_per_rank_in_small_worlds_only() -> None:
    assert set(curves(rows(0.2))) == {"perf/data_wait_s_max", "perf/data_wait_s_mean"}
    small = curves(rows(0.2, 0.4))
    assert small["perf/straggler_ratio"] == pytest.approx(0.5)
    assert small["perf/data_wait_s_max"] == pytest.approx(0.04)
    assert small["perf_ranks/own_s_1"] == pytest.approx(0.4)
    large = curves(rows(*[0.2] * 20, 0.8))
    assert large["perf/slowest_rank"] == 20
    assert len(large) < 8


def test_seconds_are_per_step_and_begin_anew() -> None:
    pace = Pace()
    for _ in range(2):
        for _ in pace.fetched(range(3)):
            with pace.forward():
                pass
    data, forward, wall = pace.take()
    assert 0 < data < wall
    assert 0 < forward < wall
    assert pace.take()[:2] == [0.0, 0.0]


def test_the_line_says_who_where_and_how_slow() -> None:
    text = warning(1, "n7", rows(0.2, 0.5))
    assert "rank 1 on host n7 is slow: 0.40 of" in text
    assert "forward 0.45 s of a step of 1 s" in text


class Mark:
    """A CUDA event on a device that needs 20 ms for each forward pass and has not finished the last one yet."""

    made = 0

    def __init__(self, enable_timing: bool) -> None:
        Mark.made += 1
        self.number = Mark.made

    def record(self) -> None:
        pass

    def query(self) -> bool:
        return self.number < Mark.made

    def elapsed_time(self, end: Mark) -> float:
        return 20.0


def test_on_a_gpu_events_are_read_when_logging_and_those_not_reached_are_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", Mark)
    pace = Pace()
    for _ in range(100):
        for _ in pace.fetched(range(2)):
            with pace.forward():
                pass
    assert pace.take()[1] == pytest.approx(0.04), "two passes a step, most of them timed"
    assert pace.take()[1] == 0.0


def test_what_was_spent_goes_on_from_an_earlier_start(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((10.0, 12.5, 20.0, 30.0, 30.0))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    monkeypatch.setattr("time.process_time", lambda: 0.0)
    spent = Spent(seconds=100.0, cpu_seconds=7.0)
    spent.begin()
    spent.lap()
    assert asdict(spent) == {"seconds": 102.5, "cpu_seconds": 7.0}
    spent.lap()
    assert spent.seconds == 110.0, "laps leave nothing out"
    spent.begin()
    spent.lap()
    assert spent.seconds == 110.0
