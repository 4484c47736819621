"""The end of every method: full weights from the ranks, the plain student folder, its proof, the report."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import PreTrainedModel

from homodistil_ds.config import BUILTIN
from homodistil_ds.errors import HomodistilError
from homodistil_ds.evaluation import figures, plain
from homodistil_ds.evaluation.card import model_card
from homodistil_ds.evaluation.heldout import Forward, HeldOut, evaluate
from homodistil_ds.evaluation.report import ModelRow, Report, before_after_table, versions, write_report
from homodistil_ds.methods.setting import Setting
from homodistil_ds.models.forward import forward
from homodistil_ds.models.loading import folder_of, load_teacher, save_folder, stored_dtype
from homodistil_ds.models.width import TRAINED_PREFIX, WidthPlan, Widths, count
from homodistil_ds.pruning.shrink import export
from homodistil_ds.runtime import ds_config, ranks
from homodistil_ds.runtime.shards import full_weights
from homodistil_ds.stage import Stage

PARITY = 1e-5  # largest difference of float32 logits between trained and saved student, in units of the largest logit


def finish(setting: Setting, stage: Stage, with_teacher: bool) -> None:
    """Write student/, report.md, report.json and figures/, and print the table. All ranks call it."""
    seconds = time.perf_counter() - setting.started
    dtype = stored_dtype(setting.config.teacher, setting.config.student.dtype)
    student, kept = plain_student(setting, stage)
    torch.nn.Module.to(student, dtype).float()
    # Loaded again: the teacher of the stage was rounded to the precision of training.
    teacher = load_teacher(setting.config.teacher)[0] if with_teacher else None
    held_out = held_out_in_float32(setting, student, teacher)

    def write() -> None:
        folder = setting.run_dir / "student"
        setting.monitor.line("saving the student and loading it back in a fresh process")
        save_folder(student, setting.tokenizer, folder, dtype, kept)
        rates = prove(setting, student, folder, with_teacher)
        report = build_report(setting, stage, held_out, rates, seconds)
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

    ranks.together(lambda: write() if ranks.rank() == 0 else None)
    setting.monitor.close()


def plain_student(setting: Setting, stage: Stage) -> tuple[PreTrainedModel, dict | None]:
    """The trained student as a smaller plain model in float32 on the CPU, and what pruning.json says of it."""
    weights = full_weights(stage.engine)
    model = stage.engine.module.model.float().cpu()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[TRAINED_PREFIX + name])
    if stage.pruner is None:
        return model.eval(), None
    masks = stage.pruner.masks
    indices = masks.indices()
    kept = {
        "teacher": setting.config.teacher,
        "digest": masks.digest(),
        "widths": vars(masks.widths()),
        "kept": {group: index.tolist() for group, index in indices.items()},
    }
    return export(model, setting.plan, masks.widths(), indices), kept


def held_out_in_float32(setting: Setting, student: PreTrainedModel, teacher: PreTrainedModel | None) -> HeldOut:
    """Held-out figures of the very model that is saved, in float32."""

    def logits_of(model: PreTrainedModel) -> Forward:
        model.eval().to(device=ranks.device(), dtype=torch.float32)
        return lambda input_ids, positions: forward(model, setting.plan.family, input_ids, positions, {"logits"})

    taught = None if teacher is None else logits_of(teacher)
    result = evaluate(logits_of(student), taught, setting.batches.held_out())
    student.cpu()
    return result


def prove(setting: Setting, student: PreTrainedModel, folder: Path, with_teacher: bool) -> list[float]:
    """Load the folder in a process that knows only torch and transformers, compare logits, time both models.

    Returns tokens per second of the student and, if there is one, of the teacher. Raises HomodistilError if the folder
    does not load or its logits are off by more than PARITY.
    """
    ids = torch.from_numpy(setting.corpus.held_out[:8].astype("int64"))
    with tempfile.TemporaryDirectory() as scratch:
        inputs, outputs = Path(scratch, "ids.pt"), Path(scratch, "logits.pt")
        torch.save(ids, inputs)
        _run_plain(str(folder), str(inputs), str(outputs))
        with torch.no_grad():
            trained = student(ids).logits
            off = (trained - torch.load(outputs, weights_only=True)).abs().max()
            difference = float(off / trained.abs().max())
        if not difference <= PARITY:
            raise HomodistilError(
                "NUM-EXPORT",
                f"{folder}: the saved student's logits differ from the trained student's by {difference:.2e}",
                "Please report this; it is a fault of the program.",
                f"The checkpoint in {setting.run_dir}/checkpoints is valid.",
            )
        models = [str(folder)] + ([folder_of(setting.config.teacher)] if with_teacher else [])
        return json.loads(_run_plain("--speed", str(inputs), *models))


def _run_plain(*arguments: str) -> str:
    command = [sys.executable, "-I", plain.__file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise HomodistilError(
            "NUM-EXPORT",
            f"the saved student does not load with transformers alone (exit code {done.returncode}): {reason}",
            "Please report this; it is a fault of the program.",
            "The last checkpoint is valid.",
        )
    return done.stdout


def build_report(setting: Setting, stage: Stage, held_out: HeldOut, rates: list[float], seconds: float) -> Report:
    config, machine = setting.config, setting.ds_config
    student = _model_row(
        setting.plan, stage.widths(), setting.run_dir / "student", held_out.loss, held_out.discrepancy_kl, rates[0]
    )
    teacher = None
    if held_out.teacher_loss is not None:
        source = Path(folder_of(config.teacher))
        teacher = _model_row(setting.plan, setting.plan.full, source, held_out.teacher_loss, 0.0, rates[1])
    return Report(
        name=setting.run_dir.name,
        method=config.method,
        teacher=teacher,
        student=student,
        steps=config.steps,
        tokens=config.steps * config.global_batch_size * config.sequence_length,
        wall_seconds=seconds,
        world_size=ranks.world_size(),
        zero_stage=ds_config.zero_stage(machine),
        precision=ds_config.precision(machine),
        seed=config.seed,
        mask_digest=stage.pruner.masks.digest() if stage.pruner else "",
        corpus_fingerprint=setting.corpus.fingerprint,
        digests_checked=stage.pruner.agreements if stage.pruner else 0,
        versions=versions(),
        history=stage.history,
    )


def _model_row(
    plan: WidthPlan, widths: Widths, folder: Path, loss: float, discrepancy: float | None, rate: float
) -> ModelRow:
    counted = count(plan, widths)
    return ModelRow(
        parameters=counted.total + counted.head,
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
        start = {"step": 0, "discrepancy_kl": 0.0, "kept_hidden": setting.plan.full.hidden}
        evaluations = [start, *(row for row in stage.history if "discrepancy_kl" in row)]
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
