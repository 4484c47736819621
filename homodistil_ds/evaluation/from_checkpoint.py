"""The student that a checkpoint holds, as a plain model. No engine is built, nothing is trained or resumed."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from homodistil_ds.errors import HomodistilError
from homodistil_ds.evaluation.card import PIPELINES
from homodistil_ds.evaluation.export import Source
from homodistil_ds.models.depth import layer_map, outline_of, shallower
from homodistil_ds.models.families import FAMILIES, plan_for, target_widths
from homodistil_ds.models.loading import config_of, empty_model, folder_of, stored_dtype, tokenizer_of
from homodistil_ds.models.pieces import outline
from homodistil_ds.models.width import TRAINED_PREFIX, WidthPlan, Widths
from homodistil_ds.pruning.masks import Masks
from homodistil_ds.pruning.shrink import export
from homodistil_ds.runtime import checkpoint, console
from homodistil_ds.runtime.checkpoint import Checkpoint


def student_at(run: Path, asked: str) -> Source:
    """The student of one checkpoint, `step-N` of the run or a path. Needs the teacher's config.json and tokenizer.

    Raises HomodistilError for a damaged checkpoint, a teacher that is not there any more, and widths that a plain
    folder cannot hold, as they are while neurons leave.
    """
    own = run / "checkpoints" / asked
    found = checkpoint.find(str(own if own.is_dir() else asked), run / "checkpoints", console.say)
    began = found.state["config"]
    if began["method"] not in ("homodistil", "pretrain"):
        raise HomodistilError(
            "CKPT-SHAPE",
            f"{found.folder} belongs to a run on a task ({began['method']}), of which only the end is exported",
            "Let the run complete, and export it without --checkpoint.",
        )
    teacher = began["teacher"]
    try:
        config = config_of(folder_of(teacher))
        tokenizer = tokenizer_of(folder_of(teacher))
    except (OSError, ValueError) as error:
        raise HomodistilError(
            "DATA-TEACHER",
            f"{found.folder} was made from the teacher {teacher}, which cannot be read: {error}",
            "Put its config.json and tokenizer where they were.",
        ) from error
    whole = plan_for(config)
    layers = layer_map(
        whole.layers, began["student"].get("num_hidden_layers"), began["student"].get("layers", "uniform")
    )
    return Source(
        name=f"{run.name}, step {found.step}",
        model=_student(found, shallower(whole, layers), outline_of(outline(config, whole.family), whole, layers)),
        tokenizer=tokenizer,
        stored=stored_dtype(teacher, began["student"]["dtype"]),
        card=_card(run, found),
    )


def _student(found: Checkpoint, plan: WidthPlan, teacher: PreTrainedModel) -> PreTrainedModel:
    """Only the shapes and the configuration of `teacher` are read, which is on the meta device and has its layers."""
    widths = Widths(**found.state["widths"])
    _check_legal(found, plan, widths)
    model = empty_model(teacher, plan, Widths(**found.state["physical"]), random=False)
    named = dict(model.named_parameters())
    values = found.read([(TRAINED_PREFIX + name, 0, parameter.numel()) for name, parameter in named.items()])
    with torch.no_grad():
        for parameter, (weights, *_) in zip(named.values(), values, strict=True):  # [3, count]: weights, both moments
            parameter.copy_(weights.view_as(parameter))
    if not found.state["mask_digest"]:
        return model.eval()
    masks = Masks(plan)
    tensors = found.tensors()
    masks.load_state_dict(
        {part: {group: tensors[f"{part}/{group}"] for group in masks.kept} for part in ("kept", "present")}
    )
    return export(model, plan, widths, {group: kept.nonzero().flatten() for group, kept in masks.local().items()})


def _check_legal(found: Checkpoint, plan: WidthPlan, widths: Widths) -> None:
    try:
        legal = target_widths(plan, widths.hidden, widths.ffn, widths.heads) == widths
    except HomodistilError:
        legal = False
    if not legal:
        raise HomodistilError(
            "CKPT-SHAPE",
            f"{found.folder}: neurons were leaving, and a plain {plan.family.model_type} folder cannot hold {widths}",
            "Export a checkpoint from after the last prune event, or the finished student.",
        )


def _card(run: Path, found: Checkpoint) -> str:
    step, steps = found.step, found.state["config"]["steps"]
    kind = FAMILIES[found.state["model_type"]].language_model
    front = f"---\nlibrary_name: transformers\npipeline_tag: {PIPELINES[kind]}\n---"
    text = f"The student of the run `{run.name}` of homodistil_ds as it was after step {step:,} of {steps:,}."
    return f"{front}\n\n# {run.name}, step {step}\n\n{text}\n"
