"""Where a frozen teacher lies: whole on every rank, in shards on a node's or all ranks, or in shards in host memory.

It builds and fills modules without any rank ever holding one whole; what the module is, it does not know.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import deepspeed
import torch
import torch.distributed as dist
from torch import nn

from homodistil_ds.errors import HomodistilError, did_you_mean
from homodistil_ds.machine import PLACEMENTS
from homodistil_ds.runtime import memory, ranks
from homodistil_ds.runtime.rounding import in_format
from homodistil_ds.runtime.shards import partition

Module = TypeVar("Module", bound=nn.Module)
COMFORTABLE = 0.65  # of the available memory; the rest is for activations, gathered layers and buckets
RUN = 2**22  # entries read at a time
PRECISION_KEYS = ("bf16", "bfloat16", "fp16", "torch_autocast")

# read(name, start, count): `count` entries from `start` on of the flattened tensor `name`, in any number format
Read = Callable[[str, int, int], torch.Tensor]


def parts(placement: str, world_size: int, ranks_per_node: int) -> int:
    """How many ranks hold one teacher together."""
    return {"replicated": 1, "node": ranks_per_node}.get(placement, world_size)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What decides a placement: bytes of the whole teacher, of a rank's student and of its memory; the ranks."""

    teacher_bytes: int
    student_bytes: int
    available_bytes: int
    world_size: int
    ranks_per_node: int
    on_gpu: bool

    def room(self) -> float:
        """Bytes that a teacher may comfortably take on a rank."""
        return COMFORTABLE * self.available_bytes - self.student_bytes

    def teacher_on_a_rank(self, placement: str) -> int:
        """Bytes of it in the memory of a rank's own device."""
        if placement == "cpu_offload" and self.on_gpu:
            return 0
        return math.ceil(self.teacher_bytes / parts(placement, self.world_size, self.ranks_per_node))


def choose(asked: str, sizes: Sizes) -> str:
    """The placement that was asked for; for auto the first that fits comfortably, in the order of PLACEMENTS.

    Where nothing fits it is the leanest: sizes are estimates, so they refuse nothing. Without a GPU host memory is all
    there is, so sharding is the leanest, and with one rank on top nothing is gained at all. Raises HomodistilError for
    an unknown name.
    """
    if asked not in PLACEMENTS:
        raise HomodistilError(
            "CFG-PLACEMENT", f"--teacher_placement {asked} is not known", did_you_mean(asked, PLACEMENTS)
        )
    if asked != "auto":
        return asked
    room = sizes.room()
    if sizes.teacher_bytes <= room:
        return "replicated"
    if 1 < sizes.ranks_per_node < sizes.world_size and sizes.teacher_on_a_rank("node") <= room:
        return "node"
    if sizes.world_size > 1 and (sizes.teacher_on_a_rank("zero3") <= room or not sizes.on_gpu):
        return "zero3"
    return "cpu_offload" if sizes.on_gpu else "replicated"


def explain(asked: str, chosen: str, sizes: Sizes) -> str:
    """One line for the log: what was chosen, and the sizes behind it."""
    own = sizes.teacher_on_a_rank(chosen)
    counted = (sizes.teacher_bytes, own, sizes.student_bytes, sizes.available_bytes)
    whole, here, student, free = (f"{size / 2**20:,.0f} MiB" for size in counted)
    text = f"teacher placement: {chosen}{'' if asked == 'auto' else ', as asked'}. A rank may use {free}; the teacher "
    text += f"takes {here} of it ({whole} as a whole), the student about {student} and its activations"
    return text if own <= sizes.room() else f"{text}. This may not fit"


def teacher_config(placement: str, ds_config: dict[str, Any], largest: int) -> dict[str, Any]:
    """The DeepSpeed configuration of a sharded teacher, in the precision of `ds_config`.

    `largest` is the number of entries of its largest parameter: that one must be gathered anyway, so as much may be
    fetched ahead. Autocast marks no module: those marked would gather tied embeddings in low precision.
    """
    zero: dict[str, Any] = {
        "stage": 3,
        "stage3_prefetch_bucket_size": largest,
        "stage3_max_live_parameters": 2 * largest,
        "stage3_max_reuse_distance": 0,
        "memory_efficient_linear": False,  # else torch's linear is replaced for the whole process, student included
    }
    small = "stage3_param_persistence_threshold"  # parameters up to this size stay gathered once they are
    if small in ds_config.get("zero_optimization", {}):
        zero[small] = ds_config["zero_optimization"][small]
    if placement == "cpu_offload":
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    precision = {key: ds_config[key] for key in PRECISION_KEYS if key in ds_config}
    if "torch_autocast" in precision:
        precision["torch_autocast"] = precision["torch_autocast"] | {"lower_precision_safe_modules": []}
    return {"train_micro_batch_size_per_gpu": 1, "steps_per_print": 10**9, "zero_optimization": zero} | precision


def sharded(build: Callable[[], Module], ds_config: dict[str, Any], group: dist.ProcessGroup | None = None) -> Module:
    """Run `build` so that each parameter is cut into shards as soon as its own module stands. All ranks call it.

    The shards are those of the ranks in `group`, or of all.

    What `build` puts into the parameters does not matter: fill the module next. `ds_config` is that of the engine it
    is for, at stage 3; it decides the number format and the device of the shards.
    """
    memory.return_freed()
    # The format comes from the configuration: DeepSpeed 0.19 takes dtype= for bf16 on machines without fp16.
    with deepspeed.zero.Init(config_dict_or_path=ds_config, data_parallel_group=group):
        return build()


@torch.no_grad()
def fill(module: nn.Module, read: Read) -> None:
    """Copy every parameter and saved buffer from `read`, of a sharded parameter this rank's own slice alone.

    Call it before deepspeed.initialize, while nothing is gathered. Tied parameters are read once, by their first name.
    """
    parameters = dict(module.named_parameters())
    for name, parameter in parameters.items():
        own, start, count = _own_slice(parameter)
        _copy(own, name, start, count, read)
        own[count:] = 0  # padding of the last shards
    saved = module.state_dict()
    for name, buffer in module.named_buffers():
        if name in saved:
            _copy(buffer.view(-1), name, 0, buffer.numel(), read)


def _own_slice(parameter: Any) -> tuple[torch.Tensor, int, int]:
    """What this rank holds of a parameter, as a flat tensor, and which run of its entries that is."""
    if not hasattr(parameter, "ds_id"):
        return parameter.data.view(-1), 0, parameter.numel()
    assert parameter.numel() == 0, "fill before anything is gathered"
    return parameter.ds_tensor, *partition(parameter)


def _copy(own: torch.Tensor, name: str, start: int, count: int, read: Read) -> None:
    for first in range(0, count, RUN):
        length = min(RUN, count - first)
        own.narrow(0, first, length).copy_(read(name, start + first, length))


def serve(module: nn.Module, placement: str, ds_config: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    """The frozen module as the loop calls it: itself on this rank's device, or a DeepSpeed engine around its shards.

    The engine has no optimizer; each forward gathers one submodule after the other, so all ranks must call it.
    """
    if placement == "replicated":
        return in_format(module, dtype).to(ranks.device())
    engine, *_ = deepspeed.initialize(model=module, config=ds_config)
    return engine
