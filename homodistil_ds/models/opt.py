"""The width table of OPT (Hugging Face model_type "opt"), with embeddings as wide as its layers. A table, no code."""

from typing import Any

from homodistil_ds.models.width import Axis, Family, Row, matrices

_LAYER = "model.decoder.layers.{layer}"
# In the order queries, keys, values; the model itself has its keys first.
_MATRICES: dict[str, tuple[Axis, Axis]] = {
    "self_attn.q_proj": ("qk", "hidden"),
    "self_attn.k_proj": ("qk", "hidden"),
    "self_attn.v_proj": ("vo", "hidden"),
    "self_attn.out_proj": ("hidden", "vo"),
    "fc1": ("ffn", "hidden"),
    "fc2": ("hidden", "ffn"),
}
_NORMS = ("self_attn_layer_norm", "final_layer_norm")


def _refused(config: Any) -> str:
    if config.word_embed_proj_dim != config.hidden_size:
        return "narrower embeddings"
    return "" if config.layer_norm_elementwise_affine else "norms without weights"


def _has_last_norm(config: Any) -> bool:
    return config.do_layer_norm_before and not config._remove_final_layer_norm


OPT = Family(
    model_type="opt",
    language_model="causal",
    rows=(
        Row(pattern="model.decoder.embed_tokens.weight", axes=("vocab", "embedding"), part="embeddings"),
        Row(pattern="model.decoder.embed_positions.weight", axes=("position", "hidden"), part="embeddings"),
        *matrices(_LAYER, _MATRICES, dict.fromkeys(_MATRICES, lambda config: config.enable_bias)),
        *(
            Row(pattern=f"{_LAYER}.{norm}.{name}", axes=("hidden",), part="vectors")
            for norm in _NORMS
            for name in ("weight", "bias")
        ),
        *(
            Row(
                pattern=f"model.decoder.final_layer_norm.{name}",
                axes=("hidden",),
                part="vectors",
                when=_has_last_norm,
            )
            for name in ("weight", "bias")
        ),
        Row(
            pattern="lm_head.weight",
            axes=("vocab", "hidden"),
            part="head",
            when=lambda config: not config.tie_word_embeddings,
        ),
    ),
    fields={
        "hidden": "hidden_size",
        "embedding": "word_embed_proj_dim",
        "ffn": "ffn_dim",
        "heads": "num_attention_heads",
        "layers": "num_hidden_layers",
        "vocab": "vocab_size",
        "position": "max_position_embeddings",
    },
    attention="self_attn",
    query=("self_attn.q_proj.weight", "self_attn.q_proj.bias"),
    plain_scores=True,
    head=("lm_head",),
    merges={"embedding": "hidden"},
    refused=_refused,
    positions_before=2,
)
