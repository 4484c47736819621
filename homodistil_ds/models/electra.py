"""The width table of ELECTRA generators (Hugging Face model_type "electra"). A table, no code."""

from homodistil_ds.models.bert import FIELDS, QUERY, embeddings, layers, task_head
from homodistil_ds.models.width import Family, Row

ELECTRA = Family(
    model_type="electra",
    language_model="masked",
    rows=(
        *embeddings("electra", "embedding"),
        Row(
            pattern="electra.embeddings_project.weight",
            axes=("hidden", "embedding"),
            part="embeddings",
            when=lambda config: config.embedding_size != config.hidden_size,
        ),
        Row(
            pattern="electra.embeddings_project.bias",
            axes=("hidden",),
            part="embeddings",
            when=lambda config: config.embedding_size != config.hidden_size,
        ),
        *layers("electra"),
        Row(pattern="generator_predictions.LayerNorm.weight", axes=("embedding",), part="head"),
        Row(pattern="generator_predictions.LayerNorm.bias", axes=("embedding",), part="head"),
        Row(pattern="generator_predictions.dense.weight", axes=("embedding", "hidden"), part="head"),
        Row(pattern="generator_predictions.dense.bias", axes=("embedding",), part="head"),
        Row(pattern="generator_lm_head.bias", axes=("vocab",), part="head"),
    ),
    fields=FIELDS | {"embedding": "embedding_size"},
    merges={"embedding": "hidden"},
    attention="attention.self",
    query=QUERY,
    plain_scores=True,
    head=("generator_predictions", "generator_lm_head"),
    head_transform="generator_predictions.dense",
    task_head=task_head("classifier.dense", "classifier.out_proj"),
)
