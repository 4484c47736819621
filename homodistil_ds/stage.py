"""The loop: train a student, with a teacher and a pruner or without. Every method runs through here."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from homodistil_ds.config import RunConfig
from homodistil_ds.data.batches import Source, TrainBatch
from homodistil_ds.distillation.losses import Inputs
from homodistil_ds.distillation.objective import Objective
from homodistil_ds.errors import HomodistilError
from homodistil_ds.evaluation.figures import mask_heatmap
from homodistil_ds.evaluation.heldout import Forward
from homodistil_ds.models.forward import Activations, Read, headed
from homodistil_ds.models.width import WidthPlan, Widths
from homodistil_ds.pruning import curves
from homodistil_ds.pruning.pruner import Pruner
from homodistil_ds.runtime import carry, guard, pace, ranks
from homodistil_ds.runtime.engine import Engine, dispose, engine_curves, set_learning_rate, take_step
from homodistil_ds.runtime.monitor import Monitor
from homodistil_ds.runtime.shards import state_shards
from homodistil_ds.runtime.watchdog import Watchdog

LESS_STEEP = (
    "Begin anew with a lower --learning_rate or longer --optimizer.warmup, or go on in bf16 or float32 (--resume auto)."
)
SHOWN = 3  # losses on the console: the total and the first terms
MOST_OVERFLOWS = 40  # of one step in a row; a loss scale of 2^32 is at 1 by then


@dataclass(kw_only=True)
class Stage:
    """Training with a fixed teacher and objective for `config.steps` optimizer steps.

    `build(widths)` makes an engine around a blank student, for cuts; `milestones` maps a step to the physical widths
    that the student is cut to after it. `save(step)` writes a checkpoint and returns its folder. A student that is not
    pruned has `fixed_widths` and `head_origins`: per layer, the teacher's head behind each of its own; a pruned
    student's come from its masks. `layer_map` names the teacher's layer behind each of a shallower student's.
    After the steps in `leaves` the student, as it is then, is left behind: `leave(step)` writes it.
    `runs` is what the forward pass is told of each student that shares the engine's weights; one, told nothing, unless
    the engine holds several.
    `measure(student, teacher)` gives the figures of what is not trained on. `loop` is what `run` took on this rank
    (`methods.running` notes it), `measured` the part of it that `evaluate` took, `ranked` what ranking neurons took
    before it; `peak_bytes` is the most memory that a rank held in it.
    """

    config: RunConfig
    engine: Engine
    plan: WidthPlan
    teacher: torch.nn.Module | None  # models.forward.Teacher, or the engine around one
    objective: Objective
    batches: Source
    measure: Callable[[Forward, Forward | None], dict[str, float]]
    monitor: Monitor
    pruner: Pruner | None
    build: Callable[[Widths], Engine]
    save: Callable[[int], Path]
    watchdog: Watchdog
    fixed_widths: Widths
    milestones: Mapping[int, Widths] = field(default_factory=dict)
    runs: Sequence[Mapping[str, Any]] = ({},)
    leaves: Collection[int] = ()
    leave: Callable[[int], None] | None = None
    head_origins: list[torch.Tensor] = field(default_factory=list)
    layer_map: tuple[int, ...] = ()
    first_step: int = 1
    history: list[dict[str, float]] = field(default_factory=list)
    peak_bytes: int = 0
    loop: pace.Spent = field(default_factory=pace.Spent)
    measured: pace.Spent = field(default_factory=pace.Spent)
    ranked: pace.Spent = field(default_factory=pace.Spent)
    pace: pace.Pace = field(default_factory=pace.Pace)
    _heads: tuple[list[torch.Tensor], list[torch.Tensor]] | None = None

    def run(self) -> None:
        """Train; `history` gains one row of losses and widths per log line and per held-out evaluation.

        The first evaluation is that of the student as it starts, unless only the end is evaluated.

        Raises HomodistilError: STOP-SIGNAL after a save, if this job was asked to stop.
        """
        if stop := ranks.agree_to_stop(guard.reason()):
            raise stopped(stop, self.first_step - 1, "Nothing had been done since the start.")
        if self.first_step == 1 and self.config.eval_interval > 0:
            self.evaluate(0)
        logged, logged_at = self.first_step - 1, time.perf_counter()
        for step in range(self.first_step, self.config.steps + 1):
            terms = self.train(step)
            if self.pruner and self.pruner.prune(self.engine, step):
                self._heads = None
                curves.draw(self.monitor, step, self.pruner)
            if step in self.milestones:
                self.cut(step, self.milestones[step])
                self._heads = None
            if step in self.leaves and self.leave is not None:
                self.leave(step)
                self.watchdog.beat(step)
            if self.due(step, self.config.log_interval) or step == 1:
                self.log(step, terms, (step - logged) / (time.perf_counter() - logged_at))
                logged, logged_at = step, time.perf_counter()
            if self.due(step, self.config.eval_interval):
                self.evaluate(step)
            if stop := ranks.agree_to_stop(guard.reason()):
                self.watchdog.agreed()
                raise stopped(stop, step, f"Saved in {self.save(step)}.")
            self.watchdog.beat(step)
            if self.due(step, self.config.save_interval):
                self.save(step)
                self.watchdog.beat(step)

    def due(self, step: int, interval: int) -> bool:
        return step == self.config.steps or (interval > 0 and step % interval == 0)

    def train(self, step: int) -> list[dict[str, torch.Tensor]]:
        """One optimizer step; where fp16 gradients overflowed it is done again, with the lower loss scale.

        Returns the losses of each micro batch.
        """
        for _ in range(MOST_OVERFLOWS):
            terms, score, moved = self.attempt(step)
            if moved:
                if self.pruner:
                    self.pruner.record(score)
                return terms
            if not self.engine.fp16_enabled():
                break
        raise HomodistilError(
            "NUM-GRADIENT",
            f"step {step}: a gradient is not a finite number",
            LESS_STEEP,
            "The weights of the step before are untouched; checkpoints written so far are valid.",
            step - 1,
        )

    def attempt(self, step: int) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor | None, bool]:
        """Forward and backward of every micro batch, scores, optimizer step: losses, scores, whether weights moved."""
        set_learning_rate(self.engine, learning_rate(self.config, step))
        terms, score, moved = [], None, False
        # Dropout draws by step and rank, so that a run that was resumed draws what it would have drawn.
        torch.manual_seed(((self.config.seed * 1_000_003 + step) * 65_537 + ranks.rank()) % 2**63)
        for batch in self.pace.fetched(self.batches.micro_batches(step)):
            batch = batch.to(ranks.device())
            with self.pace.forward():
                taught = self.teach(*batch.taught, reads=self.objective.teacher_reads())
            for told in self.runs:
                terms.append(self.backward(batch, told, taught))
                if self.pruner and self.engine.is_gradient_accumulation_boundary():
                    score = self.pruner.score(self.engine, step)
                moved = take_step(self.engine)
                self.watchdog.beat(step)
        return terms, score, moved

    def backward(self, batch: TrainBatch, told: Mapping[str, Any], taught: Activations) -> dict[str, torch.Tensor]:
        """Losses of one student on one micro batch, after their backward pass."""
        places, origins = self.heads()
        with self.pace.forward():
            own = self.headed(self.engine, self.engine(*batch.shown, **told))
            total, parts = self.objective(
                Inputs(
                    student=own,
                    teacher=taught,
                    labels=batch.labels,
                    pairs=batch.pairs,
                    student_heads=places,
                    head_origins=origins,
                    layer_map=self.layer_map,
                    **self.objective.settings,
                )
            )
        self.engine.backward(total)
        return {"total": total.detach(), **parts}

    def cut(self, step: int, widths: Widths) -> None:
        """Take masked neurons out of the running student: the same losses from smaller matrices."""
        assert self.pruner is not None
        started, before = time.perf_counter(), self.pruner.masks.physical()
        pieces, progress = self.pruner.remove(state_shards(self.engine), widths), carry.progress(self.engine)
        dispose(self.engine)
        del self.engine
        self.engine = self.build(widths)
        carry.put(self.engine, lambda wanted: carry.exchange(pieces, wanted), progress)
        self.pruner.apply(self.engine)
        self.batches = self.batches.split_by(self.engine.train_micro_batch_size_per_gpu())
        seconds = time.perf_counter() - started
        self.monitor.scalars(step, {"pruning/cut_s": seconds})
        self.watchdog.beat(step)
        stage = self.engine.zero_optimization_stage()
        self.monitor.line(f"cut at step {step}: {before} to {widths}, ZeRO stage {stage}, {seconds:.1f} s")

    @torch.no_grad()
    def teach(self, *shown: torch.Tensor, reads: frozenset[Read]) -> Activations:
        """The teacher's activations, without gradients and only what is read; empty without a teacher."""
        if self.teacher is None:
            return Activations()
        with self.precision():
            return self.headed(self.teacher, self.teacher(*shown, reads=reads))

    def headed(self, model: torch.nn.Module, found: Activations) -> Activations:
        """`found` with its head where logits are made in parts: after the forward pass, in its precision."""
        found = headed(model, found)
        head = found.head
        if head is None or not self.engine.torch_autocast_enabled():
            return found

        def cast(states: torch.Tensor) -> torch.Tensor:
            with self.precision():
                return head(states)

        return found._replace(head=cast, matrix=None)

    def precision(self) -> AbstractContextManager[None]:
        """The autocast that DeepSpeed puts around the student, for the teacher."""
        if self.engine.torch_autocast_enabled():
            return torch.autocast(ranks.device().type, dtype=self.engine.torch_autocast_dtype())
        return nullcontext()

    def heads(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Of each layer the places of the kept heads in the student's own maps, which masked heads are still part of
        until a cut, and the teacher's heads behind them: on the device, until heads leave."""
        if self._heads is None:
            masks = self.pruner.masks if self.pruner else None
            origins = masks.head_origins() if masks else self.head_origins
            places = masks.head_places() if masks else [torch.arange(len(heads)) for heads in origins]
            self._heads = (
                [heads.to(ranks.device()) for heads in places],
                [heads.to(ranks.device()) for heads in origins],
            )
        return self._heads

    def widths(self) -> Widths:
        return self.pruner.masks.widths() if self.pruner else self.fixed_widths

    def kept(self) -> dict[str, int]:
        """The widths under names that no loss term has."""
        return {f"kept_{name}": size for name, size in vars(self.widths()).items()}

    def log(self, step: int, terms: list[dict[str, torch.Tensor]], steps_per_second: float) -> None:
        """Means of the step's losses over micro batches and ranks, and what the machine does."""
        names = list(terms[0])
        means = ranks.mean(torch.stack([torch.stack([term[name] for term in terms]).float().mean() for name in names]))
        losses = dict(zip(names, means.tolist(), strict=True))
        if not all(map(torch.isfinite, means)):
            raise HomodistilError(
                "NUM-LOSS",
                f"step {step}: the loss is not a finite number ({losses})",
                LESS_STEEP,
                "Checkpoints written before this step are valid.",
                step,
            )
        rate = self.batches.tokens_per_step * steps_per_second
        widths = self.widths()
        self.history.append({"step": step, **losses, **self.kept()})
        self.monitor.scalars(step, {f"loss/{name}": value for name, value in losses.items()})
        self.monitor.scalars(step, {f"pruning/{name}": size for name, size in self.kept().items()})
        self.monitor.scalars(step, {"optim/lr": learning_rate(self.config, step), "perf/tokens_s": rate})
        self.monitor.scalars(step, engine_curves(self.engine))
        shown = dict(list(losses.items())[:SHOWN])
        self.monitor.progress(step, {**shown, "widths": str(widths), "tok/s": rate})
        self.log_pace(step)

    def log_pace(self, step: int) -> None:
        """Each rank's own seconds; a line on one that has been slow for some time."""
        rows = ranks.rows(self.pace.take())
        self.monitor.scalars(step, pace.curves(rows))
        if (slow := self.pace.slow_rank(rows)) is not None:
            self.monitor.line(pace.warning(slow, ranks.told_by(slow, ranks.host()), rows))

    def evaluate(self, step: int) -> None:
        """What is measured on text that is not trained on, in the precision of training."""

        def own(*shown: torch.Tensor, **told: Any) -> Activations:
            self.watchdog.beat(step)
            return self.headed(self.engine, self.engine(*shown, reads=(self.objective.logits,), **told))

        def taught(*shown: torch.Tensor) -> Activations:
            return self.teach(*shown, reads=frozenset({self.objective.logits}))

        self.measured.begin()
        self.engine.eval()
        values = self.measure(own, taught if self.teacher is not None else None)
        self.engine.train()
        self.measured.lap()
        self.history.append({"step": step, **values, **self.kept()})
        self.monitor.scalars(step, {f"heldout/{name}": value for name, value in values.items()})
        text = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        self.monitor.line(f"held-out at step {step}: {text}")
        if self.pruner is not None:
            kept = {group: mask.numpy() for group, mask in self.pruner.masks.kept.items()}
            self.monitor.figure(step, "masks", mask_heatmap(kept))


def stopped(reason: str, step: int, kept: str) -> HomodistilError:
    remedy = "Go on with the same command and --resume auto." if step else "Start the same command again."
    return HomodistilError("STOP-SIGNAL", f"stopped after step {step}: {reason}", remedy, kept, step)


def learning_rate(config: RunConfig, step: int) -> float:
    """Linear warm-up to the peak, then linear decay to 0 after the last step; `step` counts from 1."""
    warmup = max(1, round(config.optimizer.warmup * config.steps))
    if step <= warmup:
        return config.learning_rate * step / warmup
    return config.learning_rate * (config.steps - step + 1) / (config.steps - warmup + 1)
