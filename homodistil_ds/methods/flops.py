"""What a run's steps cost by the cost model, in FLOPs: to place cuts before it, to report after it."""

from __future__ import annotations

from homodistil_ds.distillation.objective import Objective
from homodistil_ds.methods.setting import Setting
from homodistil_ds.models.width import Widths
from homodistil_ds.pruning.cost import step_flops
from homodistil_ds.pruning.milestones import Cost, Milestone, run_cost
from homodistil_ds.stage import Stage


def per_token(setting: Setting, objective: Objective, with_teacher: bool) -> Cost:
    """Physical widths of the student -> FLOPs per token of one step of this run."""
    config = setting.config

    def cost(widths: Widths) -> float:
        return step_flops(
            setting.student_plan,
            widths,
            sequence_length=config.sequence_length,
            predicted_share=setting.batches.prediction.share(config.sequence_length),
            reads=objective.student_reads(),
            teacher_reads=objective.teacher_reads() if with_teacher else None,
            teacher_plan=setting.plan,
            tiled_layers=objective.tiled_layers(setting.student_plan.layers),
        )

    return cost


def of_run(setting: Setting, stage: Stage) -> float:
    """FLOPs of the whole run: teacher, student and projections at the widths they had, matrix work alone."""
    began = stage.plan.full if stage.pruner else stage.widths()
    cuts = [Milestone(step=step, widths=widths) for step, widths in sorted(stage.milestones.items())]
    # The stage's own teacher is gone when its run is reported.
    cost = per_token(setting, stage.objective, with_teacher=setting.config.method != "pretrain")
    return stage.batches.tokens_per_step * run_cost(cuts, began, setting.config.steps, cost)
