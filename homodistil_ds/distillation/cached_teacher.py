"""A teacher whose final hidden states are read from files, or computed and kept for those who come later.

B batch, L length, K predicted positions per row, H hidden, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from homodistil_ds.distillation.state_files import StateFiles
from homodistil_ds.models.forward import Activations, Read, head_modules, lone_matrix
from homodistil_ds.models.pieces import Read as ReadWeights
from homodistil_ds.models.width import Family
from homodistil_ds.runtime import ranks


class CachedTeacher(nn.Module):
    """Called as a Teacher is, with the numbers of the rows beside them.

    `body` is the teacher itself (the engine around one, if it is sharded), None where the files hold every row of the
    run. As all ranks must call an engine, it runs on all of them as soon as one lacks a row, and after every
    `calls_per_file` of its calls they write what they have gathered.
    """

    def __init__(self, files: StateFiles, head: nn.Sequential, body: nn.Module | None, calls_per_file: int) -> None:
        super().__init__()
        self.files = files
        self.own_head = head
        self.body = body
        self.calls_per_file = calls_per_file
        self.calls = 0

    def forward(self, *taught: torch.Tensor, reads: Collection[Read]) -> Activations:
        """Logits [B, K, V] or states [B, K, H] of what a teacher is shown, and behind it the rows' numbers [B]."""
        *shown, samples = taught
        states = self.states(shown, samples)
        return Activations(
            logits=self.head(states) if "logits" in reads else None,
            predicted=states if "predicted" in reads else None,
        )

    def states(self, shown: Sequence[torch.Tensor], samples: torch.Tensor) -> torch.Tensor:
        """[B, K, H] of these rows."""
        rows = samples.numpy()
        if self.body is None or ranks.lowest(True if self.files.lacks(rows) else None) is None:
            return self.files.read(rows).to(shown[0].device)
        found = self.body(*shown, reads=("predicted",)).predicted
        self.files.add(rows, found)
        self.calls += 1
        if self.calls % self.calls_per_file == 0:
            self.keep()
        return found

    def keep(self) -> None:
        """Write what was gathered; all ranks call it and fail together."""
        ranks.together(self.files.flush)

    def head(self, states: torch.Tensor) -> torch.Tensor:
        """Logits [..., V] of states [..., H]."""
        return self.own_head(states)

    def head_matrix(self) -> torch.Tensor | None:
        return lone_matrix(list(self.own_head))


def vocabulary_head_of(model: PreTrainedModel, family: Family, read: ReadWeights) -> nn.Sequential:
    """A vocabulary head of its own in float32, whose weights `read` gives by the model's names.

    The model may be an outline, and nothing else of it is built.
    """
    modules = head_modules(model, family)
    wanted = {parameter for module in modules for parameter in module.parameters()}
    own = {  # a copy takes these in place of the model's, so that tied weights stay tied
        id(parameter): nn.Parameter(
            read(name, 0, parameter.numel()).view(parameter.shape).to(torch.float32, copy=True), requires_grad=False
        )
        for name, parameter in model.named_parameters()
        if parameter in wanted
    }
    return nn.Sequential(*(copy.deepcopy(module, own) for module in modules)).eval()
