"""What this rank owns of every parameter, at every ZeRO stage. Reads DeepSpeed's internals, as runtime/carry.py does.

Bound to deepspeed 0.19: the tests compare every slice with the gathered tensors of DeepSpeed's public functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param

from homodistil_ds.runtime import ranks

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A run of entries of one parameter, flattened; `weight`, `gradient` and `moments` are 1-D views of it.

    `weight` is the fp32 master, except in `forward_copies`. `gradient` is the one of the global batch (mean over ranks
    and accumulation steps, unclipped, without the loss scale), None outside the window between the last backward and
    the optimizer step. `moments` are Adam's.
    """

    name: str
    shape: torch.Size
    offset: int
    weight: torch.Tensor
    gradient: torch.Tensor | None = None
    moments: tuple[torch.Tensor, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a rank's run of a parameter lies: `count` entries from `start` on in the flat master `flat`."""

    name: str
    parameter: Any  # DeepSpeed hangs attributes of its own on parameters
    shape: torch.Size
    offset: int
    count: int
    flat: torch.Tensor
    start: int

    def of(self, flat: torch.Tensor) -> torch.Tensor:
        """This run of anything of the master's size."""
        return flat.view(-1).narrow(0, self.start, self.count)


def places(engine: deepspeed.DeepSpeedEngine, once: bool = False) -> Iterator[Place]:
    """The runs whose masters and moments are on this rank, none of them empty.

    At stage 0 that is every entry on every rank; with `once`, an equal run of each parameter. At the other stages an
    entry is on one rank anyway.
    """
    find = (_replicated, _in_flat_groups, _in_flat_groups, _in_pieces)[engine.zero_optimization_stage()]
    for name, parameter in trained(engine):
        shape = getattr(parameter, "ds_shape", parameter.shape)
        offset, count, flat, start = find(engine.optimizer, parameter)
        if once and flat is parameter:
            offset, count = even_share(count)
            start = offset
        if count:
            yield Place(name=name, parameter=parameter, shape=shape, offset=offset, count=count, flat=flat, start=start)


def _replicated(optimizer: Any, parameter: Any) -> tuple[int, int, torch.Tensor, int]:
    """Offset and count in the parameter, the flat master that holds them, and where they start in it."""
    return 0, parameter.numel(), parameter, 0


def _in_flat_groups(optimizer: Any, parameter: Any) -> tuple[int, int, torch.Tensor, int]:
    mapping = parameter._hp_mapping
    if mapping is None:  # none of it on this rank
        return 0, 0, parameter, 0
    here = mapping.hp_fragment_address
    flat = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
    return mapping.lp_fragment_address.start, here.numel, flat, here.start


def _in_pieces(optimizer: Any, parameter: Any) -> tuple[int, int, torch.Tensor, int]:
    group, start, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
    offset, count = partition(parameter)
    return offset, count, optimizer.fp32_partitioned_groups_flat[group], start


def partition(parameter: Any) -> tuple[int, int]:
    """Offset and number of the entries of a ZeRO-3 parameter on this rank; the last ranks' partitions are padded."""
    size = parameter.partition_numel()
    offset = min(dist.get_rank(parameter.ds_process_group) * size, parameter.ds_numel)
    return offset, min(size, parameter.ds_numel - offset)


def scored_shards(engine: deepspeed.DeepSpeedEngine) -> Iterator[Shard]:
    """The entries that this rank scores: over all ranks each entry of each trained parameter appears exactly once.

    Call it after the backward of the last micro batch and before the optimizer step. At stage 0, where every rank
    holds everything, each takes an equal run of each parameter.
    """
    scale = loss_scale(engine)
    if wait := getattr(engine.optimizer, "_wait_for_offload_copies", None):
        wait()  # offloaded gradients travel to host memory while the backward pass goes on
    for place in places(engine, once=True):
        gradient = _gradient(engine, place)
        if gradient is None:
            continue
        if scale != 1.0:
            gradient = gradient.float() / scale
        weight = place.of(place.flat.data)
        yield Shard(name=place.name, shape=place.shape, offset=place.offset, weight=weight, gradient=gradient)


def _gradient(engine: deepspeed.DeepSpeedEngine, place: Place) -> torch.Tensor | None:
    """The reduced gradient of the run, 1-D, with the loss scale in it."""
    stage, parameter = engine.zero_optimization_stage(), place.parameter
    if stage == 0:
        return None if parameter.grad is None else place.of(parameter.grad)
    if stage == 3:
        return engine.optimizer.get_local_fp32_grad_for_param(parameter).narrow(0, 0, place.count)
    return parameter._hp_mapping.get_lp_grad_fragment(parameter._index_in_param_group).flatten()


def state_shards(engine: deepspeed.DeepSpeedEngine, once: bool = False) -> Iterator[Shard]:
    """The masters and Adam moments that this rank holds (see `places`), as views to be written in place.

    Moments that Adam has not made yet are zeros: before the first step, or without gradients at stage 0.
    """
    states = adam(engine).state
    for place in places(engine, once):
        state, weight = states.get(place.flat, {}), place.of(place.flat.data)
        # Read from the flat state: DeepSpeed links the moments of the first parameter group only.
        moments = (place.of(state[key]) if key in state else torch.zeros_like(weight) for key in MOMENTS)
        yield Shard(name=place.name, shape=place.shape, offset=place.offset, weight=weight, moments=tuple(moments))


def forward_copies(engine: deepspeed.DeepSpeedEngine) -> Iterator[Shard]:
    """What the forward pass reads on this rank, apart from the masters; a mask must reach it as well."""
    if engine.zero_optimization_stage() < 3:
        yield from whole(trained(engine))
        return
    for name, parameter in trained(engine):
        offset, count = partition(parameter)
        if count:
            copy = parameter.ds_tensor.data.view(-1).narrow(0, 0, count)
            yield Shard(name=name, shape=parameter.ds_shape, offset=offset, weight=copy)
        if parameter.data.numel() == parameter.ds_numel:  # small parameters stay gathered
            yield Shard(name=name, shape=parameter.ds_shape, offset=0, weight=parameter.data.view(-1))


def whole(parameters: Iterable[tuple[str, torch.Tensor]]) -> Iterator[Shard]:
    """Parameters of a model without an engine, each as one shard."""
    for name, parameter in parameters:
        yield Shard(name=name, shape=parameter.shape, offset=0, weight=parameter.data.view(-1))


def full_weights(engine: deepspeed.DeepSpeedEngine) -> dict[str, torch.Tensor]:
    """Every trained parameter in fp32 on the CPU, from the masters. All ranks must call it; it is collective."""
    weights = {}
    for name, parameter in trained(engine):
        master = safe_get_full_fp32_param(parameter)
        weights[name] = (parameter.data if master is None else master).detach().float().cpu().clone()
    return weights


def trained(engine: deepspeed.DeepSpeedEngine) -> Iterator[tuple[str, Any]]:
    return ((name, parameter) for name, parameter in engine.module.named_parameters() if parameter.requires_grad)


def adam(engine: deepspeed.DeepSpeedEngine) -> torch.optim.Optimizer:
    """The optimizer that DeepSpeed's own is wrapped around; at stage 0 in float32 there is no wrapper."""
    return engine.optimizer if engine.zero_optimization_stage() == 0 else engine.optimizer.optimizer


def loss_scale(engine: deepspeed.DeepSpeedEngine) -> float:
    """What fp16 multiplies the loss with; 1 in other number formats."""
    return float(getattr(engine.optimizer, "loss_scale", 1.0))


def even_share(count: int) -> tuple[int, int]:
    """Offset and length of this rank's part of `count` entries that every rank holds."""
    share = -(-count // ranks.world_size())
    offset = min(ranks.rank() * share, count)
    return offset, min(share, count - offset)


def runs(values: torch.Tensor, offset: int, columns: int) -> Iterator[tuple[int, int, torch.Tensor]]:
    """A run [..., count] of a flattened matrix as at most three blocks [..., rows, columns], each with its first row
    and column: a part of one row at either end, whole rows in between."""
    row, column = divmod(offset, columns)
    while values.shape[-1]:
        whole = values.shape[-1] // columns if column == 0 else 0
        width = columns if whole else min(columns - column, values.shape[-1])
        size = max(whole, 1) * width
        yield row, column, values[..., :size].unflatten(-1, (max(whole, 1), width))
        values = values[..., size:]
        row, column = row + max(whole, 1), 0
