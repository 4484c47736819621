"""A run's student -> a folder for users: safetensors, config, tokenizer, model card, perhaps ONNX. Trains nothing."""

from __future__ import annotations

import contextlib
import copy
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from homodistil_ds.errors import HomodistilError
from homodistil_ds.evaluation import onnx_export, plain, proof
from homodistil_ds.evaluation.card import export_section
from homodistil_ds.evaluation.inputs import SHAPES, sample_inputs
from homodistil_ds.models.loading import config_of, save_folder, tokenizer_of
from homodistil_ds.models.pieces import header
from homodistil_ds.runtime.rounding import rounded_to
from homodistil_ds.runtime.whole_files import sync

ENDINGS = tuple(plain.CLASSES)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
NOTHING_LEFT = "Nothing was left in the output folder; the source is unchanged."


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is exported: a model in float32 on the CPU in eval mode, its stored number format, its model card or ""."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stored: torch.dtype
    card: str


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written and how it compares; differences are in units of the largest logit."""

    folder: Path
    dtype: torch.dtype
    file_bytes: int
    off: float
    """Of the folder, loaded by transformers alone, from the source rounded to `dtype`."""
    rounding: float
    """Of the source rounded to `dtype` from the source."""
    onnx_off: float | None


def student_of(run: Path) -> Source:
    """The student of a finished run directory, or a model folder itself.

    Raises HomodistilError for a run without a finished student, for pickles, for damaged or missing weights and for
    a model that is neither a language model nor a sequence classifier.
    """
    folder = _student_folder(run)
    _check_weights(folder)
    try:
        config = config_of(folder)
        _check_kind(folder, config.architectures or [])
        tokenizer = tokenizer_of(folder)
        model, info = plain.auto_class(config).from_pretrained(
            folder, trust_remote_code=False, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise _unusable(f"{folder} cannot be loaded: {reason}", "Copy or download it again.") from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise _unusable(f"{folder}: {len(missing)} weights are missing, first {missing[0]}", "Copy it again.")
    card = folder / "README.md"
    return Source(
        name=run.name,
        model=model.eval(),
        tokenizer=tokenizer,
        stored=config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32,
        card=card.read_text(encoding="utf-8") if card.exists() else "",
    )


def _student_folder(run: Path) -> Path:
    if (run / "config.json").exists():
        return run
    if (run / "student" / "config.json").exists() and (run / "report.json").exists():
        return run / "student"
    if (run / "run_config.json").exists():
        raise _unusable(
            f"{run}: this run has no finished student",
            "Go on with it by --resume auto, or name one of its checkpoints (--checkpoint step-N).",
        )
    raise _unusable(f"{run} is neither a run directory nor a model folder", "Give --run the --output_dir of a run.")


def _check_weights(folder: Path) -> None:
    """Pickles are refused even beside safetensors that hold the same: a folder for users has no use for them."""
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise HomodistilError(
            "DATA-PICKLE",
            f"{folder / pickles[0]} is a pickle, which can run code when it is read",
            "Convert it with transformers' save_pretrained on a machine you trust it on, or remove it if there are "
            "safetensors beside it.",
        )
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise _unusable(f"{folder} has no *.safetensors", "Copy or download it again.")
    for path in files:
        header(path)


def _check_kind(folder: Path, architectures: list[str]) -> None:
    if not any(name.endswith(ENDINGS) for name in architectures):
        raise _unusable(
            f"{folder}: its architecture is {', '.join(architectures) or 'not named'}",
            f"Export a model whose config.json names one that ends in {' or '.join(ENDINGS)}.",
        )


def _unusable(what: str, remedy: str) -> HomodistilError:
    return HomodistilError("DATA-STUDENT", what, remedy)


def export(source: Source, output_dir: Path, dtype: torch.dtype | None = None, onnx: bool = False) -> Exported:
    """Write and prove the folder; it appears whole and proven, or not at all.

    `dtype` None keeps the stored format. Raises HomodistilError if the output folder holds something, if the weights
    do not fit the format, if a package for ONNX is missing, or if what was saved computes something else.
    """
    dtype = dtype or source.stored
    model = source.model
    if onnx:
        onnx_export.check_installed()
        onnx_export.check_kind(model)
    inputs = [sample_inputs(model, *shape) for shape in SHAPES]
    rounded = rounded_to(copy.deepcopy(model), dtype)
    _check_finite(rounded, dtype)
    with torch.no_grad():
        exact, expected = ([m(**batch).logits for batch in inputs] for m in (model, rounded))
        rounding = proof.difference(exact, expected)
    with staged(output_dir) as staging:
        save_folder(rounded, source.tokenizer, staging, dtype, None)
        off = proof.prove(staging, inputs, expected, NOTHING_LEFT)
        onnx_off = onnx_export.write_and_prove(staging, rounded, inputs, expected, NOTHING_LEFT) if onnx else None
        card = source.card or f"# {source.name}\n"
        section = export_section(str(dtype).removeprefix("torch."), rounding, list(inputs[0]) if onnx else [])
        (staging / "README.md").write_text(f"{card.rstrip()}\n\n{section}", encoding="utf-8")
        file_bytes = sum(path.stat().st_size for path in staging.glob("*.safetensors"))
    return Exported(
        folder=output_dir, dtype=dtype, file_bytes=file_bytes, off=off, rounding=rounding, onnx_off=onnx_off
    )


def _check_finite(rounded: nn.Module, dtype: torch.dtype) -> None:
    broken = [name for name, parameter in rounded.named_parameters() if not bool(torch.isfinite(parameter).all())]
    if broken:
        raise HomodistilError(
            "NUM-DTYPE",
            f"{len(broken)} weights hold values that are not finite in {dtype}, first {broken[0]}",
            "Export in bfloat16 or float32; if it fails there too, the student itself is damaged.",
        )


@contextlib.contextmanager
def staged(output_dir: Path) -> Iterator[Path]:
    """A folder beside `output_dir` that takes its name when the block ends well and is removed otherwise."""
    output_dir = output_dir.absolute()
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise HomodistilError(
            "CFG-USED-DIR", f"--output_dir {output_dir} already holds something", "Choose another folder."
        )
    staging = output_dir.with_name(f".{output_dir.name}.exporting-{secrets.token_hex(4)}")
    try:
        staging.mkdir(parents=True)
        yield staging
        for path in [*staging.rglob("*"), staging]:
            if path.suffix == ".safetensors":
                shutil.copymode(staging / "config.json", path)  # they are made for the owner's eyes only
            sync(path)
        staging.rename(output_dir)  # fails if something has come into it meanwhile
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        raise HomodistilError(
            "ENV-FILE", f"{output_dir} cannot be written: {error}", "Make room or choose another folder.", NOTHING_LEFT
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
