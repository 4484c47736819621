"""What the workers share: their settings, and a tiny run put together as the methods do it. Runs under torchrun."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from homodistil_ds.config import LossConfig, OptimizerConfig, RunConfig
from homodistil_ds.data.batches import Batches
from homodistil_ds.data.corpus import Order
from homodistil_ds.data.masking import masking_for
from homodistil_ds.data.prepare import prepare
from homodistil_ds.distillation.objective import Objective
from homodistil_ds.evaluation.heldout import measure_on
from homodistil_ds.models.families import plan_for
from homodistil_ds.models.forward import Student, Teacher
from homodistil_ds.models.loading import load_teacher, twin, without_dropout
from homodistil_ds.models.width import WidthPlan, Widths
from homodistil_ds.pruning import shrink
from homodistil_ds.pruning.pruner import Pruner
from homodistil_ds.pruning.schedule import WidthSchedule
from homodistil_ds.runtime import ds_config, engine, ranks
from homodistil_ds.runtime.engine import Engine
from homodistil_ds.runtime.monitor import Monitor
from homodistil_ds.runtime.watchdog import Watchdog
from homodistil_ds.stage import Stage

GLOBAL_BATCH = 16
SEQUENCE_LENGTH = 32


@dataclass(kw_only=True)
class Tiny:
    """The teacher, the data and the objective (all five terms) of every stage in a worker."""

    settings: dict[str, Any]
    teacher: Teacher
    plan: WidthPlan
    objective: Objective
    batches: Batches

    def student(self, noise: float = 0.0) -> Student:
        """A twin of the teacher; with noise, which is the same on all ranks, it differs from the teacher everywhere."""
        model = twin(self.teacher.model, self.plan).requires_grad_(True)
        student = self.trainable(model)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
        return student

    def trainable(self, model: PreTrainedModel) -> Student:
        reads = self.objective.student_reads()
        return Student(model, self.plan.family, reads, teacher_hidden=self.plan.full.hidden)

    def blank(self, widths: Widths) -> Student:
        """A student of no particular weights at physical widths."""
        return self.trainable(shrink.blank(self.teacher.model, self.plan, widths).requires_grad_(True))

    def engine(
        self,
        student: Student,
        stage: int,
        accumulation: int = 1,
        optimizer: OptimizerConfig | None = None,
        offload: bool = False,
        precision: str | None = None,
    ) -> Engine:
        """An engine in float32 or the named precision. At stage 3 every parameter is in pieces, small ones too, and
        `offload` offloads weights as well as Adam's states."""
        micro = GLOBAL_BATCH // ranks.world_size() // accumulation
        zero: dict[str, Any] = {"stage": stage}
        if stage == 3:
            zero["stage3_param_persistence_threshold"] = 0
        if offload:
            zero["offload_optimizer"] = {"device": "cpu"}
            if stage == 3:
                zero["offload_param"] = {"device": "cpu"}
        machine: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": micro,
            "zero_optimization": zero,
            "gradient_clipping": 1.0,
        }
        if precision:
            machine[precision] = {"enabled": True}
        if precision == "fp16":
            machine["fp16"] |= {"initial_scale_power": 24, "hysteresis": 1}  # overflows at first
        machine = ds_config.with_batch_sizes(machine, GLOBAL_BATCH, ranks.world_size())
        assert machine["gradient_accumulation_steps"] == accumulation
        self.batches = batches_of(self.batches, micro)
        return engine.initialize(student, optimizer or OptimizerConfig(), 1e-3, machine, print)

    def stage(
        self,
        trained: Engine,
        steps: int,
        pruner: Pruner | None = None,
        first_step: int = 1,
        widths: Widths | None = None,
        head_origins: list[torch.Tensor] | None = None,
        milestones: Mapping[int, Widths] | None = None,
        build: Callable[[Widths], Engine] | None = None,
    ) -> Stage:
        """The package's own loop over these parts; its history has one row of losses per step."""
        config = RunConfig(
            steps=steps,
            global_batch_size=GLOBAL_BATCH,
            sequence_length=SEQUENCE_LENGTH,
            log_interval=1,
            eval_interval=0,
        )
        return Stage(
            config=config,
            engine=trained,
            plan=self.plan,
            teacher=self.teacher,
            objective=self.objective,
            batches=self.batches,
            measure=measure_on(self.batches),
            monitor=Monitor(Path(self.settings["out"]), steps, enabled=False),
            pruner=pruner,
            build=build or refuse,
            save=lambda step: Path(self.settings["out"]),
            watchdog=Watchdog(600, ranks.rank(), lambda *_: None),
            milestones=milestones or {},
            fixed_widths=widths or self.plan.full,
            head_origins=head_origins or [],
            first_step=first_step,
        )

    def schedule(self, target: Widths, end: int) -> WidthSchedule:
        """An event after every step up to `end`."""
        return WidthSchedule(full=self.plan.full, target=target, start=0, end=end, interval=1)

    def finish(self, result: dict[str, Any]) -> None:
        if ranks.rank() == 0:
            path = Path(self.settings["out"], "result.json")
            path.write_text(json.dumps(result), encoding="utf-8")
        ranks.stop()


def refuse(widths: Widths) -> Engine:
    raise AssertionError("this stage has no milestones")


def start() -> Tiny:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    engine.prepare_op_folder()
    ranks.start()
    source, tokenizer = load_teacher(settings["teacher"])
    plan = plan_for(source.config)
    arguments = ([settings["corpus"]], tokenizer, SEQUENCE_LENGTH, 16, Path(settings["out"], "corpus"))
    ranks.on_first(lambda: prepare(*arguments))
    corpus = prepare(*arguments)
    batches = Batches(
        corpus=corpus,
        prediction=masking_for(tokenizer, plan.fixed["vocab"], 0.15),
        order=Order(len(corpus.train), 0),
        seed=0,
        global_batch=GLOBAL_BATCH,
        micro_batch=GLOBAL_BATCH // ranks.world_size(),
        rank=ranks.rank(),
        world_size=ranks.world_size(),
    )
    objective = Objective(LossConfig(), with_teacher=True)
    return Tiny(
        settings=settings,
        teacher=Teacher(without_dropout(source), plan.family, objective.teacher_reads()),
        plan=plan,
        objective=objective,
        batches=batches,
    )


def batches_of(batches: Batches, micro: int, rank: int | None = None, world_size: int | None = None) -> Batches:
    """The same data in other micro batches, or as another rank sees it."""
    return Batches(
        **vars(batches)
        | {
            "micro_batch": micro,
            "rank": batches.rank if rank is None else rank,
            "world_size": world_size or batches.world_size,
        }
    )


def by_name(trained: Engine) -> dict[str, torch.nn.Parameter]:
    return dict(trained.module.named_parameters())


def link_moments(trained: Engine) -> None:
    """DeepSpeed links the moments of the first parameter group only to its public functions; link them all (ZeRO 1, 2).

    Without it safe_get_full_optimizer_state raises on the rank that owns a parameter and hangs on the others.
    """
    trained.optimizer._hp_optimizer_states_linked = False
    trained.optimizer._lazy_init_hp_params_optimizer_state()
