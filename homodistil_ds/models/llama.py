"""The width table of Llama (Hugging Face model_type "llama"), and what others share with it. A table, no code."""

from typing import Any

from homodistil_ds.models.width import Asked, Axis, Family, Row, matrices

_LAYER = "model.layers.{layer}"
# Name of a matrix in a layer -> what it gives and what it takes.
_ATTENTION: dict[str, tuple[Axis, Axis]] = {
    "self_attn.q_proj": ("queries", "hidden"),
    "self_attn.k_proj": ("keys", "hidden"),
    "self_attn.v_proj": ("keys", "hidden"),
    "self_attn.o_proj": ("hidden", "queries"),
}
_FEED_FORWARD: dict[str, tuple[Axis, Axis]] = {
    "mlp.gate_proj": ("ffn", "hidden"),
    "mlp.up_proj": ("ffn", "hidden"),
    "mlp.down_proj": ("hidden", "ffn"),
}
FIELDS = {
    "hidden": "hidden_size",
    "ffn": "intermediate_size",
    "heads": "num_attention_heads",
    "key_value_heads": "num_key_value_heads",
    "head_size": "head_dim",
    "layers": "num_hidden_layers",
    "vocab": "vocab_size",
    "position": "max_position_embeddings",
}


def never(config: Any) -> bool:
    return False


def decoder(inputs_biased: Asked = never, output_biased: Asked = never, ffn_biased: Asked = never) -> tuple[Row, ...]:
    """The whole model: its matrices have biases where the configuration says so, those of attention apart."""
    biased = {name: ffn_biased for name in _FEED_FORWARD} | {name: inputs_biased for name in _ATTENTION}
    biased["self_attn.o_proj"] = output_biased
    return (
        Row(pattern="model.embed_tokens.weight", axes=("vocab", "hidden"), part="embeddings"),
        *matrices(_LAYER, _ATTENTION | _FEED_FORWARD, biased),
        Row(pattern=f"{_LAYER}.input_layernorm.weight", axes=("hidden",), part="vectors"),
        Row(pattern=f"{_LAYER}.post_attention_layernorm.weight", axes=("hidden",), part="vectors"),
        Row(pattern="model.norm.weight", axes=("hidden",), part="vectors"),
        Row(
            pattern="lm_head.weight",
            axes=("vocab", "hidden"),
            part="head",
            when=lambda config: not config.tie_word_embeddings,
        ),
    )


def attention_biased(config: Any) -> bool:
    return config.attention_bias


LLAMA = Family(
    model_type="llama",
    language_model="causal",
    rows=decoder(attention_biased, attention_biased, lambda config: config.mlp_bias),
    fields=FIELDS,
    attention="self_attn",
    head=("lm_head",),
    head_size="kept",  # rotary frequencies are computed from it
)
