"""The width table of DistilBERT (Hugging Face model_type "distilbert"). A table, no code."""

from homodistil_ds.models.bert import task_head
from homodistil_ds.models.width import Family, Row

_LAYER = "distilbert.transformer.layer.{layer}"

DISTILBERT = Family(
    model_type="distilbert",
    language_model="masked",
    rows=(
        Row(pattern="distilbert.embeddings.word_embeddings.weight", axes=("vocab", "hidden"), part="embeddings"),
        Row(pattern="distilbert.embeddings.position_embeddings.weight", axes=("position", "hidden"), part="embeddings"),
        Row(pattern="distilbert.embeddings.LayerNorm.weight", axes=("hidden",), part="embeddings"),
        Row(pattern="distilbert.embeddings.LayerNorm.bias", axes=("hidden",), part="embeddings"),
        Row(pattern=f"{_LAYER}.attention.q_lin.weight", axes=("qk", "hidden"), part="matrices"),
        Row(pattern=f"{_LAYER}.attention.q_lin.bias", axes=("qk",), part="vectors"),
        Row(pattern=f"{_LAYER}.attention.k_lin.weight", axes=("qk", "hidden"), part="matrices"),
        Row(pattern=f"{_LAYER}.attention.k_lin.bias", axes=("qk",), part="vectors"),
        Row(pattern=f"{_LAYER}.attention.v_lin.weight", axes=("vo", "hidden"), part="matrices"),
        Row(pattern=f"{_LAYER}.attention.v_lin.bias", axes=("vo",), part="vectors"),
        Row(pattern=f"{_LAYER}.attention.out_lin.weight", axes=("hidden", "vo"), part="matrices"),
        Row(pattern=f"{_LAYER}.attention.out_lin.bias", axes=("hidden",), part="vectors"),
        Row(pattern=f"{_LAYER}.sa_layer_norm.weight", axes=("hidden",), part="vectors"),
        Row(pattern=f"{_LAYER}.sa_layer_norm.bias", axes=("hidden",), part="vectors"),
        Row(pattern=f"{_LAYER}.ffn.lin1.weight", axes=("ffn", "hidden"), part="matrices"),
        Row(pattern=f"{_LAYER}.ffn.lin1.bias", axes=("ffn",), part="vectors"),
        Row(pattern=f"{_LAYER}.ffn.lin2.weight", axes=("hidden", "ffn"), part="matrices"),
        Row(pattern=f"{_LAYER}.ffn.lin2.bias", axes=("hidden",), part="vectors"),
        Row(pattern=f"{_LAYER}.output_layer_norm.weight", axes=("hidden",), part="vectors"),
        Row(pattern=f"{_LAYER}.output_layer_norm.bias", axes=("hidden",), part="vectors"),
        Row(pattern="vocab_transform.weight", axes=("hidden", "hidden"), part="head"),
        Row(pattern="vocab_transform.bias", axes=("hidden",), part="head"),
        Row(pattern="vocab_layer_norm.weight", axes=("hidden",), part="head"),
        Row(pattern="vocab_layer_norm.bias", axes=("hidden",), part="head"),
        Row(pattern="vocab_projector.bias", axes=("vocab",), part="head"),
    ),
    fields={
        "hidden": "dim",
        "ffn": "hidden_dim",
        "heads": "n_heads",
        "layers": "n_layers",
        "vocab": "vocab_size",
        "position": "max_position_embeddings",
    },
    attention=".attention",
    query=("attention.q_lin.weight", "attention.q_lin.bias"),
    plain_scores=True,
    head=("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
    head_transform="vocab_transform",
    task_head=task_head("pre_classifier", "classifier"),
)
