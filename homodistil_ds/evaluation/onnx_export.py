"""The ONNX form of an exported folder, written and proven in processes of their own. It imports no ONNX package."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from homodistil_ds.errors import HomodistilError
from homodistil_ds.evaluation import proof
from homodistil_ds.evaluation.inputs import sample_inputs

NEEDED = ("onnx", "onnxscript", "onnxruntime")
SCRIPT = Path(__file__).with_name("onnx_script.py")  # importing it would import onnxruntime, which is an extra
EXAMPLE = (2, 16)  # B, L: neither of them 1, which the exporter would take for fixed


def check_installed() -> None:
    """Raises HomodistilError with the line that installs what is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise HomodistilError(
            "ENV-ONNX",
            f"--onnx needs {', '.join(missing)}, which this environment lacks",
            f"pip install '.[onnx]' in this project's folder, or: pip install {' '.join(NEEDED)}",
        )


def check_kind(model: PreTrainedModel) -> None:
    """Raises HomodistilError for a model that is not run in one pass."""
    if model.config.is_encoder_decoder:
        raise HomodistilError(
            "CFG-ONNX",
            f"--onnx with a {model.config.model_type}: whoever generates with it needs a graph of its encoder, another "
            "of its decoder and one with a cache, which are not made here",
            "Export without --onnx, then run optimum-cli export onnx on the folder.",
        )


def write_and_prove(
    folder: Path,
    model: PreTrainedModel,
    inputs: Sequence[proof.Inputs],
    expected: Sequence[torch.Tensor],
    kept: str,
) -> float:
    """Write folder/onnx/model.onnx in float32; returns how far onnxruntime's logits are from the expected ones.

    `inputs` must have other shapes than EXAMPLE, for the free dimensions to be tried. Raises HomodistilError if the
    exporter fails or the logits are off.
    """
    target = folder / "onnx" / "model.onnx"
    target.parent.mkdir()
    with tempfile.TemporaryDirectory() as scratch:
        example = Path(scratch, "example.pt")
        torch.save(sample_inputs(model, *EXAMPLE), example)
        proof.fresh_process(SCRIPT, str(folder), str(example), str(target), kept=kept)
    return proof.compare(SCRIPT, target, inputs, expected, kept, "--run")
