"""The models of a run where its placement puts them: whole, or built in shards and filled from the weight files."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel

from homodistil_ds.methods.setting import Setting
from homodistil_ds.models.depth import from_layers
from homodistil_ds.models.forward import Read, Teacher
from homodistil_ds.models.loading import as_student, twin, without_dropout
from homodistil_ds.models.pieces import exact_buffers, reader_of, unfilled
from homodistil_ds.models.width import Widths
from homodistil_ds.pruning.shrink import blank
from homodistil_ds.runtime import ds_config, placement, ranks


def placed_teacher(setting: Setting, reads: Collection[Read]) -> nn.Module:
    """The teacher in the precision of training. Make the student first: this rounds a source that is whole."""
    return placed(setting, setting.source, reads, setting.ds_config, setting.train_dtype)


def student_from(setting: Setting, copied: bool = True) -> PreTrainedModel:
    """A student with the source's weights. Without `copied` it may be the source itself, which is then used up.

    At stage 3 no rank holds it whole, at the other stages each does.
    """
    sharded = ds_config.zero_stage(setting.ds_config) == 3
    plan, like = setting.student_plan, setting.student_like
    if not sharded and setting.read is None and plan.layers == setting.plan.layers:
        return twin(setting.source, plan) if copied else as_student(setting.source, plan)
    model = _sharded(lambda: unfilled(like), setting.ds_config) if sharded else unfilled(like)
    read = from_layers(setting.read or reader_of(setting.source), setting.plan, setting.layer_map)
    ranks.together(lambda: placement.fill(model, read))
    return as_student(model, plan)


def blank_student(setting: Setting, widths: Widths) -> PreTrainedModel:
    """A student of no particular weights at physical widths; at stage 3 no rank holds it whole."""
    machine = setting.ds_config_for(widths)

    def build() -> PreTrainedModel:
        return blank(setting.student_like, setting.student_plan, widths)

    return _sharded(build, machine) if ds_config.zero_stage(machine) == 3 else build()


def _sharded(
    build: Callable[[], PreTrainedModel], machine: dict[str, Any], group: dist.ProcessGroup | None = None
) -> PreTrainedModel:
    return exact_buffers(placement.sharded(build, machine, group))


def placed(
    setting: Setting, source: PreTrainedModel, reads: Collection[Read], machine: dict[str, Any], dtype: torch.dtype
) -> nn.Module:
    """A teacher where the run's placement puts it, in shards in the precision of `machine`, whole in `dtype`."""
    model, config, read = source, {}, setting.read
    if read is not None:
        largest = max(parameter.numel() for parameter in source.parameters())
        config = placement.teacher_config(setting.placement, machine, largest)
        group = ranks.node() if setting.placement == "node" else None
        model = _sharded(lambda: unfilled(source), config, group)
        ranks.together(lambda: placement.fill(model, read))
    teacher = Teacher(without_dropout(model), setting.plan.family, reads)
    return placement.serve(teacher, setting.placement, config, dtype)
