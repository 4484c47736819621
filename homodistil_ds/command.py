"""Flags in two stages: the machine's by argparse, the run's by tyro with the preset as default; then run the method."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import tyro

from homodistil_ds.config import BUILTIN, RunConfig, load_run_config
from homodistil_ds.errors import ALONE, EXIT_CODES, HomodistilError, did_you_mean
from homodistil_ds.machine import PLACEMENTS, Machine
from homodistil_ds.presets import PRESETS
from homodistil_ds.runtime import console, ds_config, exit_reason, guard, launch

DEFAULT_MACHINE = Path(__file__).resolve().parent.parent / "ds_configs" / "zero2.json"
DESCRIPTION = """Distil a teacher into a smaller plain Hugging Face model while its neurons are pruned.

Flags of the machine, read first:
  --deepspeed_config FILE  DeepSpeed configuration: ZeRO stage, precision, micro batch
                           (default: ds_configs/zero2.json)
  --deepspeed_config_after_cuts FILE
                           another one, from the first cut on after which it needs no more
                           memory per rank than the run began with
  --teacher_placement      auto, replicated (whole on each rank), node (in pieces over the
                           ranks of each node), zero3 (in pieces over all ranks) or
                           cpu_offload (those pieces in host memory)
  --teacher_cache FOLDER   where losses read only the teacher's logits: read its last states from
                           there, or write them there for later runs
  --resume                 never, auto (the newest whole checkpoint of --output_dir) or the
                           path of a checkpoint or run; nothing to resume from is an error
  --plan                   print what this run takes (memory, traffic, time, cost), run nothing;
                           the exit code is 1 where it does not fit
  --preset NAME            run to start from (default: demo, for a decoder with the losses of
                           logit): {presets}
  --config FILE            start from a saved run_config.json instead of a preset
  --debug                  show the traceback of an error

The flags below then change single values of that run (H1, X2, ... are equations: CONTRIBUTING.md)."""


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""

    def run() -> None:
        config, machine = parse(arguments, launch.is_first_rank())
        # Only now: torch, transformers and DeepSpeed take seconds to import, --help should not.
        if machine.plan:
            if not importlib.import_module("homodistil_ds.planning.page").show(config, machine):
                raise SystemExit(1)
            return
        methods = importlib.import_module("homodistil_ds.methods")
        with methods.process_group(config.method):
            methods.run_method(config, machine, methods.command_of("homodistil_ds/train.py", arguments))

    return to_the_end(run, debug="--debug" in arguments)


def to_the_end(run: Callable[[], None], debug: bool) -> int:
    """Run it on this rank; returns the exit code, after one block of words from rank 0 if it fails."""
    first = launch.is_first_rank()
    warnings.filterwarnings("default" if debug else "ignore", category=FutureWarning)
    try:
        run()
    except HomodistilError as error:
        if debug:
            traceback.print_exc()
        if first:
            exit_reason.tell_launcher(error.exit_code, error.error_id, error.what)
        spoken = first or error.error_id in ALONE
        noted = console.call_out(error.block()) if spoken else console.note(error.block())
        if not first and error.error_id != "STOP-SIGNAL":  # which rank 0 has been told as well
            let_rank_0_speak()
            if not noted:  # most launchers would have ended this rank, had rank 0 had anything to say
                console.call_out(error.block())
        return error.exit_code
    except SystemExit as left:
        if left.code != EXIT_CODES["STOP"]:
            raise
        if first:
            what = "stopped by a signal while starting; nothing was done yet"
            exit_reason.tell_launcher(EXIT_CODES["STOP"], "STOP-SIGNAL", what)
            console.call_out(f"homodistil_ds: {what}")
        return EXIT_CODES["STOP"]
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)  # a rank's goes to its log and to the console
        if first:
            exit_reason.tell_launcher(1, "INTERNAL", f"{type(error).__name__}: {error}")
        return 1
    finally:
        guard.defer()  # what is left is to say how it ended
    if first:
        exit_reason.tell_launcher(0, "DONE", "the run is complete")
    return 0


def let_rank_0_speak() -> None:
    """Launchers end all ranks when one leaves with a code. While nothing trains yet, rank 0 may be far behind."""
    time.sleep(10.0 if guard.leaves_at_once() else 1.0)


def parse(arguments: list[str], first: bool) -> tuple[RunConfig, Machine]:
    """The run configuration and the facts of the machine.

    Raises HomodistilError, and SystemExit(2) after tyro's own message for a flag it does not know.
    """
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    names = ("deepspeed_config", "deepspeed_config_after_cuts", "teacher_placement", "teacher_cache", "resume")
    for name in (*names, "preset", "config", "local_rank"):
        flags.add_argument(*dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")), dest=name)
    flags.add_argument("--debug", action="store_true")
    flags.add_argument("--plan", action="store_true")
    try:
        machine, rest = flags.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise HomodistilError("CFG-FLAG", str(error), "See --help.") from error
    default, rest = with_family(starting_point(machine.preset, machine.config, rest), rest)
    try:
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
    except SystemExit as left:
        if left.code and first:
            exit_reason.tell_launcher(2, "CFG-FLAG", "a flag is not known or has no such value")
        elif left.code:
            let_rank_0_speak()
        raise
    if machine.teacher_cache and config.method != "homodistil":
        raise HomodistilError(
            "CFG-CACHE",
            f"--teacher_cache with --method {config.method}, which has no teacher of language or shows it other texts",
            "Leave it out.",
        )
    return config, machine_of(machine)


def with_family(default: RunConfig, arguments: list[str]) -> tuple[RunConfig, list[str]]:
    """A family that is asked for sets the sizes in place of the preset's; its scales may stand between commas."""
    spread: list[str] = []
    for argument in arguments:
        if argument.startswith("--family="):
            spread += ["--family", *argument.removeprefix("--family=").replace(",", " ").split()]
        elif spread and spread[-1] == "--family":
            spread += argument.replace(",", " ").split()
        else:
            spread.append(argument)
    if "--family" not in spread:
        return default, arguments
    sizes = {"hidden_size": None, "intermediate_size": None, "num_attention_heads": None}
    return replace(default, student=replace(default.student, **sizes)), spread  # type: ignore[arg-type]


