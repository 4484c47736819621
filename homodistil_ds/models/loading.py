"""Load a teacher and its tokenizer, make a student from it, write a plain Hugging Face folder. No training here."""

from __future__ import annotations

import copy
import json
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.initialization import no_init_weights

from homodistil_ds.config import BUILTIN
from homodistil_ds.errors import HomodistilError
from homodistil_ds.models import norms
from homodistil_ds.models.families import FAMILIES, plan_for, with_own_code, without_table
from homodistil_ds.models.fused import has_own_head, keep_generation, put_together, taken_apart
from homodistil_ds.models.pieces import (
    AUTO_CLASSES,
    MEND,
    Read,
    check_own_head,
    check_pieces,
    has_pieces,
    header,
    open_pieces,
    outline,
    reader,
)
from homodistil_ds.models.width import LanguageModel, WidthPlan, Widths
from homodistil_ds.runtime.rounding import in_format

DROPPED = {"attention_dropout": 1, "activation_dropout": 1, "dropout": 1, "layerdrop": 0}  # times the share
BUILTIN_TEACHER = Path(__file__).resolve().parent.parent / "assets" / "teacher"


def folder_of(teacher: str) -> str:
    """The folder or hub name behind the value of --teacher, which may also be the folder's config.json."""
    if teacher == BUILTIN:
        return str(BUILTIN_TEACHER)
    return str(Path(teacher).parent) if Path(teacher).name == "config.json" else teacher


def config_of(source: str | Path) -> Any:
    """The configuration in a folder or of a hub name. Code that comes with a model is never run.

    Raises OSError and ValueError for one that cannot be read.
    """
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except StrictDataclassError as error:
        raise ValueError(" ".join(str(error).split())) from error


