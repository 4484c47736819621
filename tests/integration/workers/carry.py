"""Training state by parameter name: gathered from one engine, cut, put into another (fp32, ZeRO 0 to 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from tiny import by_name, link_moments

from homodistil_ds.models.width import WidthPlan
from homodistil_ds.pruning.shrink import cut_tensor
from homodistil_ds.runtime.engine import Engine
from homodistil_ds.runtime.shards import MOMENTS

COUNTERS = ("global_steps", "global_samples", "micro_steps", "skipped_steps")


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Full tensors of every trained parameter, the same on every rank, and the engine's counts."""

    masters: Mapping[str, torch.Tensor]
    moments: Mapping[str, tuple[torch.Tensor, ...]]
    adam_step: int
    counters: Mapping[str, int]
    learning_rates: list[float]


def gather(engine: Engine) -> TrainingState:
    """After an optimizer step; all ranks call it."""
    adam = engine.optimizer
    if engine.zero_optimization_stage() == 0:
        masters = {name: parameter.detach().clone() for name, parameter in by_name(engine).items()}
        moments = {
            name: tuple(adam.state[parameter][key].clone() for key in MOMENTS)
            for name, parameter in by_name(engine).items()
        }
        states = adam.state
    else:
        link_moments(engine)
        masters = {name: safe_get_full_fp32_param(parameter).clone() for name, parameter in by_name(engine).items()}
        moments = {
            name: tuple(safe_get_full_optimizer_state(parameter, key).clone() for key in MOMENTS)
            for name, parameter in by_name(engine).items()
        }
        states = adam.optimizer.state
    return TrainingState(
        masters=masters,
        moments=moments,
        # FusedAdam counts in the state of a group's last parameter only.
        adam_step=max(int(state["step"]) for state in states.values()),
        counters={name: getattr(engine, name) for name in COUNTERS},
        learning_rates=[group["lr"] for group in adam.param_groups],
    )


def cut_state(state: TrainingState, plan: WidthPlan, kept: Mapping[str, torch.Tensor]) -> TrainingState:
    """The kept slices of masters and moments."""
    dims = {name: plan.dims(name) for name in state.masters}
    return TrainingState(
        masters={name: cut_tensor(tensor, dims[name], kept) for name, tensor in state.masters.items()},
        moments={
            name: tuple(cut_tensor(moment, dims[name], kept) for moment in both) for name, both in state.moments.items()
        },
        adam_step=state.adam_step,
        counters=state.counters,
        learning_rates=state.learning_rates,
    )


def inject(engine: Engine, state: TrainingState) -> None:
    """Into an engine that has made no step yet; its forward copies and masters both take the state's weights."""
    adam = engine.optimizer
    parameters = by_name(engine)
    assert parameters.keys() == state.masters.keys()
    for name, parameter in parameters.items():
        parameter.data.copy_(state.masters[name])
    if engine.zero_optimization_stage() == 0:
        for name, parameter in parameters.items():
            moments = {key: moment.clone() for key, moment in zip(MOMENTS, state.moments[name], strict=True)}
            adam.state[parameter] = {"step": state.adam_step, **moments}
    else:
        for flat in adam.single_partition_of_fp32_groups:
            zeros = {key: torch.zeros_like(flat) for key in MOMENTS}
            adam.optimizer.state[flat] = {"step": state.adam_step, **zeros}
        link_moments(engine)
        for name, parameter in parameters.items():
            safe_set_full_fp32_param(parameter, state.masters[name])
            for key, moment in zip(MOMENTS, state.moments[name], strict=True):
                safe_set_full_optimizer_state(parameter, moment, key)
    for name, value in state.counters.items():
        setattr(engine, name, value)
    for group, learning_rate in zip(adam.param_groups, state.learning_rates, strict=True):
        group["lr"] = learning_rate
