"""The width table of Qwen2 (Hugging Face model_type "qwen2"): Llama's, with biases of queries, keys and values."""

from homodistil_ds.models.llama import FIELDS, decoder
from homodistil_ds.models.width import Family

QWEN2 = Family(
    model_type="qwen2",
    language_model="causal",
    rows=decoder(inputs_biased=lambda config: True),
    fields=FIELDS,
    attention="self_attn",
    head=("lm_head",),
    head_size="kept",
    hidden="free",
)
