"""The forward pass of a language model, computing only what some loss reads, and the module that is trained.

Shapes: B batch, L length, K predicted positions per row, H hidden, A heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from homodistil_ds.models.width import Family

Read = Literal["logits", "predicted", "hidden", "attention", "embedding", "last", "queries", "keys", "values"]


class Activations(NamedTuple):
    """What a forward pass hands to the losses; a part that nobody reads is empty or None. A tuple, as ZeRO-3 needs it.

    logits [B, K, V] at the predicted positions; hidden: one [B, L, H] per layer; attention: one [B, A, L, L] per layer
    of probabilities; embedding [B, L, H] is the output of the embedding layer; last [B, L, H]: the states of the
    last layer at the model's own width; queries, keys and values: one [B, A, L, D] per layer. With queries come
    `scale`, by which attention multiplies their products with keys, and `causal`: a token attends to no later one.

    In place of logits: predicted [B, K, H] are the states that the vocabulary head makes them of, and head [n, H] ->
    [n, V] does so, which whoever holds the model adds; matrix [V, H] is all there is of the head, where that is so.
    """

    logits: torch.Tensor | None = None
    hidden: tuple[torch.Tensor, ...] = ()
    attention: tuple[torch.Tensor, ...] = ()
    embedding: torch.Tensor | None = None
    last: torch.Tensor | None = None
    queries: tuple[torch.Tensor, ...] = ()
    keys: tuple[torch.Tensor, ...] = ()
    values: tuple[torch.Tensor, ...] = ()
    predicted: torch.Tensor | None = None
    head: Callable[[torch.Tensor], torch.Tensor] | None = None
    matrix: torch.Tensor | None = None
    scale: float | None = None
    causal: bool = False


class Layers(NamedTuple):
    """What layers put out: last [B, L, H], hidden: the embedding's output and each layer's, attention: their maps."""

    last: torch.Tensor
    hidden: tuple[torch.Tensor, ...]
    attention: tuple[torch.Tensor, ...]


def forward(
    model: PreTrainedModel,
    family: Family,
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    decoder_ids: torch.Tensor | None = None,
    *,
    reads: Collection[Read],
) -> Activations:
    """Run `model` on input_ids [B, L]; the vocabulary head only at `positions` [B, K].

    Where there is a decoder after an encoder it reads decoder_ids [B, L'], and its are the positions and last states;
    hidden states and maps are those of the encoder's layers, then of the decoder's.
    """
    with attention_inputs(model, family, reads) as seen:
        outputs = _layers(model, family, input_ids, decoder_ids, asked(reads))
    logits = predicted = None
    if "logits" in reads or "predicted" in reads:
        states = outputs.last
        rows = torch.arange(states.shape[0], device=states.device)[:, None]
        predicted = states[rows, positions]
        if is_divided(model, family):
            predicted = predicted * getattr(model, family.head_divisor) ** -0.5
        logits = vocabulary_head(model, family, predicted) if "logits" in reads else None
    return Activations(
        logits=logits,
        predicted=predicted if "predicted" in reads else None,
        hidden=outputs.hidden[1:] if "hidden" in reads else (),
        attention=outputs.attention if "attention" in reads else (),
        embedding=outputs.hidden[0] if "embedding" in reads else None,
        last=outputs.last if "last" in reads else None,
        queries=tuple(seen.get("queries", ())),
        keys=tuple(seen.get("keys", ())),
        values=tuple(seen.get("values", ())),
        scale=attention_scale(model, family) if "queries" in reads else None,
        causal="queries" in reads and family.language_model == "causal",
    )


def _layers(
    model: PreTrainedModel,
    family: Family,
    input_ids: torch.Tensor,
    decoder_ids: torch.Tensor | None,
    told: dict[str, bool],
) -> Layers:
    if decoder_ids is None:
        remembers = {"use_cache": False} if family.language_model == "causal" else {}
        whole = model.base_model(input_ids=input_ids, **remembers, **told)
        return Layers(whole.last_hidden_state, tuple(whole.hidden_states or ()), tuple(whole.attentions or ()))
    encoder, decoder = model.get_encoder(), model.get_decoder()
    first = encoder(input_ids=input_ids, **told)
    second = decoder(input_ids=decoder_ids, encoder_hidden_states=first.last_hidden_state, use_cache=False, **told)
    hidden = (*(first.hidden_states or ()), *(second.hidden_states or ())[1:])
    attention = (*(first.attentions or ()), *(second.attentions or ()))
    return Layers(second.last_hidden_state, hidden, attention)


def vocabulary_head(model: PreTrainedModel, family: Family, states: torch.Tensor) -> torch.Tensor:
    """Logits [..., V] of states [..., H] of the last layer."""
    for module in head_modules(model, family):
        states = module(states)
    return states


def head_modules(model: PreTrainedModel, family: Family) -> list[nn.Module]:
    return [model.get_submodule(path) for path in family.head]


def lone_matrix(head: Sequence[nn.Module]) -> torch.Tensor | None:
    """The weights [V, H] of a head that is one linear layer without a bias, and whole on this rank."""
    first, *others = head
    if others or not isinstance(first, nn.Linear) or first.bias is not None:
        return None
    return None if hasattr(first.weight, "ds_id") else first.weight  # ZeRO-3's shards have one


def is_divided(model: PreTrainedModel, family: Family) -> bool:
    """Whether the states that the vocabulary head reads are divided by the root of a hidden size."""
    return family.divides_head is not None and family.divides_head(model.config)


def headed(model: nn.Module, found: Activations) -> Activations:
    """What a Student, a Teacher or the engine around one found, with its head where that is still to make logits."""
    if found.predicted is None:
        return found
    inside: Any = getattr(model, "module", model)
    return found._replace(head=inside.head, matrix=inside.head_matrix())


def asked(reads: Collection[Read]) -> dict[str, bool]:
    """What a Hugging Face model must return for `reads`."""
    return {
        "output_hidden_states": "hidden" in reads or "embedding" in reads,
        "output_attentions": "attention" in reads,
    }


@contextmanager
def attention_inputs(
    model: PreTrainedModel, family: Family, reads: Collection[Read]
) -> Iterator[dict[str, list[torch.Tensor]]]:
    """While it is open, collects each layer's queries, keys or values, [B, A, L, D], as its matrices put them out."""
    hidden, heads = (getattr(model.config, family.fields[name]) for name in ("hidden", "heads"))
    size = getattr(model.config, family.fields.get("head_size", ""), None) or hidden // heads
    seen: dict[str, list[torch.Tensor]] = {read: [] for read in ("queries", "keys", "values") if read in reads}
    ends = {
        path.removesuffix(".weight"): seen[read] for read, path in family.attention_inputs().items() if read in seen
    }
    hooks = []
    for name, module in model.named_modules() if seen else ():
        for end, parts in ends.items():
            if name.endswith(end):
                hooks.append(module.register_forward_hook(_collect(parts, size)))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def attention_scale(model: PreTrainedModel, family: Family) -> float | None:
    """What every layer multiplies its products of queries and keys by (H5), if the family keeps it in its modules."""
    if family.attention is None:
        return None
    return next(module.scaling for name, module in model.named_modules() if name.endswith(family.attention))


# (model, family, what a batch shows a model..., reads=...): `forward` above, or that of a task
Run = Callable[..., Activations]


def choose_attention(model: PreTrainedModel, reads: Collection[Read]) -> None:
    """Eager attention where a loss reads the maps, which no fused kernel returns; else the fused one."""
    model.set_attn_implementation("eager" if "attention" in reads else "sdpa")


def recompute_layers(model: PreTrainedModel, reentrant: bool) -> None:
    """Keep a layer's input alone for its backward pass, which runs the layer once more.

    `reentrant` is torch's older form. The newer one compares shapes that sharded weights do not keep.
    """
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})


