"""Training state that outlives its engine: masters, moments and counts, out of one engine and into another.

A piece is a run of one parameter, flattened, wherever it lies; so the engine that takes the state up may be of another
ZeRO stage or on another number of ranks. Reads and writes DeepSpeed's internals, as runtime/shards.py does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from homodistil_ds.runtime import ranks
from homodistil_ds.runtime.shards import MOMENTS, adam, places, state_shards

# What moves of DeepSpeed's loss scale; how it moves is the configuration's.
SCALE = {"cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis"}
Run = tuple[str, int, int]  # parameter name, offset in the flattened parameter, number of entries
Overlap = tuple[int, int, int, int, int]  # held index, start in it, count, wanted index, start in it
Read = Callable[[list[Run]], list[torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """`values` [3, count] float32: master weights and both Adam moments of a run of a parameter."""

    name: str
    offset: int
    values: torch.Tensor

    @property
    def run(self) -> Run:
        return self.name, self.offset, self.values.shape[1]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far an engine is: Adam's step, DeepSpeed's counts, and where the fp16 loss scale is."""

    adam_step: int
    global_steps: int
    skipped_steps: int
    loss_scaler: dict[str, float]


def take(engine: deepspeed.DeepSpeedEngine) -> list[Piece]:
    """Copies in host memory of the pieces this rank holds, after an optimizer step; over all ranks every entry appears
    once."""
    return [
        Piece(
            name=shard.name,
            offset=shard.offset,
            values=torch.stack([part.cpu() for part in (shard.weight, *shard.moments)]),
        )
        for shard in state_shards(engine, once=True)
    ]


def progress(engine: deepspeed.DeepSpeedEngine) -> Progress:
    # DeepSpeed's FusedAdam counts in the state of a group's last parameter only.
    steps = [int(state["step"]) for state in adam(engine).state.values() if "step" in state]
    steps += [int(group["step"]) for group in adam(engine).param_groups if "step" in group]  # apex counts here
    return Progress(
        adam_step=max(steps, default=0),
        global_steps=engine.global_steps,
        skipped_steps=engine.skipped_steps,
        loss_scaler={name: value for name, value in moving_scale(engine).items() if name in SCALE},
    )


def put(engine: deepspeed.DeepSpeedEngine, read: Read, progress: Progress) -> None:
    """Give an engine that has made no step yet the state that `read` returns for the runs on each rank.

    All ranks call it. `read` gets the runs that this rank wants and returns their values [3, count] in that order.
    """
    here = list(places(engine))
    base = adam(engine)
    torch_adam = isinstance(base, torch.optim.AdamW)
    for flat in {id(place.flat): place.flat for place in here}.values():
        step = torch.tensor(float(progress.adam_step), device=flat.device) if torch_adam else progress.adam_step
        base.state[flat] = {"step": step, **{key: torch.zeros_like(flat.data) for key in MOMENTS}}
    for group in base.param_groups:
        if type(base).__module__.startswith("apex."):
            group["step"] = progress.adam_step
    values = read([(place.name, place.offset, place.count) for place in here])
    for place, (weight, *moments) in zip(here, values, strict=True):
        place.of(place.flat.data).copy_(weight)
        for key, moment in zip(MOMENTS, moments, strict=True):
            place.of(base.state[place.flat][key]).copy_(moment)
    refresh_forward_copies(engine)
    engine.global_steps, engine.skipped_steps = progress.global_steps, progress.skipped_steps
    engine.global_samples = progress.global_steps * engine.train_batch_size()
    engine.micro_steps = progress.global_steps * engine.gradient_accumulation_steps()
    if progress.loss_scaler.keys() >= SCALE:  # older checkpoints hold the fixed scale of other precisions too
        moving_scale(engine).update({name: progress.loss_scaler[name] for name in SCALE})


def refresh_forward_copies(engine: deepspeed.DeepSpeedEngine) -> None:
    """Make the forward pass read what the masters hold. All ranks call it."""
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage in (1, 2):
        optimizer.update_lp_params()
    elif stage == 3:
        optimizer._partition_all_parameters()
        for group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


def moving_scale(engine: deepspeed.DeepSpeedEngine) -> dict[str, Any]:
    """The fields of a loss scale that moves, to be read and written; of one that stands still, and without one, of
    nothing."""
    fields = getattr(getattr(engine.optimizer, "loss_scaler", None), "__dict__", {})
    return fields if fields.keys() >= SCALE else {}


def exchange(pieces: Sequence[Piece], wanted: list[Run]) -> list[torch.Tensor]:
    """Runs [3, count] that this rank wants, out of the pieces of all ranks; every wanted entry must be in one.

    All ranks call it, also those that want or hold nothing. Either a rank holds all of a run, or no two ranks hold the
    same entry of it. An entry travels once, from its holder to its reader, and one that stays on its rank not at all:
    the result may be a view of a piece.
    """
    runs = [piece.run for piece in pieces]
    found: list[list[tuple[int, torch.Tensor]]] = [[] for _ in wanted]
    lacking = [count for _, _, count in wanted]
    for index, start, count, place, first in overlaps(runs, wanted):
        found[place].append((first, pieces[index].values[:, start : start + count]))
        lacking[place] -= count
    if ranks.world_size() > 1:
        asked = [
            (name, offset, count if lack else 0) for (name, offset, count), lack in zip(wanted, lacking, strict=True)
        ]
        for place, first, values in _from_others(pieces, runs, asked):
            found[place].append((first, values))
    joined = []
    for parts in found:
        in_order = [values for _, values in sorted(parts, key=lambda part: part[0])]
        device = in_order[0].device  # masters may lie in host memory, what others sent on the GPU
        joined.append(in_order[0] if len(in_order) == 1 else torch.cat([v.to(device) for v in in_order], dim=1))
    return joined


def _from_others(
    pieces: Sequence[Piece], runs: list[Run], wanted: list[Run]
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """One all-to-all: what this rank wants and others hold, as (wanted index, start in it, values [3, count])."""
    me = ranks.rank()
    held, asked = zip(*ranks.everyone((runs, wanted)), strict=True)
    sent = [
        [pieces[index].values[:, start : start + count].flatten() for index, start, count, *_ in overlaps(runs, others)]
        if to != me
        else []
        for to, others in enumerate(asked)
    ]
    due = [overlaps(theirs, wanted) if source != me else [] for source, theirs in enumerate(held)]
    counts = [sum(3 * count for _, _, count, *_ in parts) for parts in due]
    flat = [part for parts in sent for part in parts]
    outgoing = (torch.cat(flat) if flat else torch.zeros(0)).to(ranks.device())
    incoming = outgoing.new_empty(sum(counts))
    dist.all_to_all_single(incoming, outgoing, counts, [sum(map(len, parts)) for parts in sent])
    at = 0
    for parts in due:
        for _, _, count, place, first in parts:
            yield place, first, incoming[at : at + 3 * count].view(3, count)
            at += 3 * count


def overlaps(held: Sequence[Run], wanted: Sequence[Run]) -> list[Overlap]:
    """Where held and wanted runs meet, in wanted order."""
    by_name: dict[str, list[tuple[int, int, int]]] = {}
    for index, (name, offset, count) in enumerate(held):
        by_name.setdefault(name, []).append((index, offset, count))
    found = []
    for place, (name, offset, count) in enumerate(wanted):
        for index, start, length in by_name.get(name, []):
            first, last = max(offset, start), min(offset + count, start + length)
            if first < last:
                found.append((index, first - start, last - first, place, first - offset))
    return found
