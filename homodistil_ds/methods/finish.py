"""The end of every method: full weights from the ranks, the plain student folder, its proof, the report."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from transformers import PreTrainedModel

from homodistil_ds.config import BUILTIN
from homodistil_ds.evaluation import figures, proof
from homodistil_ds.evaluation.card import model_card
from homodistil_ds.evaluation.heldout import HeldOut, evaluate
from homodistil_ds.evaluation.report import ModelRow, Report, before_after_table, versions, write_report
from homodistil_ds.methods import flops
from homodistil_ds.methods.placing import float32_teacher
from homodistil_ds.methods.running import fill
from homodistil_ds.methods.setting import Setting
from homodistil_ds.models.forward import Activations, forward
from homodistil_ds.models.loading import empty_model, folder_of, save_folder, stored_dtype
from homodistil_ds.models.width import WidthPlan, Widths, count
from homodistil_ds.pruning.shrink import export
from homodistil_ds.runtime import claim, ds_config, ranks
from homodistil_ds.runtime.engine import dispose
from homodistil_ds.runtime.shards import full_weights
from homodistil_ds.stage import Stage


def finish(setting: Setting, stage: Stage) -> None:
    """Write student/, report.md, report.json and figures/, and print the table. All ranks call it."""
    seconds = time.perf_counter() - setting.started
    dtype = stored_dtype(setting.config.teacher, setting.config.student.dtype)
    student, kept = plain_student(setting, stage)
    zero_stage = stage.engine.zero_optimization_stage()
    dispose(stage.engine)
    torch.nn.Module.to(student, dtype).float()
    teacher = None if stage.teacher is None else float32_teacher(setting, stage)
    held_out = held_out_in_float32(setting, stage, student, teacher)

    def write() -> None:
        claim.check(setting.run_dir)
        folder = setting.run_dir / "student"
        setting.monitor.line("saving the student and loading it back in a fresh process")
        save_folder(student, setting.tokenizer, folder, dtype, kept)
        rates = prove(setting, student, folder, teacher is not None)
        report = build_report(setting, stage, held_out, rates, seconds, zero_stage)
        card = model_card(
            base_model=setting.config.teacher,
            license="apache-2.0" if setting.config.teacher == BUILTIN else None,
            corpus=setting.config.corpus,
            command=setting.command,
            report=report,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        write_report(report, setting.run_dir, draw(setting, stage))
        setting.monitor.line(
            f"\n{before_after_table(report)}\n\nstudent: {folder}\nreport:  {setting.run_dir}/report.md"
        )

    ranks.on_first(write)
    setting.monitor.close()


def plain_student(setting: Setting, stage: Stage) -> tuple[PreTrainedModel, dict | None]:
    """The trained student as a smaller plain model in float32 on the CPU, and what pruning.json says of it."""
    weights = full_weights(stage.engine)
    masks = stage.pruner.masks if stage.pruner else None
    model = empty_model(stage.engine.module.model, stage.plan, masks.physical() if masks else stage.widths())
    fill(model, weights)
    if masks is None:
        return model.eval(), None
    kept = {
        "teacher": setting.config.teacher,
        "digest": masks.digest(),
        "widths": vars(masks.widths()),
        "kept": {group: index.tolist() for group, index in masks.indices().items()},
    }
    local = {group: mask.nonzero().flatten() for group, mask in masks.local().items()}
    return export(model, stage.plan, masks.widths(), local), kept


def held_out_in_float32(
    setting: Setting, stage: Stage, student: PreTrainedModel, teacher: torch.nn.Module | None
) -> HeldOut:
    """Held-out figures of the very model that is saved, in float32."""

    def own(input_ids: torch.Tensor, positions: torch.Tensor) -> Activations:
        return forward(student, stage.plan.family, input_ids, positions, {"logits"})

    def taught(input_ids: torch.Tensor, positions: torch.Tensor) -> Activations:
        assert teacher is not None
        return teacher(input_ids, positions, reads={"logits"})

    student.eval().to(device=ranks.device(), dtype=torch.float32)
    result = evaluate(own, None if teacher is None else taught, setting.batches.held_out())
    student.cpu()
    return result


def prove(setting: Setting, student: PreTrainedModel, folder: Path, with_teacher: bool) -> list[float]:
    """Load the folder in a process that knows only torch and transformers, compare logits, time both models.

    Returns tokens per second of the student and, if there is one that fits a rank, of the teacher. Raises
    HomodistilError if the folder does not load or its logits are off by more than proof.PARITY.
    """
    kept = f"The checkpoint in {setting.run_dir}/checkpoints is valid."
    ids = torch.from_numpy(setting.corpus.held_out[:8].astype("int64"))
    with torch.no_grad():
        proof.prove(folder, [{"input_ids": ids}], [student(ids).logits], kept)
    models = [str(folder)]
    if with_teacher and setting.placement == "replicated":
        models.append(folder_of(setting.config.teacher))
    return proof.speeds(models, ids, kept)


def build_report(
    setting: Setting, stage: Stage, held_out: HeldOut, rates: list[float], seconds: float, zero_stage: int
) -> Report:
    config, machine = setting.config, setting.ds_config
    student = _model_row(
        stage.plan, stage.widths(), setting.run_dir / "student", held_out.loss, held_out.discrepancy_kl, rates[0]
    )
    teacher = None
    if held_out.teacher_loss is not None:
        source = Path(folder_of(config.teacher))
        teacher = _model_row(setting.plan, setting.plan.full, source, held_out.teacher_loss, 0.0, *rates[1:])
    return Report(
        name=setting.run_dir.name,
        method=config.method,
        teacher=teacher,
        student=student,
        steps=config.steps,
        tokens=config.steps * config.global_batch_size * config.sequence_length,
        wall_seconds=seconds,
        train_flops=flops.of_run(setting, stage),
        loop_seconds=stage.loop_seconds,
        loop_cpu_seconds=stage.loop_cpu_seconds,
        measured_seconds=stage.measured_seconds,
        measured_cpu_seconds=stage.measured_cpu_seconds,
        world_size=ranks.world_size(),
        zero_stage=zero_stage,
        precision=ds_config.precision(machine),
        seed=config.seed,
        mask_digest=stage.pruner.masks.digest() if stage.pruner else "",
        corpus_fingerprint=setting.fingerprint,
        digests_checked=len(stage.pruner.events) if stage.pruner else 0,
        prune_events=stage.pruner.events if stage.pruner else [],
        versions=versions(),
        history=stage.history,
    )


def _model_row(
    plan: WidthPlan, widths: Widths, folder: Path, loss: float, discrepancy: float | None, rate: float | None = None
) -> ModelRow:
    counted = count(plan, widths)
    return ModelRow(
        parameters=counted.with_head,
        parameters_without_embeddings=counted.matrices + counted.vectors + counted.head,
        widths={
            "hidden_size": widths.hidden,
            "intermediate_size": widths.ffn,
            "num_attention_heads": widths.heads,
            "head_size": widths.head_size,
            "num_hidden_layers": plan.layers,
            "vocab_size": plan.fixed["vocab"],
        },
        file_bytes=sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        heldout_loss=loss,
        discrepancy_kl=discrepancy,
        tokens_per_second=rate,
    )


def draw(setting: Setting, stage: Stage) -> dict:
    """The figures of the report; they go to the curves too."""
    losses = [row for row in stage.history if "total" in row]
    names = [name for name in ("total", *stage.objective.weights) if losses and name in losses[0]]
    steps = [int(row["step"]) for row in losses]
    drawn = {"losses": figures.loss_curves(steps, {name: [row[name] for row in losses] for name in names})}
    if stage.pruner is not None:
        sizes = ("hidden", "ffn", "heads", "head_size")
        evaluations = [row for row in stage.history if "discrepancy_kl" in row]
        drawn["widths"] = figures.width_curve(
            steps, {name: [int(row[f"kept_{name}"]) for row in losses] for name in sizes}, vars(setting.target)
        )
        drawn["masks"] = figures.mask_heatmap({group: mask.numpy() for group, mask in stage.pruner.masks.kept.items()})
        drawn["discrepancy"] = figures.discrepancy_curve(
            [int(row["step"]) for row in evaluations],
            [row["discrepancy_kl"] for row in evaluations],
            [int(row["kept_hidden"]) for row in evaluations],
        )
    for name, figure in drawn.items():
        setting.monitor.figure(setting.config.steps, name, figure)
    return drawn
