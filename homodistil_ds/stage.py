"""The loop: train a student on a corpus, with a teacher and a pruner or without. Every method runs through here."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import psutil
import torch
from transformers import PreTrainedModel

from homodistil_ds.config import RunConfig
from homodistil_ds.data.batches import Batches
from homodistil_ds.distillation.losses import Inputs
from homodistil_ds.distillation.objective import Objective
from homodistil_ds.errors import HomodistilError
from homodistil_ds.evaluation.figures import mask_heatmap
from homodistil_ds.evaluation.heldout import evaluate
from homodistil_ds.models.forward import Activations, Read, forward
from homodistil_ds.models.width import WidthPlan, Widths
from homodistil_ds.pruning.pruner import Pruner
from homodistil_ds.runtime import ranks
from homodistil_ds.runtime.engine import Engine, set_learning_rate
from homodistil_ds.runtime.monitor import Monitor


@dataclass(kw_only=True)
class Stage:
    """Training with a fixed teacher and objective for `config.steps` optimizer steps.

    `save(step)` writes a checkpoint. A student that is not pruned has `fixed_widths` and `head_origins`: per layer, the
    teacher's head behind each of its own; a pruned student's come from its masks.
    """

    config: RunConfig
    engine: Engine
    plan: WidthPlan
    teacher: PreTrainedModel | None
    objective: Objective
    batches: Batches
    monitor: Monitor
    pruner: Pruner | None
    save: Callable[[int], None]
    fixed_widths: Widths
    head_origins: list[torch.Tensor] = field(default_factory=list)
    first_step: int = 1
    history: list[dict[str, float]] = field(default_factory=list)

    def run(self) -> None:
        """Train; `history` gains one row of losses and widths per log line and per held-out evaluation."""
        logged, logged_at = self.first_step - 1, time.perf_counter()
        for step in range(self.first_step, self.config.steps + 1):
            set_learning_rate(self.engine, learning_rate(self.config, step))
            terms: list[dict[str, torch.Tensor]] = []
            student_heads, head_origins = self.student_heads(), self.origins()
            for batch in self.batches.micro_batches(step):
                batch = batch.to(ranks.device())
                shown = self.teach(batch.input_ids, batch.positions, self.objective.teacher_reads())
                own = self.engine(batch.input_ids, batch.positions)
                total, parts = self.objective(
                    Inputs(
                        student=own,
                        teacher=shown,
                        labels=batch.labels,
                        temperature=self.objective.temperature,
                        student_heads=student_heads,
                        head_origins=head_origins,
                    )
                )
                self.engine.backward(total)
                if self.pruner and self.engine.is_gradient_accumulation_boundary():
                    self.pruner.score(self.engine, step)
                self.engine.step()
                terms.append({"total": total.detach(), **parts})
            pruned = self.pruner is not None and self.pruner.prune(self.engine, step)
            if pruned:
                self.report_pruning(step)
            if step % self.config.log_interval == 0 or step in (1, self.config.steps):
                self.log(step, terms, (step - logged) / (time.perf_counter() - logged_at))
                logged, logged_at = step, time.perf_counter()
            if step == self.config.steps or (self.config.eval_interval and step % self.config.eval_interval == 0):
                self.evaluate(step)
            if step == self.config.steps or (self.config.save_interval and step % self.config.save_interval == 0):
                self.save(step)

    @torch.no_grad()
    def teach(self, input_ids: torch.Tensor, positions: torch.Tensor, reads: frozenset[Read]) -> Activations:
        """The teacher's activations, without gradients and only what is read; empty without a teacher."""
        if self.teacher is None:
            return Activations()
        with self.precision():
            return forward(self.teacher, self.plan.family, input_ids, positions, reads)

    def precision(self) -> AbstractContextManager[None]:
        """The autocast that DeepSpeed puts around the student, for the teacher."""
        if self.engine.torch_autocast_enabled():
            return torch.autocast(ranks.device().type, dtype=self.engine.torch_autocast_dtype())
        return nullcontext()

    def origins(self) -> list[torch.Tensor]:
        return self.pruner.masks.head_origins() if self.pruner else self.head_origins

    def student_heads(self) -> list[torch.Tensor]:
        """Places of the kept heads in the student's own maps: a masked student still has every head of its teacher."""
        return self.origins() if self.pruner else [torch.arange(len(heads)) for heads in self.head_origins]

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
                "Lower --learning_rate, lengthen --optimizer.warmup, or train in bf16 or float32.",
                "Checkpoints written before this step are valid.",
            )
        rate = self.config.global_batch_size * self.config.sequence_length * steps_per_second
        widths = self.widths()
        self.history.append({"step": step, **losses, **self.kept()})
        self.monitor.scalars(step, {f"loss/{name}": value for name, value in losses.items()})
        self.monitor.scalars(
            step,
            {
                "optim/lr": learning_rate(self.config, step),
                "perf/tokens_s": rate,
                "mem/host_rss_mib": psutil.Process().memory_info().rss / 2**20,
                **{f"pruning/{name}": size for name, size in self.kept().items()},
            },
        )
        norm = self.engine.get_global_grad_norm()
        if norm is not None:  # DeepSpeed keeps none at stage 0
            self.monitor.scalars(step, {"optim/grad_norm": float(norm)})
        if torch.cuda.is_available():
            self.monitor.scalars(step, {"mem/allocated_mib": torch.cuda.max_memory_allocated() / 2**20})
        shown = {name: value for name, value in losses.items() if name in ("total", "mlm", "kl")}
        self.monitor.progress(step, {**shown, "widths": str(widths), "tok/s": rate})

    def evaluate(self, step: int) -> None:
        """Held-out loss and discrepancy, in the precision of training."""

        def own(input_ids: torch.Tensor, positions: torch.Tensor) -> Activations:
            return self.engine(input_ids, positions, ("logits",))

        def shown(input_ids: torch.Tensor, positions: torch.Tensor) -> Activations:
            return self.teach(input_ids, positions, frozenset({"logits"}))

        self.engine.eval()
        result = evaluate(own, shown if self.teacher is not None else None, self.batches.held_out())
        self.engine.train()
        values = {"heldout_loss": result.loss}
        if result.discrepancy_kl is not None:
            values["discrepancy_kl"] = result.discrepancy_kl
        self.history.append({"step": step, **values, **self.kept()})
        self.monitor.scalars(step, {f"heldout/{name}": value for name, value in values.items()})
        text = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        self.monitor.line(f"held-out at step {step}: {text} nats")
        if self.pruner is not None:
            kept = {group: mask.numpy() for group, mask in self.pruner.masks.kept.items()}
            self.monitor.figure(step, "masks", mask_heatmap(kept))

    def report_pruning(self, step: int) -> None:
        """Kept fractions, quantiles of the importance and the digest that the ranks agreed on."""
        assert self.pruner is not None
        self.monitor.scalars(step, {f"kept/{name}": value for name, value in self.pruner.masks.fractions().items()})
        for group, values in self.pruner.importance.values().items():
            kept = values[self.pruner.masks.kept[group]]
            quantiles = torch.quantile(kept, torch.tensor([0.1, 0.5, 0.9])).tolist()
            names = (f"scores_p10/{group}", f"scores_p50/{group}", f"scores_p90/{group}")
            self.monitor.scalars(step, dict(zip(names, quantiles, strict=True)))
            if group == "hidden":
                self.monitor.histogram(step, "scores/hidden", kept)
        self.monitor.scalars(step, {"pruning/agreements": self.pruner.agreements})


def learning_rate(config: RunConfig, step: int) -> float:
    """Linear warm-up to the peak, then linear decay to 0 after the last step; `step` counts from 1."""
    warmup = max(1, round(config.optimizer.warmup * config.steps))
    if step <= warmup:
        return config.learning_rate * step / warmup
    return config.learning_rate * (config.steps - step + 1) / (config.steps - warmup + 1)
