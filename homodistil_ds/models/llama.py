"""The width table of Llama (Hugging Face model_type "llama"). A table, no code."""

from homodistil_ds.models.width import Family, Row

_ATTENTION = "model.layers.{layer}.self_attn"
_MLP = "model.layers.{layer}.mlp"

LLAMA = Family(
    model_type="llama",
    language_model="causal",
    rows=(
        Row(pattern="model.embed_tokens.weight", axes=("vocab", "hidden"), part="embeddings"),
        Row(pattern=f"{_ATTENTION}.q_proj.weight", axes=("queries", "hidden"), part="matrices"),
        Row(pattern=f"{_ATTENTION}.q_proj.bias", axes=("queries",), part="vectors", when=lambda c: c.attention_bias),
        Row(pattern=f"{_ATTENTION}.k_proj.weight", axes=("keys", "hidden"), part="matrices"),
        Row(pattern=f"{_ATTENTION}.k_proj.bias", axes=("keys",), part="vectors", when=lambda c: c.attention_bias),
        Row(pattern=f"{_ATTENTION}.v_proj.weight", axes=("keys", "hidden"), part="matrices"),
        Row(pattern=f"{_ATTENTION}.v_proj.bias", axes=("keys",), part="vectors", when=lambda c: c.attention_bias),
        Row(pattern=f"{_ATTENTION}.o_proj.weight", axes=("hidden", "queries"), part="matrices"),
        Row(pattern=f"{_ATTENTION}.o_proj.bias", axes=("hidden",), part="vectors", when=lambda c: c.attention_bias),
        Row(pattern=f"{_MLP}.gate_proj.weight", axes=("ffn", "hidden"), part="matrices"),
        Row(pattern=f"{_MLP}.gate_proj.bias", axes=("ffn",), part="vectors", when=lambda c: c.mlp_bias),
        Row(pattern=f"{_MLP}.up_proj.weight", axes=("ffn", "hidden"), part="matrices"),
        Row(pattern=f"{_MLP}.up_proj.bias", axes=("ffn",), part="vectors", when=lambda c: c.mlp_bias),
        Row(pattern=f"{_MLP}.down_proj.weight", axes=("hidden", "ffn"), part="matrices"),
        Row(pattern=f"{_MLP}.down_proj.bias", axes=("hidden",), part="vectors", when=lambda c: c.mlp_bias),
        Row(pattern="model.layers.{layer}.input_layernorm.weight", axes=("hidden",), part="vectors"),
        Row(pattern="model.layers.{layer}.post_attention_layernorm.weight", axes=("hidden",), part="vectors"),
        Row(pattern="model.norm.weight", axes=("hidden",), part="vectors"),
        Row(
            pattern="lm_head.weight",
            axes=("vocab", "hidden"),
            part="head",
            when=lambda c: not c.tie_word_embeddings,
        ),
    ),
    fields={
        "hidden": "hidden_size",
        "ffn": "intermediate_size",
        "heads": "num_attention_heads",
        "key_value_heads": "num_key_value_heads",
        "head_size": "head_dim",
        "layers": "num_hidden_layers",
        "vocab": "vocab_size",
        "position": "max_position_embeddings",
    },
    attention="self_attn",
    head=("lm_head",),
    head_size="kept",  # rotary frequencies are computed from it
)
