"""How many neurons are kept at step t (H6, H7), and at which steps neurons leave. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from homodistil_ds.models.width import Widths


@dataclass(frozen=True, kw_only=True)
class WidthSchedule:
    """The way from the `full` to the `target` widths between the optimizer steps `start` and `end`.

    `interval` is the number of steps between two prune events. Steps count finished optimizer steps.
    """

    full: Widths
    target: Widths
    start: int
    end: int
    interval: int

    def widths_at(self, step: int) -> Widths:
        return Widths(
            hidden=self._kept(self.full.hidden, self.target.hidden, step),
            ffn=self._kept(self.full.ffn, self.target.ffn, step),
            heads=self._kept(self.full.heads, self.target.heads, step),
            head_size=self._kept(self.full.head_size, self.target.head_size, step),
        )

    def is_event(self, step: int) -> bool:
        """Whether neurons leave after this step; the last event, at `end`, always reaches the target."""
        if self.full == self.target:
            return False
        return step == self.end or (self.start < step < self.end and (step - self.start) % self.interval == 0)

    def is_scored(self, step: int) -> bool:
        """Whether the gradients of this step still decide something."""
        return self.full != self.target and step <= self.end

    def _kept(self, full: int, target: int, step: int) -> int:
        """(H7): target + ceil((full - target) (1 - u)^3), with u by (H6)."""
        span = self.end - self.start
        progress = min(max((step - self.start) / span, 0.0), 1.0) if span else float(step >= self.end)
        return target + math.ceil((full - target) * (1.0 - progress) ** 3)
