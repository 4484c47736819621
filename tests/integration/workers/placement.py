"""Every teacher placement against the replicated one, and students of every ZeRO stage beside them.

Writes: the largest difference of activations per placement, the losses of short runs per stage and placement.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from homodistil_ds.config import RunConfig, StudentConfig
from homodistil_ds.distillation.objective import Objective
from homodistil_ds.evaluation.heldout import measure_on
from homodistil_ds.machine import Machine
from homodistil_ds.methods.measuring import measured_teacher
from homodistil_ds.methods.placing import placed_teacher, student_from
from homodistil_ds.methods.setting import Setting, prepare_setting
from homodistil_ds.models.forward import Activations, Student
from homodistil_ds.models.width import Widths
from homodistil_ds.runtime import engine, ranks
from homodistil_ds.runtime.exit_reason import leave
from homodistil_ds.stage import Stage

ALL = frozenset({"logits", "hidden", "attention", "embedding"})
# Evaluation reads other parts than training; the order of the modules that run then changes from one call to the next.
TURNS = (ALL, {"logits"}, ALL, {"hidden"}, {"logits"}, {"attention"}, ALL)
STEPS = 4


def setting_of(settings: dict[str, Any], name: str, stage: int, placement: str, **machine: Any) -> Setting:
    config = RunConfig(
        teacher=settings["teacher"],
        corpus=(settings["corpus"],),
        output_dir=str(Path(settings["out"], name)),
        steps=STEPS,
        global_batch_size=16,
        sequence_length=32,
        held_out_sequences=16,
        log_interval=1,
        eval_interval=2,
        student=StudentConfig(hidden_size=16, intermediate_size=24, num_attention_heads=2),
    )
    # A threshold of 0, or everything of a tiny model would stay gathered.
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0}
    ds_config = {"zero_optimization": zero, "gradient_clipping": 1.0, **machine}
    return prepare_setting(config, Machine(ds_config=ds_config, teacher_placement=placement), "", False)


def difference(one: Activations, other: Activations) -> float:
    pairs = [*zip((*one.hidden, *one.attention), (*other.hidden, *other.attention), strict=True)]
    pairs += [
        (a, b)
        for a, b in ((one.logits, other.logits), (one.embedding, other.embedding))
        if a is not None and b is not None
    ]
    assert pairs
    return max(float((a - b).abs().max()) for a, b in pairs)


def compare(settings: dict[str, Any], placement: str, **machine: Any) -> dict[str, float]:
    """Largest differences from the replicated teacher over all turns: as in training, and as in the final figures.

    Each rank has its own input and answers for itself; the largest of all ranks counts.
    """
    name = "_".join((placement, *machine))
    pair = [setting_of(settings, f"{name}_{place}", 2, place, **machine) for place in ("replicated", placement)]
    trained = [placed_teacher(setting, ALL) for setting in pair]
    vocabulary = pair[0].plan.fixed["vocab"]
    ids = torch.randint(5, vocabulary, (2, 32), generator=torch.Generator().manual_seed(ranks.rank()))
    positions = torch.arange(6).repeat(2, 1)
    precision = torch.autocast("cpu", torch.bfloat16, enabled="torch_autocast" in machine)
    with torch.no_grad(), precision:
        training = max(difference(*(teacher(ids, positions, reads=reads) for teacher in trained)) for reads in TURNS)
    final = [
        measured_teacher(setting, SimpleNamespace(teacher=teacher), torch.float32)  # type: ignore[arg-type]
        for setting, teacher in zip(pair, trained, strict=True)
    ]
    with torch.no_grad():
        end = difference(*(teacher(ids, positions, reads={"logits"}) for teacher in final))
    engine.dispose(final[1])
    worst = torch.tensor([training, end])
    torch.distributed.all_reduce(worst, torch.distributed.ReduceOp.MAX)
    return dict(zip(("training", "final"), worst.tolist(), strict=True))


def losses(settings: dict[str, Any], stage: int, placement: str) -> tuple[list[float], float]:
    """Total losses and held-out figures of a short run without pruning, and how far the teacher moved when the
    student's engine was disposed of and another one built."""
    setting = setting_of(settings, f"run_{stage}_{placement}", stage, placement)
    objective = Objective(setting.config.loss, with_teacher=True)
    torch.manual_seed(0)
    student = Student(
        student_from(setting).requires_grad_(True),
        setting.plan.family,
        objective.student_reads(),
        teacher_hidden=setting.plan.full.hidden,
    )
    teacher = placed_teacher(setting, objective.teacher_reads())
    trained = engine.initialize(student, setting.config.optimizer, 1e-3, setting.ds_config, print)
    run = Stage(
        config=setting.config,
        engine=trained,
        plan=setting.plan,
        teacher=teacher,
        objective=objective,
        batches=setting.batches,
        measure=measure_on(setting.batches),
        monitor=setting.monitor,
        pruner=None,
        build=refuse,
        save=lambda step: setting.run_dir,
        watchdog=setting.watchdog(),
        fixed_widths=setting.plan.full,
        head_origins=[torch.arange(setting.plan.full.heads)] * setting.plan.layers,
    )
    run.run()
    batch = next(iter(setting.batches.micro_batches(1)))
    with torch.no_grad():
        before = teacher(batch.input_ids, batch.positions, reads=ALL)
        engine.dispose(trained)
        after = teacher(batch.input_ids, batch.positions, reads=ALL)
    values = [row[name] for row in run.history for name in ("total", "heldout_loss", "discrepancy_kl") if name in row]
    if placement != "replicated":
        engine.dispose(teacher)
    return values, difference(before, after)


def refuse(widths: Widths) -> engine.Engine:
    raise AssertionError("this run has no milestones")


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    engine.prepare_op_folder()
    ranks.start()
    result: dict[str, Any] = {}
    autocast = {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
    result["differences"] = {
        "zero3": compare(settings, "zero3"),
        "cpu_offload": compare(settings, "cpu_offload"),
        "zero3 bf16": compare(settings, "zero3", bf16={"enabled": True}),
        "zero3 autocast": compare(settings, "zero3", **autocast),
    }
    result["runs"] = {
        f"{stage} {placement}": losses(settings, stage, placement)
        for stage, placement in ((2, "replicated"), (2, "zero3"), (0, "zero3"), (3, "replicated"), (3, "zero3"))
    }
    if ranks.rank() == 0:
        Path(settings["out"], "result.json").write_text(json.dumps(result), encoding="utf-8")
    ranks.stop()


if __name__ == "__main__":
    main()
    leave(0)
