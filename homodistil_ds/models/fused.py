"""Models whose matrices lie in one another: taken apart to be pruned, put together to be saved. No table, no training.

GPT-2 keeps its matrices transposed, and queries, keys and values in one; ModernBERT has the latter too. What
transformers makes from a configuration of T5 1.1 has one matrix for embedding and head, what its weights fill has two.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D

from homodistil_ds.models.width import Family


class Apart(nn.ModuleDict):
    """The matrices of a fused one, whose outputs are joined again."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return torch.cat([part(states) for part in self.values()], dim=-1)


def taken_apart(model: PreTrainedModel, family: Family) -> PreTrainedModel:
    """The same model, changed in place, with a matrix [out, in] of its own for every row of its table.

    Where every rank holds a slice of each matrix (ZeRO-3), the new ones are of no particular values: fill them next.
    """
    if family.fused:
        for name, module in list(model.named_modules()):
            parts = next((parts for end, parts in family.fused.items() if name.endswith(end)), None)
            if isinstance(module, Conv1D) or (parts is not None and isinstance(module, nn.Linear)):
                model.set_submodule(name, _apart(module, parts or ()))
    if has_own_head(model, family):
        _give_head(model)
    return model


def has_own_head(model: PreTrainedModel, family: Family) -> bool:
    """Whether its table has a vocabulary head that transformers would tie to the embedding."""
    return family.own_head is not None and family.own_head(model.config)


def _give_head(model: Any) -> None:
    """A matrix of its own for a vocabulary head that is the embedding's."""
    head = model.get_output_embeddings()
    if head.weight is model.get_input_embeddings().weight:
        sizes = head.in_features, head.out_features
        own = _linear(head.weight.detach(), None) if _is_whole(head.weight) else _unfilled(*sizes, head)
        model.set_output_embeddings(own)


def _is_whole(weight: torch.Tensor) -> bool:
    return weight.numel() > 0


def _apart(module: nn.Linear | Conv1D, parts: tuple[str, ...]) -> nn.Module:
    if not _is_whole(module.weight):
        inputs, outputs = (
            (module.nx, module.nf) if isinstance(module, Conv1D) else (module.in_features, module.out_features)
        )
        if not parts:
            return _unfilled(inputs, outputs, module)
        return Apart({part: _unfilled(inputs, outputs // len(parts), module) for part in parts})
    weight = module.weight.detach().t() if isinstance(module, Conv1D) else module.weight.detach()
    bias = None if module.bias is None else module.bias.detach()
    if not parts:
        return _linear(weight, bias)
    biases = (None,) * len(parts) if bias is None else bias.chunk(len(parts))
    pieces = zip(parts, weight.chunk(len(parts)), biases, strict=True)
    return Apart({part: _linear(own, its) for part, own, its in pieces})


def _unfilled(inputs: int, outputs: int, like: nn.Linear | Conv1D) -> nn.Linear:
    """Made as any module is, so that whoever slices modules as they are made slices it too."""
    return nn.Linear(inputs, outputs, bias=like.bias is not None, dtype=like.weight.dtype)


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta", dtype=weight.dtype)
    linear.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format))
    if bias is not None:
        linear.bias = nn.Parameter(bias.clone())
    return linear


@torch.no_grad()
def put_together(model: PreTrainedModel) -> PreTrainedModel:
    """A model as transformers itself has it, with these weights; the model itself where nothing is apart."""
    if not any(isinstance(module, Apart) for module in model.modules()):
        return model
    with no_init_weights():
        plain = type(model)._from_config(copy.deepcopy(model.config), dtype=next(model.parameters()).dtype)
    plain.tie_weights()
    keep_generation(model, plain)
    weights = dict(_joined(model))
    for name, parameter in plain.named_parameters():
        own = weights[name]
        parameter.copy_(own.t() if isinstance(plain.get_submodule(name.rpartition(".")[0]), Conv1D) else own)
    return plain.eval()


def keep_generation(of: PreTrainedModel, to: PreTrainedModel) -> None:
    """How texts are generated is no part of the configuration, so a model made from that has to be told."""
    if getattr(of, "generation_config", None) is not None:
        to.generation_config = copy.deepcopy(of.generation_config)


def _joined(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Names as transformers has them, with weights of matrices [out, in]."""
    apart = {name: module for name, module in model.named_modules() if isinstance(module, Apart)}
    for name, parameter in model.named_parameters():
        if not name.startswith(tuple(f"{path}." for path in apart)):
            yield name, parameter
    for path, module in apart.items():
        for kind, _ in next(iter(module.values())).named_parameters():
            yield f"{path}.{kind}", torch.cat([part.get_parameter(kind) for part in module.values()])
