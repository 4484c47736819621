"""Layer norm over the kept hidden neurons only (H4): a masked student must compute what the cut one computes."""

from __future__ import annotations

import torch
from torch import nn


class KeptLayerNorm(nn.LayerNorm):
    """nn.LayerNorm whose mean and variance run over the kept entries of the last dimension; the others come out as 0.

    With every entry kept it is nn.LayerNorm to the bit.
    """

    kept: torch.Tensor | None
    count: int

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if self.kept is None:
            return super().forward(states)
        kept = self.kept
        wide = states.float() * kept
        centred = (wide - wide.sum(-1, keepdim=True) / self.count) * kept
        variance = centred.square().sum(-1, keepdim=True) / self.count
        normal = centred * torch.rsqrt(variance + self.eps)
        return (normal * self.weight.float() + self.bias.float()).to(states.dtype)


def widen(model: nn.Module, name: str) -> None:
    """Turn every layer norm called `name` into a KeptLayerNorm, in place, with all entries kept."""
    for path, module in model.named_modules():
        if path.endswith(name) and isinstance(module, nn.LayerNorm):
            module.__class__ = KeptLayerNorm
            module.kept = None  # type: ignore[assignment]
            module.count = module.normalized_shape[0]  # type: ignore[assignment]


def keep(model: nn.Module, kept: torch.Tensor) -> None:
    """Tell every KeptLayerNorm which hidden neurons are kept: bool [H]."""
    count = int(kept.sum())
    weights = None if count == kept.numel() else kept.float()
    for module in model.modules():
        if isinstance(module, KeptLayerNorm):
            module.kept = weights
            module.count = count
