"""Load a teacher and its tokenizer, make a student from it, write a plain Hugging Face folder. No training here."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from homodistil_ds.config import BUILTIN
from homodistil_ds.errors import HomodistilError
from homodistil_ds.models import norms
from homodistil_ds.models.families import plan_for
from homodistil_ds.models.width import WidthPlan, Widths

BUILTIN_TEACHER = Path(__file__).resolve().parent.parent / "assets" / "teacher"


def folder_of(teacher: str) -> str:
    """The folder or hub name behind the value of --teacher."""
    return str(BUILTIN_TEACHER) if teacher == BUILTIN else teacher


def load_teacher(teacher: str, head_may_be_missing: bool = False) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A masked language model in float32 with eager attention, in eval mode, and its tokenizer.

    Raises HomodistilError for a missing folder, an unreadable weight file, a family without a width table, weights
    without a masked-language-model head (unless it may be missing: then its transform starts as the identity), and a
    tokenizer that does not match the vocabulary.
    """
    source = folder_of(teacher)
    _check_files(source)
    try:
        config = AutoConfig.from_pretrained(source)
        plan = plan_for(config)
        tokenizer = AutoTokenizer.from_pretrained(source)
        model, info = AutoModelForMaskedLM.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            attn_implementation="eager",
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise HomodistilError(
            "DATA-TEACHER",
            f"--teacher {teacher} cannot be loaded: {str(error).strip().splitlines()[0]}",
            "Give a folder with config.json, model.safetensors and a tokenizer, or a hub name that this machine can "
            "reach (HF_HOME names the cache; HF_HUB_OFFLINE=1 uses only what is in it).",
        ) from error
    _check_weights(teacher, plan, set(info["missing_keys"]), head_may_be_missing, model)
    check_tokenizer(tokenizer, config.vocab_size, teacher)
    return model.eval(), tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, vocabulary_size: int, teacher: str) -> None:
    """Every id the tokenizer can produce must have a row in the embedding, and few rows may be without a piece.

    Raises HomodistilError; a vocabulary padded by less than 128 rows passes.
    """
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocabulary_size or vocabulary_size - largest > 128:
        raise HomodistilError(
            "DATA-TOKENIZER",
            f"--teacher {teacher}: the tokenizer has {largest + 1} pieces, the model's vocabulary {vocabulary_size}",
            "Put the tokenizer that the model was trained with beside its weights.",
        )


def _check_files(source: str) -> None:
    """Fail early, and by file name, on what transformers reports poorly."""
    folder = Path(source)
    looks_local = source.startswith((".", "/", "~")) or source.count("/") > 1
    if not folder.exists():
        if looks_local:
            raise HomodistilError("DATA-TEACHER", f"--teacher {source}: no such folder", "Check the path.")
        return
    if not (folder / "config.json").exists():
        raise HomodistilError(
            "DATA-TEACHER", f"--teacher {source}: no config.json in this folder", "Give a Hugging Face model folder."
        )
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                    tensors.get_slice(name).get_shape()
        except (SafetensorError, OSError) as error:
            raise HomodistilError(
                "DATA-CORRUPT",
                f"{path} ({path.stat().st_size} bytes) is not a whole safetensors file: {error}",
                "Copy or download the file again.",
            ) from error
    if not any(folder.glob("*.safetensors")) and any(folder.glob("*.bin")):
        raise HomodistilError(
            "DATA-PICKLE",
            f"--teacher {source}: the weights are a pickle (.bin), which can run code when it is read",
            "Convert them to safetensors with transformers' save_pretrained on a machine you trust them on.",
        )


def _check_weights(
    teacher: str, plan: WidthPlan, missing: set[str], head_may_be_missing: bool, model: PreTrainedModel
) -> None:
    head = {name for name in missing if name.startswith(f"{plan.family.head}.")}
    unknown = [name for name, _ in model.named_parameters() if plan.find(name) is None]
    if unknown:
        raise HomodistilError(
            "DATA-TEACHER",
            f"--teacher {teacher}: the width table of {plan.family.model_type} has no line for {unknown[0]}",
            "Use a teacher of the plain architecture, with its decoder tied to its word embeddings.",
        )
    if head and f"{plan.family.head_transform}.weight" not in head:
        missing, head = head, set()  # a part of a trained head is not replaced
    if missing - head:
        raise HomodistilError(
            "DATA-TEACHER",
            f"--teacher {teacher}: {len(missing - head)} weights are missing, first {min(missing - head)}",
            "The file holds another architecture than its config.json says, or only a part of it.",
        )
    if head and not head_may_be_missing:
        raise HomodistilError(
            "DATA-NO-HEAD",
            f"--teacher {teacher} has no masked-language-model head: {len(head)} weights are missing, "
            f"first {min(head)}",
            "Give it one by teacher correction, some steps of masked-language-model training:\n"
            f"  deepspeed homodistil_ds/train.py --deepspeed_config ds_configs/zero2.json --preset correct_teacher "
            f"--teacher {teacher} --output_dir runs/teacher\nthen distil from --teacher runs/teacher/student.",
        )
    if head:
        start_head_as_identity(model, plan)


def start_head_as_identity(model: PreTrainedModel, plan: WidthPlan) -> None:
    """Make a fresh vocabulary head read the encoder's states as they are: identity transform, zero biases."""
    transform = model.get_submodule(plan.family.head_transform)
    assert isinstance(transform, nn.Linear)
    nn.init.eye_(transform.weight)
    nn.init.zeros_(transform.bias)
    nn.init.zeros_(model.get_output_embeddings().bias)


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def twin(teacher: PreTrainedModel, plan: WidthPlan) -> PreTrainedModel:
    """An exact copy of the teacher to be trained and masked: no dropout, norms that know which neurons are kept."""
    student = without_dropout(copy.deepcopy(teacher)).train()
    norms.widen(student, plan.family.norms)
    return student


def empty_model(teacher: PreTrainedModel, plan: WidthPlan, widths: Widths, vocab: int | None = None) -> PreTrainedModel:
    """A model of the teacher's kind at other widths, with the library's random initialisation and no dropout."""
    config = copy.deepcopy(teacher.config)
    sizes = {"hidden": widths.hidden, "ffn": widths.ffn, "heads": widths.heads, "vocab": vocab or plan.fixed["vocab"]}
    for axis, size in sizes.items():
        setattr(config, plan.family.fields[axis], size)
    model = type(teacher)._from_config(config, attn_implementation="eager", dtype=torch.float32)
    return without_dropout(model).train()


def save_folder(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: torch.dtype, pruning: dict | None
) -> None:
    """Write a plain Hugging Face folder: config, safetensors in `dtype`, tokenizer, and pruning.json if given."""
    folder.mkdir(parents=True, exist_ok=True)
    nn.Module.to(copy.deepcopy(model), dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if pruning is not None:
        (folder / "pruning.json").write_text(json.dumps(pruning) + "\n", encoding="utf-8")


def stored_dtype(teacher: str, asked: str) -> torch.dtype:
    """The number format to save a student in; 'auto' is what the teacher's own weights are stored in."""
    if asked != "auto":
        return getattr(torch, asked)
    stored = AutoConfig.from_pretrained(folder_of(teacher)).dtype
    return stored if isinstance(stored, torch.dtype) else torch.float32
