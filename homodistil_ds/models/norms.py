"""Norms over the kept hidden neurons only (H4): a masked student must compute what the cut one computes."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from homodistil_ds.models.width import Dim, WidthPlan


class KeptLayerNorm(nn.LayerNorm):
    """nn.LayerNorm over the kept entries of the last dimension; the others come out as 0 and get no gradient.

    `kept` holds their indices, int64 [kept H]. With every entry kept it is None and this is nn.LayerNorm to the bit.
    """

    kept: torch.Tensor | None

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if self.kept is None:
            return super().forward(states)
        # Gathering lets the fused norm run: a third of the time of the same statistics written with masks.
        weight, bias = self.weight[self.kept], None if self.bias is None else self.bias[self.kept]
        normal = F.layer_norm(states.index_select(-1, self.kept), weight.shape, weight, bias, self.eps)
        return torch.zeros_like(states).index_copy(-1, self.kept, normal.to(states.dtype))


class KeptRMSNorm(LlamaRMSNorm):
    """The same of the root-mean-square norm: statistics in float32, then the gain in the states' number format."""

    kept: torch.Tensor | None

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if self.kept is None:
            return super().forward(states)
        gathered = states.index_select(-1, self.kept).float()
        normal = F.rms_norm(gathered, gathered.shape[-1:], eps=self.variance_epsilon).to(states.dtype)
        return torch.zeros_like(states).index_copy(-1, self.kept, (self.weight[self.kept] * normal).to(states.dtype))


class KeptGemmaRMSNorm(GemmaRMSNorm):
    """The same of Gemma's: what it multiplies by is 1 more than its weight, still in float32."""

    kept: torch.Tensor | None

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if self.kept is None:
            return super().forward(states)
        gathered = states.index_select(-1, self.kept).float()
        normal = F.rms_norm(gathered, gathered.shape[-1:], eps=self.eps) * (1.0 + self.weight[self.kept].float())
        return torch.zeros_like(states).index_copy(-1, self.kept, normal.to(states.dtype))


class KeptT5LayerNorm(T5LayerNorm):
    """The same of T5's: in float32 up to the gain, whose number format the result has."""

    kept: torch.Tensor | None

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if self.kept is None:
            return super().forward(states)
        gathered, weight = states.index_select(-1, self.kept).float(), self.weight[self.kept]
        normal = F.rms_norm(gathered, gathered.shape[-1:], eps=self.variance_epsilon)
        scaled = weight * (normal.to(weight.dtype) if weight.dtype in (torch.float16, torch.bfloat16) else normal)
        return torch.zeros_like(states, dtype=scaled.dtype).index_copy(-1, self.kept, scaled)


KEPT_FORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.LayerNorm: KeptLayerNorm,
    GemmaRMSNorm: KeptGemmaRMSNorm,
    T5LayerNorm: KeptT5LayerNorm,
    # Copies of one class.
    **dict.fromkeys((LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm), KeptRMSNorm),
}
KEPT = tuple(dict.fromkeys(KEPT_FORMS.values()))


def widen(model: nn.Module, plan: WidthPlan) -> None:
    """Give every norm along the `hidden` group its form over kept neurons, in place, with all of them kept.

    Raises KeyError for a norm that the width table lacks.
    """
    for path, module in model.named_modules():
        kept_form = KEPT_FORMS.get(type(module))
        if kept_form is not None and plan.dims(f"{path}.weight") == (Dim("hidden"),):
            module.__class__ = kept_form
            cast(Any, module).kept = None


def keep(model: nn.Module, kept: torch.Tensor) -> None:
    """Tell every such norm which hidden neurons are kept: bool [H], on the device of the model."""
    indices = None if bool(kept.all()) else kept.nonzero().flatten()
    for module in model.modules():
        if isinstance(module, KEPT):
            cast(Any, module).kept = indices
