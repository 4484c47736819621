"""What every method does around its stage: begin or go on from a checkpoint, train under the watchdog, save."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel

from homodistil_ds.evaluation.report import versions
from homodistil_ds.methods.opening import Run
from homodistil_ds.methods.records import record
from homodistil_ds.methods.start import check_masks, is_own, set_aside
from homodistil_ds.models.width import TRAINED_PREFIX, Widths
from homodistil_ds.pruning.pruner import Pruner
from homodistil_ds.runtime import carry, checkpoint_writing, ds_config, guard, memory, ranks
from homodistil_ds.runtime.carry import Progress
from homodistil_ds.runtime.engine import Engine
from homodistil_ds.runtime.pace import Spent
from homodistil_ds.stage import Stage

SPENT = ("loop", "measured", "ranked")  # a stage's seconds, which checkpoints keep


def start_from(
    run: Run, pruner: Pruner | None, build: Callable[[Widths], Engine], first: Callable[[], Engine]
) -> Engine:
    """The engine at the run's beginning, or as the checkpoint left it: shape and masks first, then the tensors."""
    found = run.checkpoint
    if found is None:
        return first()
    if pruner is not None:
        pruner.load_state_dict(ranks.together(found.tensors))
        pruner.events = found.state["events"]
        check_masks(found, pruner.masks.digest())
    engine = build(Widths(**found.state["physical"]))
    carry.put(engine, found.read, Progress(**found.state["progress"]))
    if pruner is not None:
        pruner.apply(engine)
    return engine


def train(run: Run, stage: Stage) -> None:
    """Run the stage from where it stands to its last step."""
    found = run.checkpoint
    if found is not None:
        stage.first_step = found.step + 1
        stage.history = found.state["history"]
        run.started -= found.state.get("wall_seconds", 0.0)
        stage.peak_bytes = found.state.get("peak_bytes", 0)
        for name in filter(found.state.__contains__, SPENT):
            setattr(stage, name, Spent(**found.state[name]))
        run.monitor.line(f"going on after step {found.step}, from {found.folder}")
        # Only now: nothing can refuse this start any more.
        if is_own(found, run.run_dir):
            ranks.on_first(lambda: set_aside(found, run.monitor.line))
    record(run)
    if ranks.rank() == 0:
        guard.watch(*filter(None, (run.run_dir, run.within)))
    guard.defer()
    memory.forget_peak()
    stage.loop.begin()
    with stage.watchdog:
        stage.run()
    guard.act_at_once()  # the last checkpoint is written, and what follows can be done again
    stage.loop.lap()
    stage.peak_bytes = peak_bytes(stage)


def peak_bytes(stage: Stage) -> int:
    """The most that a rank has held in the loop so far, over all starts. All ranks call it."""
    return max(stage.peak_bytes, -ranks.smallest(-memory.peak_bytes()))


def fill(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> None:
    """Move the gathered weights of a trained student into a model of its shape; `weights` is used up.

    Both at once would be in memory twice, which counts at a large student.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights.pop(TRAINED_PREFIX + name))


def saved(run: Run, stage: Stage, step: int, more: Mapping[str, torch.Tensor] | None = None) -> Path:
    """Write a checkpoint after `step`, with `more` tensors that all ranks have; all call it. Returns its folder."""
    pruner = stage.pruner
    stage.loop.lap()
    state = {
        "step": step,
        "physical": vars(pruner.masks.physical() if pruner else stage.widths()),
        "widths": vars(stage.widths()),
        "full": vars(stage.plan.full),
        "model_type": stage.plan.family.model_type,
        "mask_digest": pruner.masks.digest() if pruner else "",
        "events": pruner.events if pruner else [],
        "progress": dataclasses.asdict(carry.progress(stage.engine)),
        "history": stage.history,
        "wall_seconds": time.perf_counter() - run.started,
        "peak_bytes": peak_bytes(stage),
        **{name: dataclasses.asdict(getattr(stage, name)) for name in SPENT},
        "config": dataclasses.asdict(run.config),
        "corpus": run.fingerprint,
        "sequences_seen": step * run.config.global_batch_size,
        "world_size": ranks.world_size(),
        "zero_stage": stage.engine.zero_optimization_stage(),
        "precision": ds_config.precision(run.ds_config),
        "versions": versions(),
    }
    tensors = dict(more or {}) | (pruner.state_dict() if pruner else {})
    limit = run.config.save_total_limit
    folder = checkpoint_writing.save(run.run_dir / "checkpoints", state, tensors, carry.take(stage.engine), limit)
    stage.watchdog.kept = f"The last checkpoint is {folder}."
    run.monitor.line(f"saved {folder}")
    return folder
