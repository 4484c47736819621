"""Random numbers of a row that depend on (seed, its index) alone, whoever draws them and whenever."""

from __future__ import annotations

import numpy as np


def of_rows(indices: np.ndarray, seed: int) -> np.ndarray:
    """Where the draws of rows with these indices [B] begin: uint64 [B, 1]."""
    return mix(indices.astype(np.uint64)[:, None] ^ mix(np.full((1, 1), seed % 2**64, np.uint64)))


def mix(counter: np.ndarray) -> np.ndarray:
    """uint64 -> uint64 of the same shape: splitmix64, a bijection. One hash per cell needs no generator per row."""
    with np.errstate(over="ignore"):
        z = counter + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
