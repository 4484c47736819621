"""Turn a run directory into a folder for users: safetensors, config, tokenizer, model card, and ONNX if asked.

    python tools/export_student.py --run runs/mine --output_dir exported/mine --dtype float16 --onnx
    python tools/export_student.py --run runs/mine --output_dir exported/early --checkpoint step-500

The folder appears when a process that knows only transformers has loaded it and computed the same logits.
"""

import argparse
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # all of it is done on the CPU; unset, DeepSpeed warns of that

import torch
from transformers.utils import logging

from homodistil_ds.errors import HomodistilError
from homodistil_ds.evaluation.export import Exported, export, student_of
from homodistil_ds.evaluation.from_checkpoint import student_at
from homodistil_ds.runtime import console


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    given = flags().parse_args(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        source = student_at(given.run, given.checkpoint) if given.checkpoint else student_of(given.run)
        done = export(source, given.output_dir, getattr(torch, given.dtype) if given.dtype else None, given.onnx)
    except HomodistilError as error:
        console.say(error.block(), sys.stderr)
        return error.exit_code
    console.say("\n".join(lines(done)))
    return 0


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, type=Path, help="a run directory, or a model folder")
    parser.add_argument("--output_dir", required=True, type=Path, help="a new or empty folder")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="default: as it is stored")
    parser.add_argument("--onnx", action="store_true", help="onnx/model.onnx too, in float32")
    parser.add_argument("--checkpoint", help="step-N of this run, or a checkpoint's path, instead of the student")
    return parser


def lines(done: Exported) -> list[str]:
    """What was written and how far it is from its source."""
    dtype = str(done.dtype).removeprefix("torch.")
    told = [f"{done.folder}: {done.file_bytes / 2**20:,.2f} MiB of weights in {dtype}"]
    of = f"the source's, rounded to {dtype}," if done.rounding else "the source's"
    told.append(f"loaded by transformers alone: logits within {done.off:.1e} of {of} in units of the largest")
    if done.rounding:
        told.append(f"rounding to {dtype} itself moves them by {done.rounding:.1e}")
    if done.onnx_off is not None:
        told.append(f"onnx/model.onnx, float32, any batch and length: within {done.onnx_off:.1e} under onnxruntime")
    return told


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
