"""Losses over the vocabulary by Liger's fused kernels on a GPU: logits are made once, and gradients with them.

N predicted positions, H hidden, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from importlib.util import find_spec

import torch

from homodistil_ds.distillation.losses import Inputs

LEAST_ROWS = 256  # at a time: the kernels take N H / V, and of fewer a GPU's products wait for memory (H100: 277)
# Liger's beta: 0 is KL(teacher || student), 1 KL(student || teacher), and between them the Jensen-Shannon divergence.
BETAS = {"kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}


@functools.cache
def installed() -> bool:
    """Looked for once: this is asked in every micro batch."""
    return find_spec("liger_kernel") is not None


def serves(of_logits: Collection[str]) -> bool:
    """Whether the kernels are here and compute this objective: with two losses of logits they would make them twice."""
    return torch.cuda.is_available() and installed() and len(of_logits) == 1 and {*of_logits} <= {"mlm", *BETAS}


def fits(inputs: Inputs) -> bool:
    """Whether each head is one whole matrix, rows are enough, and gradients are asked for, which are made anyway.

    Not in fp16: the kernels round gradients before the loss scale reaches them.
    """
    sides = [side for side in (inputs.student, inputs.teacher) if side.predicted is not None]
    if not torch.is_grad_enabled() or any(side.matrix is None for side in sides):
        return False
    states, matrix = inputs.student.predicted, inputs.student.matrix
    assert states is not None
    assert matrix is not None
    return states.dtype != torch.float16 and states.numel() >= LEAST_ROWS * len(matrix)


def fused(name: str, inputs: Inputs) -> torch.Tensor:
    """One of losses.LOSSES, its mean over positions, of both models' states [B, K, H] and matrices [V, H]."""
    # It brings Triton, which only a GPU needs.
    from liger_kernel.transformers import functional  # noqa: PLC0415

    own, shown = inputs.student, inputs.teacher
    assert own.predicted is not None
    states = own.predicted.flatten(0, 1)
    if name == "mlm":
        labels = inputs.labels.flatten()
        return functional.liger_fused_linear_cross_entropy(states, own.matrix, labels, accum_dtype=torch.float32)
    assert shown.predicted is not None
    found = functional.liger_fused_linear_jsd(
        states,
        own.matrix,
        shown.predicted.flatten(0, 1),
        shown.matrix,
        jsd_beta=BETAS[name],
        temperature=inputs.temperature,
        accum_dtype=torch.float32,
    )
    return inputs.temperature**2 * found
