"""Losses over the vocabulary by Liger's fused kernels on a GPU: logits are made once, and gradients with them.

N predicted positions, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib.util import find_spec

import torch

from homodistil_ds.distillation.losses import Inputs

# Liger's beta: 0 is KL(teacher || student), 1 KL(student || teacher), and between them the Jensen-Shannon divergence.
BETAS = {"kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}


def serves(of_logits: Collection[str]) -> bool:
    """Whether the kernels are here and compute this objective: with two losses of logits they would make them twice."""
    there = torch.cuda.is_available() and find_spec("liger_kernel") is not None
    return there and len(of_logits) == 1 and {*of_logits} <= {"mlm", *BETAS}


def fits(inputs: Inputs) -> bool:
    """Whether each head is one whole matrix, and gradients are asked for: the kernels would make them anyway."""
    sides = [side for side in (inputs.student, inputs.teacher) if side.predicted is not None]
    return torch.is_grad_enabled() and all(side.matrix is not None for side in sides)


def fused(name: str, inputs: Inputs) -> torch.Tensor:
    """One of losses.LOSSES, its mean over positions, of both models' states [B, K, H] and matrices [V, H]."""
    # It brings Triton, which only a GPU needs.
    from liger_kernel.transformers import functional  # noqa: PLC0415

    own, shown = inputs.student, inputs.teacher
    assert own.predicted is not None
    states = own.predicted.flatten(0, 1)
    if name == "mlm":
        return functional.liger_fused_linear_cross_entropy(states, own.matrix, inputs.labels.flatten())
    assert shown.predicted is not None
    found = functional.liger_fused_linear_jsd(
        states,
        own.matrix,
        shown.predicted.flatten(0, 1),
        shown.matrix,
        jsd_beta=BETAS[name],
        temperature=inputs.temperature,
    )
    return inputs.temperature**2 * found
