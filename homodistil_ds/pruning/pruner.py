"""Schedule, importance and masks of one student, in the order the loop calls them."""

from __future__ import annotations

from typing import Any

import torch

from homodistil_ds.errors import HomodistilError
from homodistil_ds.models import norms
from homodistil_ds.models.width import WidthPlan
from homodistil_ds.pruning.importance import Importance
from homodistil_ds.pruning.masks import Masks
from homodistil_ds.pruning.schedule import WidthSchedule
from homodistil_ds.runtime import ranks, shards
from homodistil_ds.runtime.engine import Engine


class Pruner:
    """Takes a student from its full to its target widths. `step` counts optimizer steps, the current one included."""

    def __init__(self, plan: WidthPlan, schedule: WidthSchedule, criterion: str, beta: float) -> None:
        self.plan = plan
        self.schedule = schedule
        self.importance = Importance(plan, criterion, beta)
        self.masks = Masks(plan)
        self.agreements = 0

    def score(self, engine: Engine, step: int) -> None:
        """Read the reduced gradients; call it after the last backward and before the optimizer step."""
        if self.schedule.is_scored(step):
            self.importance.update(shards.scored_shards(engine))

    def prune(self, engine: Engine, step: int) -> bool:
        """After the optimizer step: if the schedule moves, choose, agree and mask. True if neurons left.

        Raises HomodistilError if the importance is not finite or if ranks differ in their masks.
        """
        if not self.schedule.is_event(step):
            return False
        widths = self.schedule.widths_at(step)
        if widths == self.masks.widths():
            return False
        values = self.importance.values()
        if not all(bool(torch.isfinite(value).all()) for value in values.values()):
            raise HomodistilError(
                "NUM-IMPORTANCE",
                f"step {step}: the importance of some neurons is not a finite number",
                "Lower --learning_rate, or train in float32.",
                "No mask was changed by it; checkpoints written before this step are valid.",
            )
        self.masks.narrow(values, widths)
        self.agree(step)
        self.apply(engine)
        return True

    def agree(self, step: int) -> None:
        """Compare the masks' digests over ranks; raises HomodistilError naming the group and the ranks that differ."""
        difference = ranks.differing(self.masks.digests())
        if difference is not None:
            group, others = difference
            raise HomodistilError(
                "DIST-MASKS-DIFFER",
                f"step {step}: the masks of group '{group}' differ from rank 0's on ranks {others}",
                "A rank computed with other data or broken memory. Start again; if it happens again, leave the node of "
                "those ranks out.",
                "Checkpoints written before this step are valid.",
            )
        self.agreements += 1

    def apply(self, engine: Engine) -> None:
        """Zero the masked entries everywhere and let the norms count the kept ones."""
        self.masks.apply(shards.state_shards(engine), shards.forward_copies(engine))
        norms.keep(engine.module, self.masks.kept["hidden"].to(engine.device))

    def state_dict(self) -> dict[str, Any]:
        return {
            "importance": self.importance.state_dict(),
            "masks": self.masks.state_dict(),
            "agreements": self.agreements,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.importance.load_state_dict(state["importance"])
        self.masks.load_state_dict(state["masks"])
        self.agreements = state["agreements"]
