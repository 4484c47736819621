"""Figures: every picture renders at its size, from ordinary and from awkward input, without pyplot."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure

from homodistil_ds.evaluation import figures


def masks(layers: int, ffn: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    kept = {"hidden": rng.random(64) < 0.5}
    for layer in range(layers):
        kept |= {f"ffn.{layer}": rng.random(ffn) < 0.3, f"qk.{layer}": np.ones(64, dtype=bool)}
    return kept


STEPS = [0, 10, 20]
CASES = {
    "widths": lambda: figures.width_curve(
        STEPS, {"hidden_size": [64, 56, 48], "heads": [4, 4, 4]}, {"hidden_size": 48}
    ),
    "no widths": lambda: figures.width_curve([], {"hidden_size": []}, {}),
    "masks": lambda: figures.mask_heatmap(masks(6, 3072)),
    "no masks": lambda: figures.mask_heatmap({}),
    "uneven masks": lambda: figures.mask_heatmap({"ffn.0": np.ones(9, bool), "ffn.1": np.zeros(5, bool)}),
    "losses": lambda: figures.loss_curves(STEPS, {"total": [9.0, 8.0, 7.0], "kl": [1.0, float("nan"), 0.0]}),
    "no losses": lambda: figures.loss_curves(STEPS, {"kl": [0.0, 0.0, 0.0]}),
    "discrepancy": lambda: figures.discrepancy_curve(STEPS, [0.0, 1.5, 0.7], [64, 56, 48]),
    "no discrepancy": lambda: figures.discrepancy_curve([], [], []),
}


@pytest.mark.parametrize("name", CASES)
def test_renders_at_its_size(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = CASES[name]()
        figure.savefig(io.BytesIO(), format="png")
    assert isinstance(figure, Figure)
    assert figure.canvas.get_width_height() == (900, 500)


@pytest.mark.parametrize(("size", "columns"), [(100, 100), (512, 512), (768, 384), (1000, 500), (3072, 512)])
def test_kept_columns_keep_the_share(size: int, columns: int) -> None:
    mask = np.arange(size) % 3 == 0
    drawn = figures.kept_columns(mask, size)
    assert drawn.shape == (columns,)
    assert drawn.mean() == pytest.approx(mask.mean())


def test_no_pyplot_state() -> None:
    code = "import sys, homodistil_ds.evaluation.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
