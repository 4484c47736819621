"""The width table of Mistral (Hugging Face model_type "mistral"): Llama's, without biases. A table, no code."""

from homodistil_ds.models.llama import FIELDS, decoder
from homodistil_ds.models.width import Family

MISTRAL = Family(
    model_type="mistral",
    language_model="causal",
    rows=decoder(),
    fields=FIELDS,
    attention="self_attn",
    head=("lm_head",),
    head_size="kept",
    hidden="free",
)