def machine_of(flags: argparse.Namespace) -> Machine:
    placement = flags.teacher_placement or "auto"
    if placement not in PLACEMENTS:
        raise HomodistilError("CFG-FLAG", f"--teacher_placement {placement}", did_you_mean(placement, PLACEMENTS))
    later = flags.deepspeed_config_after_cuts
    return Machine(
        ds_config=ds_config.read(Path(flags.deepspeed_config or DEFAULT_MACHINE)),
        ds_config_after_cuts=ds_config.read(Path(later)) if later else None,
        teacher_placement=placement,
        teacher_cache=flags.teacher_cache or "",
        resume=flags.resume or "never",
        plan=flags.plan,
    )


def starting_point(preset: str | None, saved: str | None, arguments: list[str]) -> RunConfig:
    """The run that the other flags, `arguments`, change: a preset or a saved configuration, not both."""
    if preset and saved:
        raise HomodistilError("CFG-FLAG", "--preset and --config both given", "Give one of them.")
    if saved:
        return load_run_config(Path(saved))
    if preset is None:
        return unnamed_run(arguments)
    if preset not in PRESETS:
        raise HomodistilError("CFG-PRESET", f"--preset {preset} is not known", did_you_mean(preset, PRESETS))
    return PRESETS[preset]()


def unnamed_run(arguments: list[str]) -> RunConfig:
    """The demo; of a decoder with the losses of the preset `logit`, what works best on decoders.

    Raises HomodistilError for a teacher whose configuration cannot be read.
    """
    run = PRESETS["demo"]()
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    flags.add_argument("--teacher", default=BUILTIN)
    flags.add_argument("--method", default=run.method)
    try:
        given, rest = flags.parse_known_args(arguments)
    except argparse.ArgumentError:
        return run  # a flag without a value, which is told with all others
    asks = {"-h", "--help"} & set(rest)
    if asks or given.method != "homodistil" or given.teacher == BUILTIN or _language_model(given.teacher) != "causal":
        return run
    return replace(run, loss=PRESETS["logit"]().loss)


def _language_model(teacher: str) -> str:
    plan = importlib.import_module("homodistil_ds.models.loading").read_plan(teacher)
    return str(plan.family.language_model)