def tokenizer_of(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder or of a hub name. Code that comes with it is never run."""
    return AutoTokenizer.from_pretrained(source, trust_remote_code=False)


def load_teacher(
    teacher: str,
    head_may_be_missing: bool = False,
    only: LanguageModel | None = None,
    flag: str = "--teacher",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A language model, of the kind `only` if given, in float32 with eager attention, in eval mode, and its tokenizer.

    Raises HomodistilError for a missing folder, an unreadable weight file, a family without a width table or of another
    kind, weights without a vocabulary head (unless it may be missing: then its transform starts as the identity), and a
    tokenizer that does not match the vocabulary.
    """
    source = folder_of(teacher)
    check_files(source, flag)
    try:
        config = config_of(source)
        plan = plan_for(config)
        _check_kind(teacher, plan, only, flag)
        tokenizer = tokenizer_of(source)
        check_tokenizer(tokenizer, config.vocab_size, teacher, flag)
        if has_pieces(source):
            likeness = outline(config, plan.family, stays_fused=True)
            check_pieces(source, likeness, open_pieces(source, flag), plan, flag)
        model, info = AUTO_CLASSES[plan.family.language_model].from_pretrained(
            source,
            config=config,
            trust_remote_code=False,
            dtype=torch.float32,
            attn_implementation="eager",
            use_safetensors=True,
            output_loading_info=True,
        )
        check_own_head(source, model, plan.family, flag)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise unloadable(teacher, error, flag) from error
    taken_apart(model, plan.family)
    if _missing_head(teacher, flag, plan, set(info["missing_keys"]), head_may_be_missing, model):
        start_head_as_identity(model, plan)
    return model.eval(), tokenizer


def _check_kind(teacher: str, plan: WidthPlan, only: LanguageModel | None, flag: str) -> None:
    if only not in (None, plan.family.language_model):
        usable = [name for name, family in FAMILIES.items() if family.language_model == only]
        raise HomodistilError(
            "CFG-FAMILY",
            f"{flag} {teacher} is a {plan.family.language_model} language model ({plan.family.model_type}), "
            "which there is no objective to train with",
            f"Use a {only} language model: {', '.join(usable)}.",
        )


def read_plan(teacher: str, only: LanguageModel | None = None, flag: str = "--teacher") -> WidthPlan:
    """The width plan of a teacher of which nothing but its configuration is read. Raises HomodistilError."""
    source = folder_of(teacher)
    check_files(source, flag)
    try:
        plan = plan_for(config_of(source))
    except (OSError, ValueError) as error:
        raise unloadable(teacher, error, flag) from error
    _check_kind(teacher, plan, only, flag)
    return plan


def load_outline(
    teacher: str, head_may_be_missing: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Read]:
    """A teacher's names and shapes on the meta device, its tokenizer, and what reads its weights a run at a time.

    Raises HomodistilError where load_teacher does, and for weight files that only transformers can convert.
    """
    source = folder_of(teacher)
    check_files(source)
    try:
        config = config_of(source)
        plan = plan_for(config)
        tokenizer = tokenizer_of(source)
        check_tokenizer(tokenizer, config.vocab_size, teacher)
        model, pieces = outline(config, plan.family), open_pieces(source)
        check_own_head(source, model, plan.family)
    except (OSError, ValueError, RuntimeError) as error:
        raise unloadable(teacher, error) from error
    missing = check_pieces(source, model, pieces, plan)
    head = _missing_head(teacher, "--teacher", plan, missing, head_may_be_missing, model, MEND)
    return model, tokenizer, _with_identity_head(reader(pieces), head, plan) if head else reader(pieces)


def unloadable(teacher: str, error: Exception, flag: str = "--teacher") -> HomodistilError:
    if "custom code" in str(error):
        return with_own_code(f"{flag} {teacher}")
    if unknown := re.search(r"model type `(.+?)` but Transformers does not recognize", str(error)):
        return without_table(unknown[1])
    return HomodistilError(
        "DATA-TEACHER",
        f"{flag} {teacher} cannot be loaded: {str(error).strip().splitlines()[0]}",
        "Give a folder with config.json, model.safetensors and a tokenizer, or a hub name that this machine can "
        "reach (HF_HOME names the cache; HF_HUB_OFFLINE=1 uses only what is in it).",
    )


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, vocabulary_size: int, teacher: str, flag: str = "--teacher"
) -> None:
    """Every id the tokenizer can produce must have a row in the embedding, and few rows may be without a piece.

    Raises HomodistilError; a vocabulary padded by 128 rows or a hundredth passes.
    """
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocabulary_size or vocabulary_size - largest > max(128, vocabulary_size // 100):
        raise HomodistilError(
            "DATA-TOKENIZER",
            f"{flag} {teacher}: the tokenizer has {largest + 1} pieces, the model's vocabulary {vocabulary_size}",
            "Put the tokenizer that the model was trained with beside its weights.",
        )


def check_files(source: str, flag: str = "--teacher") -> None:
    """Fail early, and by file name, on what transformers reports poorly."""
    folder = Path(source)
    # No hub account is called like a folder that is here.
    looks_local = source.startswith((".", "/", "~")) or source.count("/") > 1
    looks_local = looks_local or ("/" in source and folder.parent.is_dir())
    if not folder.exists():
        if looks_local:
            raise HomodistilError("DATA-TEACHER", f"{flag} {source}: no such folder", "Check the path.")
        return
    if not (folder / "config.json").exists():
        raise HomodistilError(
            "DATA-TEACHER", f"{flag} {source}: no config.json in this folder", "Give a Hugging Face model folder."
        )
    for path in sorted(folder.glob("*.safetensors")):
        try:
            header(path)
        except OSError as error:
            raise HomodistilError(
                "DATA-CORRUPT", f"{path} cannot be read: {error.strerror}", "Copy or download the file again."
            ) from error
    if not any(folder.glob("*.safetensors")) and any(folder.glob("*.bin")):
        raise HomodistilError(
            "DATA-PICKLE",
            f"{flag} {source}: the weights are a pickle (.bin), which can run code when it is read",
            "Convert them to safetensors with transformers' save_pretrained on a machine you trust them on.",
        )


def _missing_head(
    teacher: str,
    flag: str,
    plan: WidthPlan,
    missing: set[str],
    head_may_be_missing: bool,
    model: PreTrainedModel,
    remedy: str = "The file holds another architecture than its config.json says, or only a part of it.",
) -> set[str]:
    """The weights of a vocabulary head that is to start as the identity. Raises HomodistilError for others."""
    head = {name for name in missing if name.startswith(tuple(f"{path}." for path in plan.family.head))}
    unknown = [name for name, _ in model.named_parameters() if plan.find(name) is None]
    if unknown:
        raise HomodistilError(
            "DATA-TEACHER",
            f"{flag} {teacher}: the width table of {plan.family.model_type} has no line for {unknown[0]}",
            "Use a teacher of the plain architecture, with its decoder tied to its word embeddings.",
        )
    if head and f"{plan.family.head_transform}.weight" not in head:
        missing, head = head, set()  # a part of a trained head is not replaced
    if missing - head:
        raise HomodistilError(
            "DATA-TEACHER",
            f"{flag} {teacher}: {len(missing - head)} weights are missing, first {min(missing - head)}",
            remedy,
        )
    if head and not head_may_be_missing:
        raise HomodistilError(
            "DATA-NO-HEAD",
            f"{flag} {teacher} has no masked-language-model head: {len(head)} weights are missing, first {min(head)}",
            "Give it one by teacher correction, some steps of masked-language-model training:\n"
            f"  deepspeed homodistil_ds/train.py --deepspeed_config ds_configs/zero2.json --preset correct_teacher "
            f"--teacher {teacher} --output_dir runs/teacher\nthen distil from --teacher runs/teacher/student.",
        )
    return head


def start_head_as_identity(model: PreTrainedModel, plan: WidthPlan) -> None:
    """Make a fresh vocabulary head read the encoder's states as they are: identity transform, zero biases.

    A transform to narrower states reads the first of them.
    """
    assert plan.family.head_transform is not None
    transform = model.get_submodule(plan.family.head_transform)
    assert isinstance(transform, nn.Linear)
    nn.init.eye_(transform.weight)
    for bias in (transform.bias, model.get_output_embeddings().bias):
        if bias is not None:
            nn.init.zeros_(bias)


def _with_identity_head(read: Read, head: set[str], plan: WidthPlan) -> Read:
    """The same start for weights that are read a run at a time."""
    hidden = plan.full.hidden

    def read_or_start(name: str, start: int, count: int) -> torch.Tensor:
        if name not in head:
            return read(name, start, count)
        if name == f"{plan.family.head_transform}.weight":
            entries = torch.arange(start, start + count)
            return (entries // hidden == entries % hidden).float()
        return torch.full((count,), float(name.endswith(".weight")))  # gains of norms are 1, biases 0

    return read_or_start


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    return with_dropout(model, 0.0)


def with_dropout(model: PreTrainedModel, share: float) -> PreTrainedModel:
    """The same model, dropping this share of entries wherever it can drop, and never a layer."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
            continue
        for name, own in DROPPED.items():  # modules that drop by themselves
            if isinstance(getattr(module, name, None), float | int):
                setattr(module, name, share * own)
    return model


def twin(teacher: PreTrainedModel, plan: WidthPlan) -> PreTrainedModel:
    """An exact copy of the teacher to be trained and masked: no dropout, norms that know which neurons are kept."""
    return as_student(copy.deepcopy(teacher), plan)


def as_student(model: PreTrainedModel, plan: WidthPlan) -> PreTrainedModel:
    """Turn a copy of the teacher into a student, in place."""
    norms.widen(without_dropout(model).train(), plan)
    return model


def empty_model(
    teacher: PreTrainedModel, plan: WidthPlan, widths: Widths, vocab: int | None = None, random: bool = True
) -> PreTrainedModel:
    """A model of the teacher's kind at other widths, without dropout.

    Its weights are the library's random initialisation, or, where they are about to be written, whatever memory held.
    """
    config = copy.deepcopy(teacher.config)
    values = plan.config_values(widths) | {plan.family.fields["vocab"]: vocab or plan.fixed["vocab"]}
    for name, value in values.items():
        setattr(config, name, value)
    with nullcontext() if random else no_init_weights():
        model = type(teacher)._from_config(config, attn_implementation="eager", dtype=torch.float32)
    model.tie_weights()  # part of the initialisation that was left out
    keep_generation(teacher, model)
    taken_apart(model, plan.family)
    if random and has_own_head(model, plan.family):  # what it was is the embedding
        nn.init.normal_(model.get_output_embeddings().weight, std=config.initializer_factor)
    return without_dropout(model).train()


def save_folder(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: torch.dtype, pruning: dict | None
) -> None:
    """Write a plain Hugging Face folder: config, safetensors in `dtype`, tokenizer, and pruning.json if given."""
    folder.mkdir(parents=True, exist_ok=True)
    in_format(copy.deepcopy(put_together(model)), dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if has_own_head(model, FAMILIES[model.config.model_type]):
        _say_untied(folder / "config.json")
    if pruning is not None:
        (folder / "pruning.json").write_text(json.dumps(pruning) + "\n", encoding="utf-8")


def _say_untied(path: Path) -> None:
    """transformers 5 writes that it ties what it does not; version 4 would believe it."""
    facts = json.loads(path.read_text(encoding="utf-8")) | {"tie_word_embeddings": False}
    path.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def stored_dtype(teacher: str, asked: str) -> torch.dtype:
    """The number format to save a student in; 'auto' is what the teacher's own weights are stored in."""
    if asked != "auto":
        return getattr(torch, asked)
    stored = config_of(folder_of(teacher)).dtype
    return stored if isinstance(stored, torch.dtype) else torch.float32
