"""The width table of ModernBERT (Hugging Face model_type "modernbert"), with its matrices apart. A table, no code."""

from homodistil_ds.models.bert import FIELDS
from homodistil_ds.models.width import Asked, Axis, Family, Row, matrices

_LAYER = "model.layers.{layer}"
_ATTENTION: dict[str, tuple[Axis, Axis]] = {
    "attn.Wqkv.query": ("queries", "hidden"),
    "attn.Wqkv.key": ("keys", "hidden"),
    "attn.Wqkv.value": ("keys", "hidden"),
    "attn.Wo": ("hidden", "queries"),
}
_FEED_FORWARD: dict[str, tuple[Axis, Axis]] = {
    "mlp.Wi.input": ("ffn", "hidden"),
    "mlp.Wi.gate": ("ffn", "hidden"),
    "mlp.Wo": ("hidden", "ffn"),
}


def _asks(name: str) -> Asked:
    return lambda config: getattr(config, name)


_BIASED = dict.fromkeys(_ATTENTION, _asks("attention_bias")) | dict.fromkeys(_FEED_FORWARD, _asks("mlp_bias"))
# Before the words, and before the classes.
_HEAD = (
    Row(pattern="head.dense.weight", axes=("hidden", "hidden"), part="head"),
    Row(pattern="head.dense.bias", axes=("hidden",), part="head", when=_asks("classifier_bias")),
    Row(pattern="head.norm.weight", axes=("hidden",), part="head"),
    Row(pattern="head.norm.bias", axes=("hidden",), part="head", when=_asks("norm_bias")),
)

MODERNBERT = Family(
    model_type="modernbert",
    language_model="masked",
    rows=(
        Row(pattern="model.embeddings.tok_embeddings.weight", axes=("vocab", "hidden"), part="embeddings"),
        Row(pattern="model.embeddings.norm.weight", axes=("hidden",), part="embeddings"),
        Row(pattern="model.embeddings.norm.bias", axes=("hidden",), part="embeddings", when=_asks("norm_bias")),
        *matrices(_LAYER, _ATTENTION | _FEED_FORWARD, _BIASED),
        # The embeddings' norm is the first layer's.
        Row(pattern=f"{_LAYER}.attn_norm.weight", axes=("hidden",), part="vectors", since=1),
        Row(pattern=f"{_LAYER}.attn_norm.bias", axes=("hidden",), part="vectors", since=1, when=_asks("norm_bias")),
        Row(pattern=f"{_LAYER}.mlp_norm.weight", axes=("hidden",), part="vectors"),
        Row(pattern=f"{_LAYER}.mlp_norm.bias", axes=("hidden",), part="vectors", when=_asks("norm_bias")),
        Row(pattern="model.final_norm.weight", axes=("hidden",), part="vectors"),
        Row(pattern="model.final_norm.bias", axes=("hidden",), part="vectors", when=_asks("norm_bias")),
        *_HEAD,
        Row(pattern="decoder.bias", axes=("vocab",), part="head", when=_asks("decoder_bias")),
    ),
    fields={axis: name for axis, name in FIELDS.items() if axis != "type"},
    attention=None,  # it scales by its own head size, from which its rotary frequencies come too
    head=("head", "decoder"),
    head_transform="head.dense",
    head_size="kept",
    hidden="exact",
    task_head=(
        *_HEAD,
        Row(pattern="classifier.weight", axes=("classes", "hidden"), part="head"),
        Row(pattern="classifier.bias", axes=("classes",), part="head"),
    ),
    fused={"attn.Wqkv": ("query", "key", "value"), "mlp.Wi": ("input", "gate")},
)
