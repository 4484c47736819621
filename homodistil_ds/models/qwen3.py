"""The width table of Qwen3 (Hugging Face model_type "qwen3"): Llama's, with norms in each head. A table, no code."""

from homodistil_ds.models.llama import FIELDS, attention_biased, decoder
from homodistil_ds.models.width import Family, Row

_ATTENTION = "model.layers.{layer}.self_attn"

QWEN3 = Family(
    model_type="qwen3",
    language_model="causal",
    rows=(
        *decoder(attention_biased, attention_biased),
        Row(pattern=f"{_ATTENTION}.q_norm.weight", axes=("head_size",), part="vectors"),
        Row(pattern=f"{_ATTENTION}.k_norm.weight", axes=("head_size",), part="vectors"),
    ),
    fields=FIELDS,
    attention="self_attn",
    head=("lm_head",),
    head_size="kept",
    hidden="free",
)
