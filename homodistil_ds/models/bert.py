"""The width table of BERT (Hugging Face model_type "bert"). A table, no code."""

from homodistil_ds.models.width import Family, Row

_LAYER = "bert.encoder.layer.{layer}"

BERT = Family(
    model_type="bert",
    rows=(
        Row(pattern="bert.embeddings.word_embeddings.weight", axes=("vocab", "hidden"), part="embeddings"),
        Row(pattern="bert.embeddings.position_embeddings.weight", axes=("position", "hidden"), part="embeddings"),
        Row(pattern="bert.embeddings.token_type_embeddings.weight", axes=("type", "hidden"), part="embeddings"),
        Row(pattern="bert.embeddings.LayerNorm.weight", axes=("hidden",), part="embeddings"),
        Row(pattern="bert.embeddings.LayerNorm.bias", axes=("hidden",), part="embeddings"),
        Row(pattern=f"{_LAYER}.attention.self.query.weight", axes=("qk", "hidden"), part="matrices"),
        Row(pattern=f"{_LAYER}.attention.self.query.bias", axes=("qk",), part="vectors"),
        Row(pattern=f"{_LAYER}.attention.self.key.weight", axes=("qk", "hidden"), part="matrices"),
        Row(pattern=f"{_LAYER}.attention.self.key.bias", axes=("qk",), part="vectors"),
        Row(pattern=f"{_LAYER}.attention.self.value.weight", axes=("vo", "hidden"), part="matrices"),
        Row(pattern=f"{_LAYER}.attention.self.value.bias", axes=("vo",), part="vectors"),
        Row(pattern=f"{_LAYER}.attention.output.dense.weight", axes=("hidden", "vo"), part="matrices"),
        Row(pattern=f"{_LAYER}.attention.output.dense.bias", axes=("hidden",), part="vectors"),
        Row(pattern=f"{_LAYER}.attention.output.LayerNorm.weight", axes=("hidden",), part="vectors"),
        Row(pattern=f"{_LAYER}.attention.output.LayerNorm.bias", axes=("hidden",), part="vectors"),
        Row(pattern=f"{_LAYER}.intermediate.dense.weight", axes=("ffn", "hidden"), part="matrices"),
        Row(pattern=f"{_LAYER}.intermediate.dense.bias", axes=("ffn",), part="vectors"),
        Row(pattern=f"{_LAYER}.output.dense.weight", axes=("hidden", "ffn"), part="matrices"),
        Row(pattern=f"{_LAYER}.output.dense.bias", axes=("hidden",), part="vectors"),
        Row(pattern=f"{_LAYER}.output.LayerNorm.weight", axes=("hidden",), part="vectors"),
        Row(pattern=f"{_LAYER}.output.LayerNorm.bias", axes=("hidden",), part="vectors"),
        Row(pattern="cls.predictions.bias", axes=("vocab",), part="head"),
        Row(pattern="cls.predictions.transform.dense.weight", axes=("hidden", "hidden"), part="head"),
        Row(pattern="cls.predictions.transform.dense.bias", axes=("hidden",), part="head"),
        Row(pattern="cls.predictions.transform.LayerNorm.weight", axes=("hidden",), part="head"),
        Row(pattern="cls.predictions.transform.LayerNorm.bias", axes=("hidden",), part="head"),
    ),
    fields={
        "hidden": "hidden_size",
        "ffn": "intermediate_size",
        "heads": "num_attention_heads",
        "vocab": "vocab_size",
        "position": "max_position_embeddings",
        "type": "type_vocab_size",
    },
    norms="LayerNorm",
    attention="attention.self",
    query=("attention.self.query.weight", "attention.self.query.bias"),
    head="cls",
    head_transform="cls.predictions.transform.dense",
)
