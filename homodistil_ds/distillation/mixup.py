"""Mixing examples (X1): which pairs, in which shares, and the mixture itself. Pure; it knows no model and no loss."""

from __future__ import annotations

import numpy as np
import torch


def draw(seed: int, step: int, count: int, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """For the `count` examples of a global batch: the place [count] of each one's partner, and its own share [count].

    A function of seed and step alone, so it is the same on all ranks and after a resume. Shares are Beta(alpha, alpha).
    """
    generator = np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, step], np.uint64)))
    return generator.permutation(count), generator.beta(alpha, alpha, count).astype(np.float32)


def with_copy(count: int, ratio: float) -> np.ndarray:
    """The places, evenly spread over 0 .. count - 1, of the examples that are also shown mixed."""
    mixed = round(ratio * count)
    return np.arange(mixed) * count // max(mixed, 1)


def mix(first: torch.Tensor, second: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """share * first + (1 - share) * second, for states [R, L, H] and a share [R] of each row."""
    weight = share.to(first.dtype)[:, None, None]
    return weight * first + (1 - weight) * second
