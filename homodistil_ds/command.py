"""Flags in two stages: the machine's by argparse, the run's by tyro with the preset as default; then run the method."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import tyro

from homodistil_ds.config import RunConfig, load_run_config
from homodistil_ds.errors import HomodistilError, did_you_mean
from homodistil_ds.presets import PRESETS
from homodistil_ds.runtime import ds_config, launch

DEFAULT_MACHINE = Path(__file__).resolve().parent.parent / "ds_configs" / "zero2.json"
DESCRIPTION = """Distil a teacher into a smaller plain Hugging Face model while its neurons are pruned.

Flags of the machine, read first:
  --deepspeed_config FILE  DeepSpeed configuration: ZeRO stage, precision, micro batch
                           (default: ds_configs/zero2.json)
  --preset NAME            run to start from (default: demo): {presets}
  --config FILE            start from a saved run_config.json instead of a preset
  --debug                  show the traceback of an error

The flags below then change single values of that run."""


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    first = launch.is_first_rank()
    debug = "--debug" in arguments
    warnings.filterwarnings("default" if debug else "ignore", category=FutureWarning)
    try:
        config, machine = parse(arguments, first)
        # Only now: torch, transformers and DeepSpeed take seconds to import, --help should not.
        methods = importlib.import_module("homodistil_ds.methods")
        methods.run_method(config, machine, arguments)
    except HomodistilError as error:
        if debug:
            traceback.print_exc()
        elif first:
            print(error.block(), file=sys.stderr, flush=True)
        return error.exit_code
    return 0


def parse(arguments: list[str], first: bool) -> tuple[RunConfig, dict[str, Any]]:
    """The run configuration and the DeepSpeed configuration.

    Raises HomodistilError, and SystemExit(2) after tyro's own message for a flag it does not know.
    """
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("deepspeed_config", "preset", "config", "local_rank"):
        flags.add_argument(*dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")), dest=name)
    flags.add_argument("--debug", action="store_true")
    try:
        machine, rest = flags.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise HomodistilError("CFG-FLAG", str(error), "See --help.") from error
    default = starting_point(machine.preset, machine.config)
    with contextlib.redirect_stderr(sys.stderr if first else io.StringIO()):
        config = tyro.cli(
            RunConfig,
            args=rest,
            default=default,
            prog="train.py",
            description=DESCRIPTION.format(presets=", ".join(PRESETS)),
            use_underscores=True,
            console_outputs=first,
        )
    return config, ds_config.read(Path(machine.deepspeed_config or DEFAULT_MACHINE))


def starting_point(preset: str | None, saved: str | None) -> RunConfig:
    """The run that the flags change: a preset or a saved configuration, not both."""
    if preset and saved:
        raise HomodistilError("CFG-FLAG", "--preset and --config both given", "Give one of them.")
    if saved:
        return load_run_config(Path(saved))
    name = preset or "demo"
    if name not in PRESETS:
        raise HomodistilError("CFG-PRESET", f"--preset {name} is not known", did_you_mean(name, PRESETS))
    return PRESETS[name]()
