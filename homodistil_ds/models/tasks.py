"""A pre-trained model with a head for a task: loading it, its forward pass, its dropout. No training here.

Shapes: R rows, L length of the longest, H hidden, C classes, 1 for a regression.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from homodistil_ds.distillation.mixup import mix
from homodistil_ds.errors import HomodistilError
from homodistil_ds.models.families import plan_for
from homodistil_ds.models.forward import Activations, Read, asked
from homodistil_ds.models.fused import taken_apart
from homodistil_ds.models.loading import (
    check_files,
    check_tokenizer,
    config_of,
    folder_of,
    tokenizer_of,
    unloadable,
)
from homodistil_ds.models.width import Family, WidthPlan

KNOWS_A_TASK = "ForSequenceClassification"


def knows_a_task(source: str) -> bool:
    """Whether the folder or hub name of a teacher has a trained head for a task. Raises HomodistilError."""
    folder = folder_of(source)
    check_files(folder)
    try:
        return _has_task_head(config_of(folder))
    except (OSError, ValueError) as error:
        raise unloadable(source, error) from error


def _has_task_head(config: PretrainedConfig) -> bool:
    return any(name.endswith(KNOWS_A_TASK) for name in config.architectures or [])


def load_classifier(
    source: str, classes: Sequence[str], flag: str = "--model"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in float32 with a head for these classes (none: a regression), and its tokenizer.

    A head that the files lack is drawn at random; so is a pooler. `flag` is what named the source. Raises
    HomodistilError for what cannot be loaded, for a family that learns no task here, and for other classes.
    """
    folder = folder_of(source)
    check_files(folder, flag)
    names = dict(enumerate(classes)) if classes else {0: "score"}
    try:
        config = config_of(folder)
        if _has_task_head(config):
            _check_classes(f"{flag} {source}", config, names)
        if (kind := plan_for(config).family.language_model) != "masked":
            raise HomodistilError(
                "CFG-FAMILY",
                f"{flag} {source} is a {kind} language model, which learns no task here",
                "Use an encoder: a masked language model.",
            )
        config.id2label, config.label2id = names, {name: number for number, name in names.items()}
        config.problem_type = "single_label_classification" if classes else "regression"
        tokenizer = tokenizer_of(folder)
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, config=config, trust_remote_code=False, dtype=torch.float32, use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise unloadable(source, error, flag) from error
    check_tokenizer(tokenizer, config.vocab_size, source, flag)
    return taken_apart(model, plan_for(config).family), tokenizer


def task_plan(config: PretrainedConfig) -> WidthPlan:
    """The width plan of a model with a head for a task. Raises HomodistilError for a family that learns none here."""
    plan = plan_for(config)
    body = tuple(row for row in plan.family.rows if row.part != "head")
    head = tuple(row for row in plan.family.task_head if row.when is None or row.when(config))
    family = replace(plan.family, rows=(*body, *head))
    return replace(plan, family=family, fixed={**plan.fixed, "classes": int(config.num_labels or 1)})


def _check_classes(source: str, config: PretrainedConfig, names: Mapping[int, str]) -> None:
    """A trained head must be one for these classes in this order, in capitals or not.

    Names that transformers made up say nothing.
    """
    own = {int(number): str(name) for number, name in (config.id2label or {}).items()}
    unnamed = all(name.startswith("LABEL_") for name in own.values())
    alike = {n: name.casefold() for n, name in own.items()} == {n: name.casefold() for n, name in names.items()}
    if len(own) != len(names) or not (unnamed or alike):
        raise HomodistilError(
            "DATA-CLASSES",
            f"{source} was trained for {len(own)} classes, this task has {len(names)}: "
            f"{', '.join(own.values())} are not {', '.join(names.values())}",
            "Give a model without a head for a task, or one that was trained for this task, its classes in this order.",
        )


def task_forward(
    model: PreTrainedModel,
    family: Family,
    ids: torch.Tensor,
    mask: torch.Tensor,
    types: torch.Tensor | None = None,
    other_ids: torch.Tensor | None = None,
    other_types: torch.Tensor | None = None,
    share: torch.Tensor | None = None,
    *,
    reads: Collection[Read],
) -> Activations:
    """Logits [R, C] and states of ids [R, L], with mask [R, L] and, of pairs of texts, types [R, L].

    With `share` [R] each row is that much of itself and for the rest `other_ids` and `other_types`, mixed in this
    model's own embeddings (X1); the mask then covers both.
    """
    shown: dict[str, torch.Tensor] = {"attention_mask": mask}
    if share is None:
        shown["input_ids"] = ids
        if types is not None:
            shown["token_type_ids"] = types
    else:
        assert other_ids is not None
        shown["inputs_embeds"] = _mixed(model, (ids, types), (other_ids, other_types), share)
    outputs = model(**shown, **asked(reads))
    return Activations(
        logits=outputs.logits,
        hidden=tuple(outputs.hidden_states[1:]) if "hidden" in reads else (),
    )


Text = tuple[torch.Tensor, torch.Tensor | None]


def _mixed(model: PreTrainedModel, first: Text, second: Text, share: torch.Tensor) -> torch.Tensor:
    """[R, L, H] to take the place of the word embeddings.

    transformers adds the type embedding of type 0 to it, so what the pairs' own types differ from that is mixed in.
    """
    words = model.get_input_embeddings()
    mixed = mix(words(first[0]), words(second[0]), share)
    table = getattr(getattr(model.base_model, "embeddings", None), "token_type_embeddings", None)
    if table is None or first[1] is None or second[1] is None:
        return mixed
    return mixed + mix(table(first[1]), table(second[1]), share) - table(torch.zeros_like(first[1]))
