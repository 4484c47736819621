"""A student as it is kept: taken out of the engine, proven where it was saved, described."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from homodistil_ds.evaluation import proof
from homodistil_ds.evaluation.inputs import for_decoder
from homodistil_ds.evaluation.report import ModelRow
from homodistil_ds.methods.running import fill
from homodistil_ds.methods.setting import Setting
from homodistil_ds.models.loading import empty_model, folder_of
from homodistil_ds.models.width import WidthPlan, Widths, count
from homodistil_ds.pruning.shrink import export
from homodistil_ds.runtime.shards import full_weights
from homodistil_ds.stage import Stage

MOST_PROVEN, MOST_LOGITS = 1024, 1 << 26  # tokens, and their logits


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


def prove(setting: Setting, student: PreTrainedModel, folder: Path, with_teacher: bool) -> list[float]:
    """Load the folder in a process that knows only torch and transformers, compare logits, time both models.

    Returns tokens per second of the student and, if there is one that fits a rank, of the teacher. Raises
    HomodistilError if the folder does not load or its logits are off by more than proof.PARITY.
    """
    kept = f"The checkpoint in {setting.run_dir}/checkpoints is valid."
    most = min(MOST_PROVEN, max(16, MOST_LOGITS // setting.plan.fixed["vocab"]))
    length = min(setting.config.sequence_length, most)
    ids = torch.from_numpy(setting.corpus.held_out[: max(1, most // length)][:, :length].astype("int64"))
    inputs = {"input_ids": ids, **for_decoder(student, ids)}
    with torch.no_grad():
        proof.prove(folder, [inputs], [student(**inputs).logits], kept)
    models = [str(folder)]
    if with_teacher and setting.placement == "replicated":
        models.append(folder_of(setting.config.teacher))
    return proof.speeds(models, ids, kept)


def model_row(
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
            "num_hidden_layers": plan.encoder_layers or plan.layers,
            **({"num_decoder_layers": plan.layers - plan.encoder_layers} if plan.encoder_layers else {}),
            "vocab_size": plan.fixed["vocab"],
        },
        file_bytes=sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        heldout_loss=loss,
        discrepancy_kl=discrepancy,
        tokens_per_second=rate,
    )
