"""The width table of Gemma (Hugging Face model_type "gemma"): Llama's, with scaled embeddings. A table, no code."""

from homodistil_ds.models.llama import FIELDS, attention_biased, decoder
from homodistil_ds.models.width import Family

GEMMA = Family(
    model_type="gemma",
    language_model="causal",
    rows=decoder(attention_biased, attention_biased),
    fields=FIELDS,
    attention="self_attn",
    head=("lm_head",),
    head_size="kept",
    hidden="free",
    scaled_embedding="model.embed_tokens",
    last_norm="model.norm.weight",
)
