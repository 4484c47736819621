"""Where a run cuts the masked neurons out, and the physical widths after each cut. Pure; it cuts nothing itself."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from homodistil_ds.models.families import legal_shapes
from homodistil_ds.models.width import WidthPlan, Widths
from homodistil_ds.pruning.schedule import WidthSchedule

Cost = Callable[[Widths], float]
Sizes = Mapping[int, Sequence[int]]  # heads -> the hidden sizes that go with them, ascending
NEGLIGIBLE = 1e-12  # share of the whole cost: less than this is rounding and earns no cut


@dataclass(frozen=True, kw_only=True)
class Milestone:
    """After optimizer step `step` the student is cut to `widths`."""

    step: int
    widths: Widths


def place_cuts(schedule: WidthSchedule, plan: WidthPlan, cuts: int, steps: int, cost: Cost) -> tuple[Milestone, ...]:
    """At most `cuts` milestones of a run of `steps` steps, in order, that make the sum of the steps' costs least.

    `cost` is that of one step at physical widths, in any unit. Among equals the fewest cuts win, then the earliest.
    """
    candidates = [Milestone(step=0, widths=schedule.full), *_candidates(schedule, plan, steps)]
    chosen = _cheapest([c.step for c in candidates], [cost(c.widths) for c in candidates], cuts, steps)
    return tuple(candidates[place] for place in chosen)


def relative_cost(milestones: Sequence[Milestone], full: Widths, steps: int, cost: Cost) -> float:
    """Cost of a run with these cuts over that of the same run masked at `full` widths throughout; 1 without cuts."""
    return run_cost(milestones, full, steps, cost) / (steps * cost(full))


def run_cost(milestones: Sequence[Milestone], began: Widths, steps: int, cost: Cost) -> float:
    """Sum of the costs of the steps of a run that began at these widths and has these cuts, in the unit of `cost`."""
    first = (Milestone(step=0, widths=began), *milestones)
    ends = [milestone.step for milestone in milestones] + [steps]
    return sum((end - begin.step) * cost(begin.widths) for begin, end in zip(first, ends, strict=True))


def physical_widths(plan: WidthPlan, logical: Widths, current: Widths, target: Widths) -> Widths:
    """The smallest shape between `logical` and `current` on every axis that the family holds and the hardware likes.

    Hidden and feed-forward sizes are rounded up to multiples (`multiple`); see `_price` for what happens where none is
    near. At the target it is the target, and `current` where nothing smaller can be had. `current` must be legal.
    """
    return _fit(plan, _sizes_by_heads(plan), logical, current, target)


def multiple(full: int) -> int:
    """What a size is rounded up to: the largest power of two from 8 to 64 that is at most a 48th of the full size."""
    return max((power for power in (8, 16, 32, 64) if 48 * power <= full), default=8)


def _price(size: int, grain: int) -> int:
    """What a size costs, in twelfths of a neuron: other multiples of 8 a twelfth more, and the rest, slow on tensor
    cores, double. So an odd size is taken only where no better one is within reach."""
    if size % grain == 0:
        return 12 * size
    return 13 * size if size % 8 == 0 else 24 * size


def _fit(plan: WidthPlan, sizes: Sizes, logical: Widths, current: Widths, target: Widths) -> Widths:
    if logical == target:
        return target
    grain = multiple(plan.full.ffn)
    ffn = min(range(logical.ffn, current.ffn + 1), key=lambda size: _price(size, grain))
    tied = plan.family.head_size == "derived"
    grain = multiple(plan.full.hidden)

    def price(shape: Widths) -> tuple[int, int]:
        """In the measure of a layer with four attention and two feed-forward matrices; ties go to fewer heads."""
        return _price(shape.hidden, grain) * (2 * shape.heads * shape.head_size + ffn), shape.heads

    return min(_between(sizes, logical, current, ffn, tied, grain), key=price, default=current)


def _between(sizes: Sizes, logical: Widths, current: Widths, ffn: int, tied: bool, grain: int) -> Iterator[Widths]:
    """Of the legal shapes from `logical` to `current` those that may be cheapest; `tied`: heads * head_size = hidden.

    With as many heads, of the sizes of one grain only the smallest one can be.
    """
    for heads in range(logical.heads, current.heads + 1):
        hidden_sizes = sizes.get(heads, ())
        low = bisect.bisect_left(hidden_sizes, logical.hidden)
        left = {1, 8, grain}
        for hidden in hidden_sizes[low : bisect.bisect_right(hidden_sizes, current.hidden)]:
            head_size = hidden // heads if tied else logical.head_size
            fits = logical.head_size <= head_size <= current.head_size and (not tied or heads * head_size == hidden)
            if fits and (met := {size for size in left if hidden % size == 0}):
                left -= met
                yield Widths(hidden=hidden, ffn=ffn, heads=heads, head_size=head_size)
            if not left:
                break


def _sizes_by_heads(plan: WidthPlan) -> Sizes:
    sizes: dict[int, list[int]] = {}
    for hidden, heads in sorted(legal_shapes(plan)):
        sizes.setdefault(heads, []).append(hidden)
    return sizes


def _candidates(schedule: WidthSchedule, plan: WidthPlan, steps: int) -> Iterator[Milestone]:
    """The prune events at which the student could become smaller, each with the shape it would get.

    A shape follows from the one before it, so the shapes are monotone whichever events are chosen. An event at the very
    last step comes too late to save anything.
    """
    sizes = _sizes_by_heads(plan)
    current = schedule.full
    for step in range(1, steps):
        if schedule.is_event(step):
            widths = _fit(plan, sizes, schedule.widths_at(step), current, schedule.target)
            if widths != current:
                current = widths
                yield Milestone(step=step, widths=widths)


def _cheapest(points: Sequence[int], costs: Sequence[float], cuts: int, steps: int) -> list[int]:
    """Exact dynamic programme: the places in `points`, at most `cuts`, at which to move on to that place's cost.

    points[0] is the start. spent[i] is the least cost of the steps before point i with a given number of cuts, the last
    of them at i; each round adds a cut.
    """
    at, price = np.array(points), np.array(costs, dtype=float)
    move = np.where(at[:, None] < at[None, :], (at[None, :] - at[:, None]) * price[:, None], np.inf)
    spent = np.where(at == 0, 0.0, np.inf)
    whole = spent + (steps - at) * price
    best, chosen = float(whole[0]), 0
    came_from: list[np.ndarray] = []
    rounds = 0
    for _ in range(min(cuts, len(points) - 1)):
        totals = spent[:, None] + move
        came_from.append(totals.argmin(axis=0))
        spent = totals.min(axis=0)
        whole = spent + (steps - at) * price
        if whole.min() < best * (1 - NEGLIGIBLE):
            best, chosen, rounds = float(whole.min()), int(whole.argmin()), len(came_from)
    path: list[int] = []
    for previous in reversed(came_from[:rounds]):
        path.append(chosen)
        chosen = int(previous[chosen])
    return path[::-1]
