"""How fast each rank is by itself: seconds for its data and its forward passes. No waiting, no reading of the device.

A step lasts as long as its slowest rank's, so the time of a step says nothing about who is slow. Fetching data and the
forward passes come before anything of the backward pass is reduced. Where the forward pass itself gathers (ZeRO-3,
teachers in shards), ranks wait for each other in it: the figures are then alike, and the data alone tells them apart.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

Item = TypeVar("Item")
SLOW = 0.7  # pace of the slowest rank in units of the middle one's
NOTICEABLE, LEAST_SECONDS = 0.05, 0.01  # lost to it, of a step's time and at all: less may be a busy scheduler
PATIENCE = 3  # logging intervals in a row
SMALL_WORLD = 16  # ranks that get a curve each
SAMPLES = 64  # forward passes timed per logging interval on a GPU


@dataclass
class Spent:
    """Seconds of this rank, by the clock and of its CPU time, over all starts of a run."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def begin(self) -> None:
        self._since = time.perf_counter(), time.process_time()

    def lap(self) -> None:
        """Add what has passed since `begin`, or since the lap before."""
        wall, cpu = self._since
        self.begin()
        self.seconds += self._since[0] - wall
        self.cpu_seconds += self._since[1] - cpu


class Pace:
    """Adds up this rank's own seconds, and remembers for how long which rank has been slow."""

    def __init__(self) -> None:
        self._suspect: int | None = None
        self._slow_for = self._well_for = 0
        self._named: set[int] = set()
        self._reset()

    def _reset(self) -> None:
        self._began = time.perf_counter()
        self._data = self._forward = 0.0
        self._steps = self._passes = 0
        self._events: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque(maxlen=SAMPLES)

    def fetched(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items of one step; what it takes to get them is data wait."""
        rest = iter(items)
        while True:
            begin = time.perf_counter()
            try:
                item = next(rest)
            except StopIteration:
                self._steps += 1
                return
            finally:
                self._data += time.perf_counter() - begin
            yield item

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Around the forward passes of a micro batch. On a GPU events are put into the stream and read when logging."""
        self._passes += 1
        if torch.cuda.is_available():
            marks = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            marks[0].record()
            yield
            marks[1].record()
            self._events.append(marks)
            return
        begin = time.perf_counter()
        yield
        self._forward += time.perf_counter() - begin

    def take(self) -> list[float]:
        """Seconds per step since the last call: data, forward, wall clock. Call it after a wait for the device."""
        done = [begin.elapsed_time(end) / 1000 for begin, end in self._events if end.query()]
        forward = sum(done) / len(done) * self._passes if done else self._forward
        steps = max(self._steps, 1)
        row = [self._data / steps, forward / steps, (time.perf_counter() - self._began) / steps]
        self._reset()
        return row

    def slow_rank(self, rows: torch.Tensor) -> int | None:
        """The rank to warn of now, from the figures of all ranks [W, 3]; every rank gets the same answer.

        It must have been the slowest PATIENCE intervals in a row, and is named once until it kept up for as long.
        """
        ratio, rank = evenness(rows)
        own = rows[:, :2].sum(1)
        lost = float(own[rank] - own.median())
        slow = ratio < SLOW and lost > max(NOTICEABLE * float(rows[0, 2]), LEAST_SECONDS)
        self._slow_for = self._slow_for + 1 if slow and rank == self._suspect else int(slow)
        self._well_for = 0 if slow else self._well_for + 1
        self._suspect = rank if slow else None
        if self._well_for >= PATIENCE:
            self._named.clear()
        if self._slow_for < PATIENCE or rank in self._named:
            return None
        self._named.add(rank)
        return rank


def evenness(rows: torch.Tensor) -> tuple[float, int]:
    """Own seconds of the middle rank (of two: the faster) over those of the slowest, and who that is."""
    own = rows[:, :2].sum(1)
    slowest = int(own.argmax())
    return float(own.median() / own[slowest].clamp_min(1e-9)), slowest


def curves(rows: torch.Tensor) -> dict[str, float]:
    """What is drawn of the figures of all ranks [W, 3]."""
    data, own = rows[:, 0], rows[:, :2].sum(1)
    values = {"perf/data_wait_s_max": float(data.max()), "perf/data_wait_s_mean": float(data.mean())}
    if len(rows) == 1:
        return values
    ratio, slowest = evenness(rows)
    values["perf/straggler_ratio"] = ratio
    if len(rows) > SMALL_WORLD:
        return values | {"perf/slowest_rank": slowest, "perf/own_s_max": float(own.max())}
    return values | {f"perf_ranks/own_s_{rank}": float(seconds) for rank, seconds in enumerate(own)}


def warning(rank: int, host: str, rows: torch.Tensor) -> str:
    data, forward, step = rows[rank].tolist()
    return (
        f"homodistil_ds: warning: rank {rank} on host {host} is slow: {evenness(rows)[0]:.2f} of the middle rank's "
        f"pace over {PATIENCE} logs (data {data:.3g} s, forward {forward:.3g} s of a step of {step:.3g} s)"
    )
