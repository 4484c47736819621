"""The width table of T5 (Hugging Face model_type "t5"), an encoder and a decoder. A table, no code.

Layers are counted over both stacks, the encoder's first.
"""

from typing import Any

from homodistil_ds.models.width import Axis, Family, Row, Stack

_HEADS: tuple[Axis, ...] = ("queries", "keys", "keys")


def _is_gated(config: Any) -> bool:
    return config.is_gated_act


def _is_plain(config: Any) -> bool:
    return not config.is_gated_act


def _has_own_head(config: Any) -> bool:
    """T5 1.1 and what came after it: the head is no longer the embedding, nor are its states divided."""
    return not config.scale_decoder_outputs


def _stack(name: str, stack: Stack, last: int) -> tuple[Row, ...]:
    """Self-attention and feed-forward matrices, the latter part number `last` of a block."""
    own, ffn = f"{name}.block.{{layer}}.layer.0", f"{name}.block.{{layer}}.layer.{last}"
    attention, dense = f"{own}.SelfAttention", f"{ffn}.DenseReluDense"
    matrices: tuple[tuple[str, tuple[Axis, Axis], Any], ...] = (
        *((f"{attention}.{letter}", (axis, "hidden"), None) for letter, axis in zip("qkv", _HEADS, strict=True)),
        (f"{attention}.o", ("hidden", "keys"), None),
        (f"{dense}.wi", ("ffn", "hidden"), _is_plain),
        (f"{dense}.wi_0", ("ffn", "hidden"), _is_gated),
        (f"{dense}.wi_1", ("ffn", "hidden"), _is_gated),
        (f"{dense}.wo", ("hidden", "ffn"), None),
    )
    norms = (f"{own}.layer_norm", f"{ffn}.layer_norm", f"{name}.final_layer_norm")
    return (
        *(
            Row(pattern=f"{path}.weight", axes=axes, part="matrices", when=when, stack=stack)
            for path, axes, when in matrices
        ),
        *(Row(pattern=f"{path}.weight", axes=("hidden",), part="vectors", stack=stack) for path in norms),
        # One table, in the first block, says for every layer how each head sees distances.
        Row(
            pattern=f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            axes=("relative", "heads"),
            part="embeddings",
            stack=stack,
        ),
    )


def _crossing() -> tuple[Row, ...]:
    """The attention of a decoder's layer to the encoder's states."""
    place = "decoder.block.{layer}.layer.1"
    attention = f"{place}.EncDecAttention"
    into = (
        Row(
            pattern=f"{attention}.{letter}.weight",
            axes=("crossing", "hidden"),
            part="matrices",
            stack="decoder",
            reads="own" if letter == "q" else "encoder",
        )
        for letter in "qkv"
    )
    return (
        *into,
        Row(pattern=f"{attention}.o.weight", axes=("hidden", "crossing"), part="matrices", stack="decoder"),
        Row(pattern=f"{place}.layer_norm.weight", axes=("hidden",), part="vectors", stack="decoder"),
    )


T5 = Family(
    model_type="t5",
    language_model="denoising",
    rows=(
        Row(pattern="shared.weight", axes=("vocab", "hidden"), part="embeddings"),
        *_stack("encoder", "first", last=1),
        *_stack("decoder", "decoder", last=2),
        *_crossing(),
        Row(pattern="lm_head.weight", axes=("vocab", "hidden"), part="head", when=_has_own_head),
    ),
    fields={
        "hidden": "d_model",
        "ffn": "d_ff",
        "heads": "num_heads",
        "head_size": "d_kv",
        "layers": "num_layers",
        "decoder_layers": "num_decoder_layers",
        "vocab": "vocab_size",
        "relative": "relative_attention_num_buckets",
    },
    attention=None,  # scores are not divided, and heads keep their size
    head=("lm_head",),
    head_size="kept",
    hidden="free",
    layers_alike=False,
    heads_in_common=True,
    divides_head=lambda config: config.scale_decoder_outputs,
    head_divisor="model_dim",
    head_gain="decoder.final_layer_norm.weight",
    own_head=_has_own_head,
)
