"""The width table of RoBERTa (Hugging Face model_type "roberta"). A table, no code."""

from homodistil_ds.models.bert import FIELDS, QUERY, embeddings, layers, task_head
from homodistil_ds.models.width import Family, Row

ROBERTA = Family(
    model_type="roberta",
    language_model="masked",
    rows=(
        *embeddings("roberta"),
        *layers("roberta"),
        Row(pattern="lm_head.bias", axes=("vocab",), part="head"),
        Row(pattern="lm_head.dense.weight", axes=("hidden", "hidden"), part="head"),
        Row(pattern="lm_head.dense.bias", axes=("hidden",), part="head"),
        Row(pattern="lm_head.layer_norm.weight", axes=("hidden",), part="head"),
        Row(pattern="lm_head.layer_norm.bias", axes=("hidden",), part="head"),
    ),
    fields=FIELDS,
    attention="attention.self",
    query=QUERY,
    plain_scores=True,
    head=("lm_head",),
    head_transform="lm_head.dense",
    task_head=task_head("classifier.dense", "classifier.out_proj"),
    padded_positions=True,
)
