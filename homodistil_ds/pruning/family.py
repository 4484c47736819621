"""The family of students that one run passes through: their shapes, and which of them is to teach. Pure.

The scale of a student is the kept share of the matrices of the layers, the weights that pruning takes from.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from homodistil_ds.errors import HomodistilError
from homodistil_ds.models.families import legal_shapes
from homodistil_ds.models.width import WidthPlan, Widths, count

CLOSE = 0.1  # a shape whose scale is further off than this share of what was asked for is not that member
GRAIN = 8  # feed-forward and hidden sizes that the hardware likes are multiples of it
UNLIKED = {"hidden": 0.3, "head_size": 0.05}  # what another size costs, in the measure of `_off`
NEAR = 1.5  # a hidden size may be so many times smaller or larger than the teacher's proportions say
GAP = 2.5  # the capacity-gap law: the best teacher is so many times as large as its student


@dataclass(frozen=True, kw_only=True)
class Member:
    """One student of the family: `scale` is the one asked for, `kept` the share that its shape has."""

    scale: float
    kept: float
    widths: Widths

    @property
    def name(self) -> str:
        return f"{self.scale:g}"


def scale_of(plan: WidthPlan, widths: Widths) -> float:
    return _matrices(plan, widths) / _matrices(plan, plan.full)


def _matrices(plan: WidthPlan, widths: Widths) -> int:
    """Of all layers: those of a stack are alike."""
    first = count(replace(plan, layers=1, encoder_layers=min(plan.encoder_layers, 1)), widths).matrices
    if not plan.encoder_layers:
        return plan.layers * first
    both = count(replace(plan, layers=2, encoder_layers=1), widths).matrices
    return plan.encoder_layers * first + (plan.layers - plan.encoder_layers) * (both - first)


def check_scales(scales: Sequence[float], flag: str = "--family") -> None:
    """Raises HomodistilError for scales outside (0, 1] and for those that do not fall."""
    shown = ",".join(f"{scale:g}" for scale in scales)
    if not all(math.isfinite(scale) and 0 < scale <= 1 for scale in scales):
        raise HomodistilError("CFG-SCALE", f"{flag} {shown}", "Every scale is a share above 0, at most 1.")
    if any(second >= first for first, second in itertools.pairwise(scales)):
        raise HomodistilError("CFG-SCALE", f"{flag} {shown} does not fall", "Name every scale once, the largest first.")


def members_of(
    plan: WidthPlan, scales: Sequence[float], flag: str = "--family", within: Widths | None = None
) -> tuple[Member, ...]:
    """Legal shapes of these shares of `plan`, each inside the one before it, near its proportions, all inside `within`.

    Raises HomodistilError where no shape that a plain folder holds is near a scale, with the nearest that is.
    """
    check_scales(scales, flag)
    found: list[Member] = []
    within = within or plan.full
    for scale in scales:
        whole = scale == 1 and within == plan.full
        shapes = [within] if whole else list(_shapes(plan, scale, within))
        best = min(shapes, key=lambda widths: (_off(plan, widths, scale), -widths.heads), default=None)
        if best is None or abs(scale_of(plan, best) - scale) > CLOSE * scale or (found and best == found[-1].widths):
            raise _unmet(plan, scale, within, flag)
        found.append(Member(scale=scale, kept=scale_of(plan, best), widths=best))
        within = best
    return tuple(found)


def _unmet(plan: WidthPlan, scale: float, within: Widths, flag: str) -> HomodistilError:
    shapes = (shape for shape in _shapes(plan, scale, within, near=math.inf) if shape != within)
    near = min(shapes, key=lambda widths: abs(scale_of(plan, widths) - scale), default=None)
    return HomodistilError(
        "CFG-SCALE",
        f"{flag} {scale:g} is met by no shape of a plain {plan.family.model_type} folder inside {within}",
        f"The nearest is {near}, scale {scale_of(plan, near):.3g}." if near else "Leave this scale out.",
    )


def _shapes(plan: WidthPlan, scale: float, within: Widths, near: float = NEAR) -> Iterator[Widths]:
    """For every legal hidden size and heads inside `within`, `near` the teacher's proportions, the feed-forward width
    that comes nearest to the scale."""
    wanted, middle = scale * _matrices(plan, plan.full), math.sqrt(scale) * plan.full.hidden
    grain = GRAIN if within.ffn >= GRAIN * GRAIN else 1
    for hidden, heads in legal_shapes(plan):
        head_size = hidden // heads if plan.family.head_size == "derived" else plan.full.head_size
        inside = hidden <= within.hidden and heads <= within.heads and head_size <= within.head_size
        if inside and middle / near <= hidden <= middle * near:
            first, second = (
                Widths(hidden=hidden, ffn=ffn, heads=heads, head_size=head_size) for ffn in (grain, 2 * grain)
            )
            least = _matrices(plan, first)
            more = round((wanted - least) / (_matrices(plan, second) - least))
            yield replace(first, ffn=min(grain * (1 + max(more, 0)), within.ffn))


def _off(plan: WidthPlan, widths: Widths, scale: float) -> float:
    """How far a shape is from the scale and from the teacher's proportions, in logarithms; odd sizes cost more."""
    full, share = plan.full, math.sqrt(scale)
    shares = (
        widths.hidden / full.hidden,
        widths.ffn / full.ffn,
        widths.heads * widths.head_size / (full.heads * full.head_size),
    )
    uneven = sum(abs(math.log(own / share)) for own in shares)
    unliked = sum(cost for axis, cost in UNLIKED.items() if getattr(widths, axis) % GRAIN)
    return uneven + unliked + 10 * abs(math.log(scale_of(plan, widths) / scale))


def trade_off(metric: float, scale: float, weight: float) -> float:
    """(M1): a student's metric in [0, 1], and `weight` for each whole scale (kept share) that it does without."""
    return metric + weight * (1.0 - scale)


def relative_likelihood(loss: float, teacher_loss: float) -> float:
    """A metric in [0, 1] from losses in nats: what the student gives the right token for each time that the teacher
    gives it 1, as a geometric mean; 1 for a student that is better than its teacher, 0 for one without a loss."""
    return 0.0 if math.isnan(loss) else min(1.0, math.exp(teacher_loss - loss))


def best_assistant(trade_offs: Sequence[float]) -> int:
    """(M2): the place of the member with the largest trade-off; among equals the first, which is the largest. A metric
    that is no number is the worst."""
    known = [-math.inf if math.isnan(value) else value for value in trade_offs]
    return max(range(len(known)), key=lambda place: (known[place], -place))


def would_teach(trade_offs: Sequence[float]) -> int | None:
    """The place of the best assistant of the last member, among those before it; None where it is alone."""
    return best_assistant(trade_offs[:-1]) if len(trade_offs) > 1 else None


def assistant_by_gap(parameters: Sequence[int]) -> int:
    """The place of the member, but the last, that is most nearly GAP times as large as the last one."""
    wanted = math.log(GAP * parameters[-1])
    return min(range(len(parameters) - 1), key=lambda place: abs(math.log(parameters[place]) - wanted))
