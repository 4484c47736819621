"""What this rank owns of every parameter, at ZeRO stage 0, 1 and 2. The only file that reads DeepSpeed's internals.

Bound to deepspeed 0.19: the tests compare every slice with the gathered tensors of DeepSpeed's public functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param

from homodistil_ds.runtime import ranks

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A run of entries of one parameter, flattened; `weight`, `gradient` and `moments` are 1-D views of it.

    `weight` is the fp32 master. `gradient` is the one of the global batch (mean over ranks and accumulation steps,
    unclipped), None outside the window between the last backward and the optimizer step.
    """

    name: str
    shape: torch.Size
    offset: int
    weight: torch.Tensor
    gradient: torch.Tensor | None
    moments: tuple[torch.Tensor, ...]


def scored_shards(engine: deepspeed.DeepSpeedEngine) -> Iterator[Shard]:
    """The entries that this rank scores: over all ranks each entry of each trained parameter appears exactly once.

    Call it after the backward of the last micro batch and before the optimizer step. At stage 0, where every rank
    holds everything, each takes an equal run of each parameter.
    """
    for name, parameter in _trained(engine):
        if engine.zero_optimization_stage() == 0:
            if parameter.grad is None:
                continue
            share = -(-parameter.numel() // ranks.world_size())
            offset = min(ranks.rank() * share, parameter.numel())
            count = min(share, parameter.numel() - offset)
            weight = parameter.data.flatten().narrow(0, offset, count)
            gradient = parameter.grad.flatten().narrow(0, offset, count)
            yield Shard(name=name, shape=parameter.shape, offset=offset, weight=weight, gradient=gradient, moments=())
        elif parameter._hp_mapping is not None:
            mapping = parameter._hp_mapping
            gradient = mapping.get_lp_grad_fragment(parameter._index_in_param_group)
            yield Shard(
                name=name,
                shape=parameter.shape,
                offset=mapping.lp_fragment_address.start,
                weight=mapping.hp_fragment.data,
                gradient=gradient.flatten(),
                moments=(),
            )


def state_shards(engine: deepspeed.DeepSpeedEngine) -> Iterator[Shard]:
    """The masters and Adam moments that this rank owns, as views to be written in place; moments exist after a step."""
    for name, parameter in _trained(engine):
        if engine.zero_optimization_stage() == 0:
            state = engine.optimizer.state.get(parameter, {})
            moments = tuple(state[key].view(-1) for key in MOMENTS if key in state)
            yield Shard(
                name=name,
                shape=parameter.shape,
                offset=0,
                weight=parameter.data.view(-1),
                gradient=None,
                moments=moments,
            )
        elif parameter._hp_mapping is not None:
            mapping = parameter._hp_mapping
            flat = engine.optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
            state = engine.optimizer.optimizer.state.get(flat, {})
            where = mapping.hp_fragment_address
            # Read from the flat state: DeepSpeed links the moments of the first parameter group only.
            moments = tuple(state[key].narrow(0, where.start, where.numel) for key in MOMENTS if key in state)
            yield Shard(
                name=name,
                shape=parameter.shape,
                offset=mapping.lp_fragment_address.start,
                weight=mapping.hp_fragment.data,
                gradient=None,
                moments=moments,
            )


def full_weights(engine: deepspeed.DeepSpeedEngine) -> dict[str, torch.Tensor]:
    """Every trained parameter in fp32 on the CPU, from the masters. All ranks must call it; it is collective."""
    weights = {}
    for name, parameter in _trained(engine):
        master = safe_get_full_fp32_param(parameter)
        weights[name] = (parameter.data if master is None else master).detach().float().cpu().clone()
    return weights


def forward_copies(engine: deepspeed.DeepSpeedEngine) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and full tensor of what the forward pass reads, on this rank; a mask must reach it as well as the master."""
    for name, parameter in _trained(engine):
        yield name, parameter.data


def _trained(engine: deepspeed.DeepSpeedEngine) -> Iterator[tuple[str, Any]]:
    """DeepSpeed hangs attributes of its own on parameters; hence Any."""
    return ((name, parameter) for name, parameter in engine.module.named_parameters() if parameter.requires_grad)
