"""How many neurons are kept at step t (H6, H7), and at which steps neurons leave. Pure."""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from homodistil_ds.errors import HomodistilError
from homodistil_ds.models.width import Widths


@dataclass(frozen=True, kw_only=True)
class WidthSchedule:
    """The way from the `full` to the `target` widths between the optimizer steps `start` and `end`.

    `interval` is the number of steps between two prune events. Steps count finished optimizer steps. On the way it
    reaches each of `stops`, each inside the one before it, and moves on `rest` steps later. Raises HomodistilError if
    there are too few events for all stops.
    """

    full: Widths
    target: Widths
    start: int
    end: int
    interval: int
    stops: tuple[Widths, ...] = ()
    rest: int = 0

    def __post_init__(self) -> None:
        moves = [0, *self._stop_moves, self._moves]
        if self.stops and any(second <= first for first, second in itertools.pairwise(moves)):
            raise HomodistilError(
                "CFG-SCHEDULE",
                f"{len(self.stops) + 1} sizes are reached between steps {self.start} and {self.end}, with {self.rest} "
                f"steps of rest at each and {self.interval} steps between two prune events: too few events",
                "Use more --steps, a smaller --pruning.interval or --pruning.rest, or fewer scales.",
            )

    def widths_at(self, step: int) -> Widths:
        moves = self._moves_at(step)
        place = bisect.bisect_left(self._stop_moves, moves)
        if moves in self._stop_moves:
            return self.stops[place]
        above, below = [self.full, *self.stops][place], [*self.stops, self.target][place]
        sizes = zip(self._on_the_way(moves), astuple(above), astuple(below), strict=True)
        kept = (min(high, max(own, low)) for own, high, low in sizes)
        return Widths(**dict(zip(vars(self.full), kept, strict=True)))

    def is_event(self, step: int) -> bool:
        """Whether neurons leave after this step; the last event, at `end`, always reaches the target."""
        if self.full == self.target:
            return False
        moves = self._moves_at(step)
        on_grid = self.start < step < self.end and moves % self.interval == 0
        return step == self.end or (on_grid and moves > self._moves_at(step - 1))

    def is_scored(self, step: int) -> bool:
        """Whether the gradients of this step still decide something."""
        return self.full != self.target and step <= self.end

    def leaves(self) -> tuple[int, ...]:
        """The last step at each of `stops`; the next event takes neurons of that student."""
        return tuple(self.start + moves + self.rest * (place + 1) for place, moves in enumerate(self._stop_moves))

    @property
    def _moves(self) -> int:
        """Steps on the way, those of rest left out."""
        return self.end - self.start - self.rest * len(self.stops)

    @functools.cached_property
    def _stop_moves(self) -> Sequence[int]:
        """For each stop the first event at which the way is as small, after that of the stop before."""
        found: list[int] = []
        for stop in self.stops:
            first = (found[-1] if found else 0) + self.interval
            reached = (
                moves
                for moves in range(first, max(self._moves, first) + 1, self.interval)
                if _size(*self._on_the_way(moves)) <= _size(*astuple(stop))
            )
            found.append(next(reached, self._moves))
        return found

    def _moves_at(self, step: int) -> int:
        """Steps of `step` that were on the way."""
        moves = step - self.start
        for place, stop in enumerate(self._stop_moves):
            if moves > stop:
                moves = max(stop, step - self.start - self.rest * (place + 1))
        return moves

    def _on_the_way(self, moves: int) -> tuple[int, ...]:
        """Hidden, ffn, heads and head size by the cubic alone."""
        sizes = zip(astuple(self.full), astuple(self.target), strict=True)
        return tuple(self._kept(full, target, moves) for full, target in sizes)

    def _kept(self, full: int, target: int, moves: int) -> int:
        """(H7): target + ceil((full - target) (1 - u)^3), with u by (H6)."""
        span = self._moves
        progress = min(max(moves / span, 0.0), 1.0) if span else float(moves >= 0)
        return target + math.ceil((full - target) * (1.0 - progress) ** 3)


def _size(hidden: int, ffn: int, heads: int, head_size: int) -> int:
    """In the measure of a layer with four attention and two feed-forward matrices."""
    return hidden * (2 * heads * head_size + ffn)
