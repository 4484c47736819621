"""The width table of DeBERTa-v2 and v3 (Hugging Face model_type "deberta-v2"), but for those with convolutions."""

from typing import Any

from homodistil_ds.models.bert import FIELDS, VOCABULARY_HEAD, task_head
from homodistil_ds.models.width import Axis, Family, Row, matrices

_EMBEDDINGS = "deberta.embeddings"
_LAYER = "deberta.encoder.layer.{layer}"
_SELF = "attention.self"
# In the order queries, keys, values. Heads keep their size: the scores are divided by what the code finds it to be.
_MATRICES: dict[str, tuple[Axis, Axis]] = {
    f"{_SELF}.query_proj": ("queries", "hidden"),
    f"{_SELF}.key_proj": ("keys", "hidden"),
    f"{_SELF}.value_proj": ("keys", "hidden"),
    "attention.output.dense": ("hidden", "keys"),
    "intermediate.dense": ("ffn", "hidden"),
    "output.dense": ("hidden", "ffn"),
}
_BOTH = ("weight", "bias")


def _positions_are_added(config: Any) -> bool:
    return config.position_biased_input


def _projects_positions(kind: str) -> Any:
    """Whether positions have a key or query matrix of their own."""
    return lambda config: (
        config.relative_attention
        and not getattr(config, "share_att_key", False)
        and kind in (config.pos_att_type or ())
    )


def _distances(config: Any) -> int:
    """Rows of the table of relative positions."""
    buckets = getattr(config, "position_buckets", -1)
    longest = config.max_relative_positions if config.max_relative_positions > 0 else config.max_position_embeddings
    return 2 * (buckets if buckets > 0 else longest)


def _refused(config: Any) -> str:
    if getattr(config, "conv_kernel_size", 0) > 0:
        return "a convolution"
    return "" if getattr(config, "legacy", True) else "legacy off, which has another vocabulary head"


def _compared(config: Any) -> int:
    """Rows of that table that a layer multiplies every query or key with."""
    kinds = {"c2p", "p2c"} & set(config.pos_att_type or ()) if config.relative_attention else set()
    return len(kinds) * _distances(config)


DEBERTA_V2 = Family(
    model_type="deberta-v2",
    language_model="masked",
    rows=(
        Row(pattern=f"{_EMBEDDINGS}.word_embeddings.weight", axes=("vocab", "hidden"), part="embeddings"),
        Row(
            pattern=f"{_EMBEDDINGS}.position_embeddings.weight",
            axes=("position", "hidden"),
            part="embeddings",
            when=_positions_are_added,
        ),
        Row(
            pattern=f"{_EMBEDDINGS}.token_type_embeddings.weight",
            axes=("type", "hidden"),
            part="embeddings",
            when=lambda config: config.type_vocab_size > 0,
        ),
        *(Row(pattern=f"{_EMBEDDINGS}.LayerNorm.{name}", axes=("hidden",), part="embeddings") for name in _BOTH),
        *matrices(_LAYER, _MATRICES),
        *(
            Row(
                pattern=f"{_LAYER}.{_SELF}.{matrix}.{name}",
                axes=("keys", "hidden") if name == "weight" else ("keys",),
                part="matrices" if name == "weight" else "vectors",
                reads="positions",
                when=_projects_positions(kind),
            )
            for matrix, kind in (("pos_key_proj", "c2p"), ("pos_query_proj", "p2c"))
            for name in _BOTH
        ),
        *(
            Row(pattern=f"{_LAYER}.{place}.LayerNorm.{name}", axes=("hidden",), part="vectors")
            for place in ("attention.output", "output")
            for name in _BOTH
        ),
        Row(
            pattern="deberta.encoder.rel_embeddings.weight",
            axes=("relative", "hidden"),
            part="embeddings",
            when=lambda config: config.relative_attention,
        ),
        *(
            Row(
                pattern=f"deberta.encoder.LayerNorm.{name}",
                axes=("hidden",),
                part="embeddings",
                when=lambda config: "layer_norm" in getattr(config, "norm_rel_ebd", "none"),
            )
            for name in _BOTH
        ),
        *VOCABULARY_HEAD,
    ),
    fields=FIELDS,
    attention=None,  # it scales by what it finds
    head=("cls",),
    head_transform="cls.predictions.transform.dense",
    head_size="kept",
    hidden="exact",
    computed={"relative": _distances, "compared": _compared},
    follows={"pooler_hidden_size": "hidden"},
    refused=_refused,
    task_head=task_head("pooler.dense", "classifier"),
)