def _collect(parts: list[torch.Tensor], size: int) -> Callable[[nn.Module, Any, torch.Tensor], None]:
    seen: set[nn.Module] = set()

    def collect(module: nn.Module, inputs: Any, out: torch.Tensor) -> None:
        if module not in seen:  # DeBERTa asks its matrices about positions too, afterwards
            seen.add(module)
            parts.append(out.unflatten(-1, (-1, size)).transpose(1, 2))

    return collect


class Teacher(nn.Module):
    """A frozen model as the loop calls it, whole here or in pieces on all ranks."""

    def __init__(self, model: PreTrainedModel, family: Family, reads: Collection[Read], run: Run = forward) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.family = family
        self.run = run
        choose_attention(model, reads)

    def forward(self, *shown: torch.Tensor, reads: Collection[Read]) -> Activations:
        return self.run(self.model, self.family, *shown, reads=reads)

    def head(self, states: torch.Tensor) -> torch.Tensor:
        return vocabulary_head(self.model, self.family, states)

    def head_matrix(self) -> torch.Tensor | None:
        return lone_matrix(head_modules(self.model, self.family))


class Student(nn.Module):
    """What is trained: a Hugging Face model, and the projections that lift its states to the teacher's width.

    The projections start as the identity (rectangular where the student starts narrower), live and are cut with the
    `hidden` group, and are never exported; without `teacher_hidden` there are none, and states are compared as they
    are. Its parameters are the model's under the prefix `model.`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        family: Family,
        reads: Collection[Read],
        teacher_hidden: int | None,
        run: Run = forward,
    ) -> None:
        super().__init__()
        self.model = model
        self.family = family
        self.run = run
        self.reads = frozenset(reads)
        choose_attention(model, self.reads)
        hidden = model.config.hidden_size
        self.projections = nn.ModuleDict()
        for name in ("hidden", "embedding"):
            if teacher_hidden is not None and name in self.reads:
                like = next(model.parameters())  # already in low precision where ZeRO-3 built the model
                projection = nn.Linear(hidden, teacher_hidden, bias=False, dtype=like.dtype, device=like.device)
                nn.init.eye_(projection.weight)
                self.projections[name] = projection

    def forward(self, *shown: torch.Tensor, reads: Collection[Read] | None = None) -> Activations:
        """Activations with hidden and embedding states at the teacher's width [B, L, teacher H]."""
        own = self.run(self.model, self.family, *shown, reads=self.reads if reads is None else reads)
        if not self.projections:
            return own
        hidden = tuple(self.projections["hidden"](state) for state in own.hidden)
        embedding = None if own.embedding is None else self.projections["embedding"](own.embedding)
        return own._replace(hidden=hidden, embedding=embedding)

    def head(self, states: torch.Tensor) -> torch.Tensor:
        """Logits [..., V] of states [..., H]."""
        return vocabulary_head(self.model, self.family, states)

    def head_matrix(self) -> torch.Tensor | None:
        return lone_matrix(head_modules(self.model, self.family))
