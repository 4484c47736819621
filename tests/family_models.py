"""Tiny models of every family in the table, built from the table's own field names: a new family needs nothing here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoConfig,
    BertTokenizerFast,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaTokenizerFast,
)

from homodistil_ds.models.families import FAMILIES, legal_shapes, target_widths
from homodistil_ds.models.fused import put_together, taken_apart
from homodistil_ds.models.pieces import AUTO_CLASSES
from homodistil_ds.models.width import WidthPlan, Widths

SIZES = {
    **{"hidden": 32, "ffn": 64, "heads": 4, "layers": 2, "vocab": 185, "position": 64, "type": 2},
    # Where a family has them: two query heads per group, a head size that is not hidden / heads.
    **{"embedding": 32, "key_value_heads": 2, "head_size": 6, "decoder_layers": 3, "relative": 8},
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
    "opt-post-norm": ("opt", {"do_layer_norm_before": False}),
    "opt-unbiased": ("opt", {"enable_bias": False}),
    "t5-1.1": ("t5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
}
# ModernBERT's own padding is far behind a tiny vocabulary; published T5 folders say where their decoder begins.
STATED = {"modernbert": {"pad_token_id": 0}, "t5": {"decoder_start_token_id": 0}}
MASKED = [name for name, (family, _) in VARIANTS.items() if FAMILIES[family].language_model == "masked"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
T5_SPECIAL, T5_SENTINELS = ["<pad>", "</s>", "<unk>"], [f"<extra_id_{number}>" for number in range(99, -1, -1)]
ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def tiny_config(variant: str, sizes: Mapping[str, int] = SIZES) -> Any:
    name, changes = VARIANTS[variant]
    fields = {field: sizes[axis] for axis, field in FAMILIES[name].fields.items()}
    return AutoConfig.for_model(name, **(fields | STATED.get(name, {}) | changes))


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


class Plain(NamedTuple):
    """What a model called as transformers documents it puts out; an encoder's layers come before its decoder's."""

    logits: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...]
    attentions: tuple[torch.Tensor, ...]


def shown(model: PreTrainedModel, ids: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What the project's forward pass is given of ids [B, L]; for a decoder behind an encoder more of them."""
    return (ids, positions, longer(ids)) if model.config.is_encoder_decoder else (ids, positions)


def longer(ids: torch.Tensor) -> torch.Tensor:
    """Other ids, and not as many, for a decoder behind an encoder."""
    return torch.cat([ids.flip(1), ids[:, :3]], dim=1)


def plainly(model: PreTrainedModel, ids: torch.Tensor) -> Plain:
    """The same, all logits, from the model's own forward pass."""
    if not model.config.is_encoder_decoder:
        model.config.use_cache = False
        own = model(ids, output_hidden_states=True, output_attentions=True)
        return Plain(own.logits, own.hidden_states, own.attentions)
    own = model(
        input_ids=ids,
        decoder_input_ids=longer(ids),
        use_cache=False,
        output_hidden_states=True,
        output_attentions=True,
    )
    hidden = (*own.encoder_hidden_states, *own.decoder_hidden_states[1:])
    return Plain(own.logits, hidden, (*own.encoder_attentions, *own.decoder_attentions))


def tokenizer_for(variant: str, words: list[str]) -> PreTrainedTokenizerBase:
    """RoBERTa's own kind for RoBERTa, with its names of the special tokens; words and those of T5 for T5; word pieces
    for all others."""
    if VARIANTS[variant][0] == "t5":
        vocabulary = {word: place for place, word in enumerate([*T5_SPECIAL, *words, *T5_SENTINELS])}
        own = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
        own.pre_tokenizer = WhitespaceSplit()
        named = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        return PreTrainedTokenizerFast(tokenizer_object=own, extra_special_tokens=T5_SENTINELS, **named)
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
