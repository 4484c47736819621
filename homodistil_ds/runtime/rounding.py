"""Weights in another number format. Buffers stay as they are: rounded rotary frequencies would be other positions."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


@torch.no_grad()
def in_format(module: Module, dtype: torch.dtype) -> Module:
    """The same module with its parameters in `dtype`."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
    return module


def rounded_to(module: Module, dtype: torch.dtype) -> Module:
    """The same module in float32 with what `dtype` leaves of its parameters."""
    return in_format(in_format(module, dtype), torch.float32)
