"""Tiny models of every family in the table, built from the table's own field names: a new family needs nothing here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoConfig, BertTokenizerFast, PreTrainedModel, PreTrainedTokenizerBase, RobertaTokenizerFast

from homodistil_ds.models.families import FAMILIES, legal_shapes, target_widths
from homodistil_ds.models.fused import put_together, taken_apart
from homodistil_ds.models.pieces import AUTO_CLASSES
from homodistil_ds.models.width import WidthPlan, Widths

SIZES = {
    **{"hidden": 32, "ffn": 64, "heads": 4, "layers": 2, "vocab": 185, "position": 64, "type": 2},
    # Where a family has them: two query heads per group, a head size that is not hidden / heads.
    **{"embedding": 32, "key_value_heads": 2, "head_size": 6},
}
RELATIVE = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_biased_input": False,
    "position_buckets": 8,
}
# Every family, and what changes its table. Name -> (model type, configuration fields).
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in FAMILIES},
    "modernbert-biased": ("modernbert", {"attention_bias": True, "mlp_bias": True, "norm_bias": True}),
    "gpt2-untied": ("gpt2", {"tie_word_embeddings": False}),
    "electra-narrow": ("electra", {"embedding_size": 12}),
    "llama-tied": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "qwen3-biased": ("qwen3", {"tie_word_embeddings": True, "attention_bias": True}),
    "gemma-untied": ("gemma", {"tie_word_embeddings": False}),
    "deberta-v2-relative": ("deberta-v2", RELATIVE | {"share_att_key": True, "norm_rel_ebd": "layer_norm"}),
    "deberta-v2-own-matrices": ("deberta-v2", RELATIVE),
    "opt-unbiased": ("opt", {"enable_bias": False}),
}
MASKED = [name for name, (family, _) in VARIANTS.items() if FAMILIES[family].language_model == "masked"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def tiny_config(variant: str, sizes: Mapping[str, int] = SIZES) -> Any:
    name, changes = VARIANTS[variant]
    fields = {field: sizes[axis] for axis, field in FAMILIES[name].fields.items()}
    special = {"pad_token_id": 0} if name == "modernbert" else {}  # its own is far behind a tiny vocabulary
    return AutoConfig.for_model(name, **(fields | special | changes))


def tiny_model(variant: str, sizes: Mapping[str, int] = SIZES) -> PreTrainedModel:
    """In eval mode, with random weights large enough to matter."""
    torch.manual_seed(0)
    family = FAMILIES[VARIANTS[variant][0]]
    config = tiny_config(variant, sizes)
    model = taken_apart(AUTO_CLASSES[family.language_model].from_config(config, attn_implementation="eager"), family)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def tokenizer_for(variant: str, words: list[str]) -> PreTrainedTokenizerBase:
    """RoBERTa's own kind for RoBERTa, with its names of the special tokens; word pieces for all others."""
    if VARIANTS[variant][0] != "roberta":
        return BertTokenizerFast(vocab={word: place for place, word in enumerate([*SPECIAL, *words])})
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        [" ".join(words)] * 2, vocab_size=400, special_tokens=ROBERTA_SPECIAL, show_progress=False
    )
    pieces = json.loads(trained.to_str())["model"]
    return RobertaTokenizerFast(vocab=pieces["vocab"], merges=[tuple(pair) for pair in pieces["merges"]])


def save_teacher(variant: str, words: list[str], folder: Path) -> Path:
    """A folder of a tiny model with a tokenizer of its vocabulary."""
    tokenizer = tokenizer_for(variant, words)
    model = tiny_model(variant, SIZES | {"vocab": len(tokenizer)})
    put_together(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def odd_widths(plan: WidthPlan) -> Widths:
    """Legal, with fewer heads, and smaller ones where they may be."""
    shapes = [(heads, hidden) for hidden, heads in legal_shapes(plan) if hidden < 20 and heads < plan.full.heads]
    heads, hidden = max(shapes)
    return target_widths(plan, hidden, 21, heads)
