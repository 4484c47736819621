"""Schedule, importance and masks of one student, in the order the loop calls them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from homodistil_ds.errors import HomodistilError
from homodistil_ds.models import norms
from homodistil_ds.models.width import WidthPlan, Widths
from homodistil_ds.pruning.importance import Importance
from homodistil_ds.pruning.masks import Masks
from homodistil_ds.pruning.schedule import WidthSchedule
from homodistil_ds.pruning.shrink import cut_run
from homodistil_ds.runtime import ranks, shards
from homodistil_ds.runtime.carry import Piece
from homodistil_ds.runtime.engine import Engine
from homodistil_ds.runtime.shards import Shard


class Pruner:
    """Takes a student from its full to its target widths. `step` counts optimizer steps, the current one included.

    `events` lists every prune event: step, widths and the digest of the masks that all ranks had.
    """

    def __init__(self, plan: WidthPlan, schedule: WidthSchedule, criterion: str, beta: float) -> None:
        self.plan = plan
        self.schedule = schedule
        self.importance = Importance(plan, criterion, beta)
        self.masks = Masks(plan)
        self.events: list[dict[str, Any]] = []

    def score(self, engine: Engine, step: int) -> torch.Tensor | None:
        """S_n from the reduced gradients, None if nothing depends on them any more.

        Call it after the last backward and before the optimizer step, and `record` what it returns after a step that
        was not skipped.
        """
        return self.importance.measure(shards.scored_shards(engine)) if self.schedule.is_scored(step) else None

    def record(self, score: torch.Tensor | None) -> None:
        if score is not None:
            self.importance.update(score)

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
                "Train in float32 (--resume auto), or begin anew with a lower --learning_rate.",
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
                "A rank computed with other data or broken memory. Go on with --resume auto; if it happens again, "
                "leave the node of those ranks out.",
                "Checkpoints written before this step are valid.",
            )
        self.events.append({"step": step, "widths": str(self.masks.widths()), "digest": self.masks.digest()})

    def apply(self, engine: Engine) -> None:
        """Zero the masked entries everywhere and let the norms count the kept ones."""
        self.masks.apply(itertools.chain(shards.state_shards(engine), shards.forward_copies(engine)))
        norms.keep(engine.module, self.masks.local()["hidden"].to(engine.device))

    def remove(self, owned: Iterable[Shard], widths: Widths) -> list[Piece]:
        """A cut to the physical `widths`: copies of what is left of this rank's shards; masks and scores go along."""
        stay = self.masks.staying(widths)
        left = []
        for shard in owned:
            dims, shape = self.plan.dims(shard.name), tuple(shard.shape)
            parts = [cut_run(part, shard.offset, shape, dims, stay) for part in (shard.weight, *shard.moments)]
            values = torch.stack([part for _, part in parts])
            if values.shape[1]:
                left.append(Piece(name=shard.name, offset=parts[0][0], values=values))
        self.masks.remove(stay)
        self.importance.keep(stay)
        return left

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Tensors by flat names."""
        masks = self.masks.state_dict()
        named = {f"{part}/{group}": mask for part, groups in masks.items() for group, mask in groups.items()}
        scores = {f"importance/{name}": values.cpu() for name, values in self.importance.state_dict().items()}
        return {**named, **scores}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        parts: dict[str, dict[str, torch.Tensor]] = {"kept": {}, "present": {}, "importance": {}}
        for name, tensor in state.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        self.masks.load_state_dict(parts)
        sizes = {group: int(present.sum()) for group, present in self.masks.present.items()}
        self.importance.load_state_dict(parts["importance"], sizes)
