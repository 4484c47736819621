"""The methods by name, and the start and end that all of them share: the process group and quiet libraries."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from typing import Any

import torch
import transformers

from homodistil_ds.config import RunConfig

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it found no accelerator

from homodistil_ds.methods import homodistil, pretrain
from homodistil_ds.runtime import engine, ranks

METHODS: dict[str, Callable[[RunConfig, dict[str, Any], str], None]] = {
    "homodistil": homodistil.run,
    "pretrain": pretrain.run,
}


def run_method(config: RunConfig, machine: dict[str, Any], arguments: list[str]) -> None:
    """Run the configured method on every rank of this launch; `machine` is the DeepSpeed configuration, `arguments` are
    the flags as typed, for the records."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    engine.prepare_op_folder()
    ranks.start()
    torch.manual_seed(config.seed)
    try:
        METHODS[config.method](config, machine, _command(arguments))
    finally:
        ranks.stop()


def _command(arguments: list[str]) -> str:
    """A command that repeats this run on as many ranks, whatever launched it."""
    typed = [argument for argument in arguments if not argument.startswith("--local")]
    return shlex.join(["deepspeed", "--num_gpus", str(ranks.world_size()), "homodistil_ds/train.py", *typed])
