"""The width table of GPT-2 (Hugging Face model_type "gpt2"), with its matrices apart. A table, no code."""

from typing import Any

from homodistil_ds.models.width import Axis, Family, Row, matrices

_LAYER = "transformer.h.{layer}"
_MATRICES: dict[str, tuple[Axis, Axis]] = {
    "attn.c_attn.query": ("qk", "hidden"),
    "attn.c_attn.key": ("qk", "hidden"),
    "attn.c_attn.value": ("vo", "hidden"),
    "attn.c_proj": ("hidden", "vo"),
    "mlp.c_fc": ("ffn", "hidden"),
    "mlp.c_proj": ("hidden", "ffn"),
}
_NORMS = (f"{_LAYER}.ln_1", f"{_LAYER}.ln_2", "transformer.ln_f")


def _refused(config: Any) -> str:
    """Attention that is scaled by more than its head size would lose that in a cut."""
    plain = config.scale_attn_weights and not config.scale_attn_by_inverse_layer_idx
    return "" if plain else "scale_attn_weights off or scale_attn_by_inverse_layer_idx on"


GPT2 = Family(
    model_type="gpt2",
    language_model="causal",
    rows=(
        Row(pattern="transformer.wte.weight", axes=("vocab", "hidden"), part="embeddings"),
        Row(pattern="transformer.wpe.weight", axes=("position", "hidden"), part="embeddings"),
        *matrices(_LAYER, _MATRICES),
        *(
            Row(pattern=f"{norm}.{name}", axes=("hidden",), part="vectors")
            for norm in _NORMS
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
        "hidden": "n_embd",
        "ffn": "n_inner",
        "heads": "n_head",
        "layers": "n_layer",
        "vocab": "vocab_size",
        "position": "n_positions",
    },
    computed={"ffn": lambda config: config.n_inner or 4 * config.n_embd},
    attention=".attn",
    query=("c_attn.query.weight", "c_attn.query.bias"),
    plain_scores=True,
    head=("lm_head",),
    refused=_refused,
    fused={"attn.c_attn": ("query", "key", "value")},
)
