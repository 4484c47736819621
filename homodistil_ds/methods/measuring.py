"""What a finished student is worth on held-out text, beside its teacher: in float32 where both fit a rank."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from homodistil_ds.distillation.cached_teacher import CachedTeacher
from homodistil_ds.evaluation.heldout import HeldOut, evaluate
from homodistil_ds.methods.placing import placed
from homodistil_ds.methods.setting import Setting
from homodistil_ds.models.forward import Activations, Teacher, headed
from homodistil_ds.models.loading import load_teacher
from homodistil_ds.planning.around import MEASURED_IN, measuring_bytes
from homodistil_ds.runtime import ds_config, engine, launch, memory, placement, ranks
from homodistil_ds.runtime.rounding import in_format
from homodistil_ds.stage import Stage


def measuring_dtype(setting: Setting, stage: Stage, student: PreTrainedModel) -> torch.dtype:
    """float32 where a rank has room for both models in it, else the number format of training. All ranks call it."""
    with_teacher = stage.teacher is not None
    taught = [parameter.numel() for parameter in setting.source.parameters()] if with_teacher else []
    own = sum(parameter.numel() for parameter in student.parameters())
    parts = placement.parts(setting.placement, ranks.world_size(), ranks.smallest(launch.ranks_here()))
    offloaded = setting.placement == "cpu_offload" and torch.cuda.is_available()
    needed = measuring_bytes(sum(taught), max(taught, default=0), own, parts, offloaded, torch.float32.itemsize)
    gone = isinstance(stage.teacher, CachedTeacher) and stage.teacher.body is None
    held = 0 if offloaded or gone else sum(taught) // parts * setting.train_dtype.itemsize  # of a teacher that goes
    return (
        torch.float32
        if needed <= MEASURED_IN * (ranks.smallest(memory.available_bytes()) + held)
        else setting.train_dtype
    )


def measured_teacher(setting: Setting, stage: Stage, dtype: torch.dtype) -> nn.Module:
    """The teacher in this number format; it takes the place of the stage's, which is freed."""
    trained, stage.teacher = stage.teacher, None
    if isinstance(trained, CachedTeacher):
        trained = trained.body
    if setting.read is not None:
        if (
            trained is not None
            and dtype == setting.train_dtype
            and ds_config.precision(setting.ds_config) != "autocast"
        ):
            return trained
        if trained is not None:
            engine.dispose(trained)
        return placed(setting, setting.source, {"logits"}, {} if dtype == torch.float32 else setting.ds_config, dtype)
    # Loaded again: the teacher of the stage was rounded to the precision of training.
    torch.nn.Module.to(setting.source, torch.device("meta"))
    source = ranks.together(lambda: load_teacher(setting.config.teacher)[0])
    return placed(setting, source, {"logits"}, {}, dtype)


def held_out_of(
    setting: Setting, stage: Stage, student: PreTrainedModel, teacher: nn.Module | None, dtype: torch.dtype
) -> HeldOut:
    """Held-out figures of the very model that is saved; it is used up."""
    reads = {stage.objective.logits}
    torch.nn.Module.to(in_format(student, dtype), ranks.device())
    model = Teacher(student, stage.plan.family, reads)

    def own(*shown: torch.Tensor) -> Activations:
        return headed(model, model(*shown, reads=reads))

    def taught(*shown: torch.Tensor) -> Activations:
        assert teacher is not None
        return headed(teacher, teacher(*shown, reads=reads))

    result = evaluate(own, None if teacher is None else taught, setting.batches.held_out(), setting.job.parted)
    student.cpu()
    return result
