"""The forward pass of a masked language model, computing only what some loss reads, and the module that is trained.

Shapes: B batch, L length, K predicted positions per row, H hidden, A heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from homodistil_ds.models.width import Family

Read = Literal["logits", "hidden", "attention", "embedding"]


@dataclass(frozen=True, kw_only=True)
class Activations:
    """What a forward pass hands to the losses; a part that nobody reads is empty or None.

    logits [B, K, V] at the predicted positions; hidden: one [B, L, H] per layer; attention: one [B, A, L, L] per layer
    of probabilities; embedding [B, L, H] is the output of the embedding layer.
    """

    logits: torch.Tensor | None = None
    hidden: tuple[torch.Tensor, ...] = ()
    attention: tuple[torch.Tensor, ...] = ()
    embedding: torch.Tensor | None = None


def forward(
    model: PreTrainedModel,
    family: Family,
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    reads: Collection[Read],
) -> Activations:
    """Run `model` on input_ids [B, L]; the vocabulary head only at `positions` [B, K]."""
    outputs = model.base_model(
        input_ids=input_ids,
        output_hidden_states="hidden" in reads or "embedding" in reads,
        output_attentions="attention" in reads,
    )
    logits = None
    if "logits" in reads:
        states = outputs.last_hidden_state
        rows = torch.arange(states.shape[0], device=states.device)[:, None]
        logits = model.get_submodule(family.head)(states[rows, positions])
    return Activations(
        logits=logits,
        hidden=tuple(outputs.hidden_states[1:]) if "hidden" in reads else (),
        attention=tuple(outputs.attentions) if "attention" in reads else (),
        embedding=outputs.hidden_states[0] if "embedding" in reads else None,
    )


def choose_attention(model: PreTrainedModel, reads: Collection[Read]) -> None:
    """Eager attention where a loss reads the maps, which no fused kernel returns; else the fused one."""
    model.set_attn_implementation("eager" if "attention" in reads else "sdpa")


class Student(nn.Module):
    """What is trained: a Hugging Face model, and the projections that lift its states to the teacher's width.

    The projections start as the identity (rectangular where the student starts narrower), live and are cut with the
    `hidden` group, and are never exported. Its parameters are the model's under the prefix `model.`.
    """

    def __init__(self, model: PreTrainedModel, family: Family, reads: Collection[Read], teacher_hidden: int) -> None:
        super().__init__()
        self.model = model
        self.family = family
        self.reads = frozenset(reads)
        choose_attention(model, self.reads)
        hidden = model.config.hidden_size
        self.projections = nn.ModuleDict()
        for name in ("hidden", "embedding"):
            if name in self.reads:
                projection = nn.Linear(hidden, teacher_hidden, bias=False)
                nn.init.eye_(projection.weight)
                self.projections[name] = projection

    def forward(
        self, input_ids: torch.Tensor, positions: torch.Tensor, reads: Collection[Read] | None = None
    ) -> Activations:
        """Activations with hidden and embedding states at the teacher's width [B, L, teacher H]."""
        own = forward(self.model, self.family, input_ids, positions, self.reads if reads is None else reads)
        hidden = tuple(self.projections["hidden"](state) for state in own.hidden)
        embedding = None if own.embedding is None else self.projections["embedding"](own.embedding)
        return Activations(logits=own.logits, hidden=hidden, attention=own.attention, embedding=embedding)
