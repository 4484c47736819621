"""The width table of BERT (Hugging Face model_type "bert"), and what its descendants share with it."""

from homodistil_ds.models.width import Axis, Family, Row

FIELDS = {
    "hidden": "hidden_size",
    "ffn": "intermediate_size",
    "heads": "num_attention_heads",
    "layers": "num_hidden_layers",
    "vocab": "vocab_size",
    "position": "max_position_embeddings",
    "type": "type_vocab_size",
}


VOCABULARY_HEAD = (
    Row(pattern="cls.predictions.bias", axes=("vocab",), part="head"),
    Row(pattern="cls.predictions.transform.dense.weight", axes=("hidden", "hidden"), part="head"),
    Row(pattern="cls.predictions.transform.dense.bias", axes=("hidden",), part="head"),
    Row(pattern="cls.predictions.transform.LayerNorm.weight", axes=("hidden",), part="head"),
    Row(pattern="cls.predictions.transform.LayerNorm.bias", axes=("hidden",), part="head"),
)
QUERY = ("attention.self.query.weight", "attention.self.query.bias")


def embeddings(model: str, axis: Axis = "hidden") -> tuple[Row, ...]:
    """The embeddings of BERT, of the width `axis`, under a model's own name."""
    own = f"{model}.embeddings"
    return (
        Row(pattern=f"{own}.word_embeddings.weight", axes=("vocab", axis), part="embeddings"),
        Row(pattern=f"{own}.position_embeddings.weight", axes=("position", axis), part="embeddings"),
        Row(pattern=f"{own}.token_type_embeddings.weight", axes=("type", axis), part="embeddings"),
        Row(pattern=f"{own}.LayerNorm.weight", axes=(axis,), part="embeddings"),
        Row(pattern=f"{own}.LayerNorm.bias", axes=(axis,), part="embeddings"),
    )


def layers(model: str) -> tuple[Row, ...]:
    """The encoder layers of BERT, which other models hold under their own name."""
    layer = f"{model}.encoder.layer.{{layer}}"
    return (
        Row(pattern=f"{layer}.attention.self.query.weight", axes=("qk", "hidden"), part="matrices"),
        Row(pattern=f"{layer}.attention.self.query.bias", axes=("qk",), part="vectors"),
        Row(pattern=f"{layer}.attention.self.key.weight", axes=("qk", "hidden"), part="matrices"),
        Row(pattern=f"{layer}.attention.self.key.bias", axes=("qk",), part="vectors"),
        Row(pattern=f"{layer}.attention.self.value.weight", axes=("vo", "hidden"), part="matrices"),
        Row(pattern=f"{layer}.attention.self.value.bias", axes=("vo",), part="vectors"),
        Row(pattern=f"{layer}.attention.output.dense.weight", axes=("hidden", "vo"), part="matrices"),
        Row(pattern=f"{layer}.attention.output.dense.bias", axes=("hidden",), part="vectors"),
        Row(pattern=f"{layer}.attention.output.LayerNorm.weight", axes=("hidden",), part="vectors"),
        Row(pattern=f"{layer}.attention.output.LayerNorm.bias", axes=("hidden",), part="vectors"),
        Row(pattern=f"{layer}.intermediate.dense.weight", axes=("ffn", "hidden"), part="matrices"),
        Row(pattern=f"{layer}.intermediate.dense.bias", axes=("ffn",), part="vectors"),
        Row(pattern=f"{layer}.output.dense.weight", axes=("hidden", "ffn"), part="matrices"),
        Row(pattern=f"{layer}.output.dense.bias", axes=("hidden",), part="vectors"),
        Row(pattern=f"{layer}.output.LayerNorm.weight", axes=("hidden",), part="vectors"),
        Row(pattern=f"{layer}.output.LayerNorm.bias", axes=("hidden",), part="vectors"),
    )


def task_head(hidden: str, last: str) -> tuple[Row, ...]:
    """A hidden matrix and the one that gives the classes."""
    return (
        Row(pattern=f"{hidden}.weight", axes=("hidden", "hidden"), part="head"),
        Row(pattern=f"{hidden}.bias", axes=("hidden",), part="head"),
        Row(pattern=f"{last}.weight", axes=("classes", "hidden"), part="head"),
        Row(pattern=f"{last}.bias", axes=("classes",), part="head"),
    )


BERT = Family(
    model_type="bert",
    language_model="masked",
    rows=(
        *embeddings("bert"),
        *layers("bert"),
        *VOCABULARY_HEAD,
    ),
    fields=FIELDS,
    attention="attention.self",
    query=QUERY,
    plain_scores=True,
    head=("cls",),
    head_transform="cls.predictions.transform.dense",
    task_head=task_head("bert.pooler.dense", "classifier"),
)
