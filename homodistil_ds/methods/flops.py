"""What a run's steps have cost by the cost model, in FLOPs."""

from __future__ import annotations

from homodistil_ds.methods.setting import Setting
from homodistil_ds.pruning.milestones import Milestone, run_cost
from homodistil_ds.stage import Stage


def of_run(setting: Setting, stage: Stage) -> float:
    """FLOPs of the whole run: teacher, student and projections at the widths they had, matrix work alone."""
    began = stage.plan.full if stage.pruner else stage.widths()
    cuts = [Milestone(step=step, widths=widths) for step, widths in sorted(stage.milestones.items())]
    return stage.batches.tokens_per_step * run_cost(cuts, began, setting.config.steps, setting.job.flops)
