"""The methods by name, and the start and end that all of them share: the process group and quiet libraries."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import transformers

from homodistil_ds.config import RunConfig
from homodistil_ds.errors import ALONE, HomodistilError
from homodistil_ds.machine import Machine

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it found no accelerator

from homodistil_ds.runtime import checkpoint, claim, engine, ranks
from homodistil_ds.runtime.exit_reason import FILE_NAME, write_exit_reason

Method = Callable[[RunConfig, Machine, str], None]


def method(name: str) -> Method:
    """`run` of the module of that name. Only now: the metrics of tasks take more than a second to import."""
    run: Method = importlib.import_module(f"homodistil_ds.methods.{name}").run
    return run


@contextlib.contextmanager
def process_group(*names: str) -> Iterator[None]:
    """The ranks of this launch, for one run of these methods or for several, one after the other."""
    for name in names:
        method(name)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    engine.prepare_op_folder()
    ranks.start()
    gc.freeze()  # modules and functions: the collection at each cut need not look at them
    try:
        yield
    finally:
        ranks.stop()


def run_method(config: RunConfig, machine: Machine, command: str) -> None:
    """Run the configured method on every rank of the group; `command` is what repeats it, for the records."""
    torch.manual_seed(config.seed)
    run_dir = Path(config.output_dir)
    try:
        method(config.method)(config, machine, command)
        if ranks.rank() == 0:
            write_exit_reason(run_dir, 0, "DONE", "the run is complete", 0, config.steps or None, None)
    except HomodistilError as error:
        _leave_reason(run_dir, error)
        if error.error_id.startswith("STOP"):
            # Some launchers end all ranks as soon as one leaves with a code; by then the reason must be written.
            with contextlib.suppress(RuntimeError):
                ranks.everyone(None)
        raise
    except SystemExit as left:
        stopped = _stopped(run_dir)
        _leave_reason(run_dir, stopped)
        raise stopped from left
    except Exception as error:
        known = _lost_rank(run_dir, error) if ranks.lost(error) else None
        _leave_reason(run_dir, known or error)
        if known is None:
            raise
        raise known from error


def _leave_reason(run_dir: Path, error: Exception) -> None:
    """Only the holder of the folder writes into it, and a rank that is alone with its error; one that lost another
    rank does if nobody else has."""
    code, name, what, step = 1, "INTERNAL", f"{type(error).__name__}: {error}", None
    if isinstance(error, HomodistilError):
        code, name, what, step = error.exit_code, error.error_id, error.what, error.step
    lost = name == "DIST-LOST-RANK"
    if (name in ALONE or claim.is_held(run_dir)) and not (lost and (run_dir / FILE_NAME).exists()):
        last = checkpoint.newest_name(run_dir / "checkpoints")
        write_exit_reason(run_dir, code, name, what, ranks.rank(), step, last)


def _stopped(run_dir: Path) -> HomodistilError:
    """By a signal while no loop looks for one."""
    last, kept = _kept(run_dir)
    return HomodistilError(
        "STOP-SIGNAL",
        "stopped by a signal before the first step or after the last one",
        "Go on with the same command and --resume auto." if last else "Start the same command again.",
        kept,
    )


def _lost_rank(run_dir: Path, error: Exception) -> HomodistilError:
    last, kept = _kept(run_dir)
    reason = str(error).strip().splitlines()[0][:200]
    return HomodistilError(
        "DIST-LOST-RANK",
        f"rank {ranks.rank()} lost another rank: {reason}",
        f"The first error of this job is that rank's; what each rank said is in {run_dir / 'logs'}.\n"
        f"Start the same command again{' with --resume auto' if last else ''}.",
        kept,
    )


def _kept(run_dir: Path) -> tuple[str | None, str]:
    """The name of the newest checkpoint, if there is one, and the line on it in an error's block."""
    folder = run_dir / "checkpoints"
    last = checkpoint.newest_name(folder)
    return last, f"The last checkpoint is {folder / last}." if last else "No checkpoint was written."


def command_of(script: str, arguments: list[str]) -> str:
    """A command that repeats this start on as many ranks, whatever launched it; inside `process_group`."""
    typed = [argument for argument in arguments if not argument.startswith("--local")]
    return shlex.join(["deepspeed", "--num_gpus", str(ranks.world_size()), script, *typed])
