"""What a start of any method begins with: checked machine facts, a claimed run directory, logs, curves, a watchdog."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from homodistil_ds.config import RunConfig
from homodistil_ds.errors import HomodistilError
from homodistil_ds.machine import Machine
from homodistil_ds.methods.start import hold, is_own
from homodistil_ds.models.forward import Student, recompute_layers
from homodistil_ds.runtime import claim, console, ds_config, engine, ranks
from homodistil_ds.runtime.checkpoint import Checkpoint, newest_name
from homodistil_ds.runtime.engine import Engine
from homodistil_ds.runtime.exit_reason import write_exit_reason
from homodistil_ds.runtime.monitor import Monitor
from homodistil_ds.runtime.watchdog import Watchdog


@dataclass(kw_only=True)
class Run:
    """One start of a run. `checkpoint` is what it goes on from, if it is resumed; `fingerprint` that of its data;
    `within` the run directory of the run that it is a part of."""

    config: RunConfig
    ds_config: dict[str, Any]
    ds_config_after_cuts: dict[str, Any] | None
    run_dir: Path
    command: str
    placement: str
    fingerprint: str
    monitor: Monitor
    checkpoint: Checkpoint | None
    started: float
    within: Path | None = None

    @property
    def train_dtype(self) -> torch.dtype:
        return train_dtype(self.ds_config)

    def engine_of(self, student: Student, machine: dict[str, Any]) -> Engine:
        config = self.config
        if ds_config.recomputes(machine):
            recompute_layers(student.model, reentrant=ds_config.zero_stage(machine) == 3)
        return engine.initialize(student, config.optimizer, config.learning_rate, machine, self.monitor.line)

    def watchdog(self) -> Watchdog:
        """Ends a hung run, and leaves the reason in the run directory."""

        def on_hang(error: HomodistilError, step: int) -> None:
            last = newest_name(self.run_dir / "checkpoints")
            for folder in filter(None, (self.within, self.run_dir)):
                write_exit_reason(folder, error.exit_code, error.error_id, error.what, ranks.rank(), step, last)

        guarded = Watchdog(self.config.step_timeout, ranks.rank(), on_hang)
        if self.checkpoint is not None:
            guarded.kept = f"The last checkpoint is {self.checkpoint.folder}."
        return guarded


def train_dtype(machine: dict[str, Any]) -> torch.dtype:
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(ds_config.precision(machine), torch.float32)


def checked(config: RunConfig, machine: Machine) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The DeepSpeed configurations of this run, before and after cuts. All ranks call it; raises HomodistilError."""
    first, later = (
        ranks.together(lambda values=values: _checked(values, config))  # type: ignore[misc]
        for values in (machine.ds_config, machine.ds_config_after_cuts)
    )
    assert first is not None
    ranks.together(lambda: ds_config.check_one_precision(first, later))
    return first, later


def _checked(values: dict[str, Any] | None, config: RunConfig) -> dict[str, Any] | None:
    if values is None:
        return None
    if config.method == "minidisc" and ds_config.recomputes(values):
        raise HomodistilError(
            "CFG-RECOMPUTE",
            "activation_checkpointing with nested students: a layer run once more would be the largest student's",
            "Leave that block out of the DeepSpeed configuration.",
        )
    values = ds_config.with_batch_sizes(values, config.global_batch_size, ranks.world_size())
    engine.check(values, config.optimizer)
    return values


@contextlib.contextmanager
def claimed(run_dir: Path) -> Iterator[None]:
    """On rank 0: make the run directory and claim it; given up again, and removed if nothing else is in it, where what
    follows fails. Raises HomodistilError."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HomodistilError(
            "CFG-OUTPUT", f"--output_dir {run_dir} cannot be made: {error.strerror}", "Choose another folder."
        ) from error
    hold(run_dir, say)
    try:
        yield
    except HomodistilError:
        with contextlib.suppress(OSError):
            if [path.name for path in run_dir.iterdir()] == [claim.FILE_NAME]:
                (run_dir / claim.FILE_NAME).unlink()
                run_dir.rmdir()
        claim.release(run_dir)
        raise


def claim_folder(run_dir: Path) -> None:
    with claimed(run_dir):
        pass


def open_logs(config: RunConfig, found: Checkpoint | None) -> Monitor:
    """This rank's log and the curves, in a claimed run directory."""
    run_dir = Path(config.output_dir)
    goes_on = found.step if found is not None and is_own(found, run_dir) else 0
    start = f"of {ranks.world_size()}, after step {found.step if found is not None else 0}"
    if warning := console.keep_log(run_dir / "logs", ranks.rank(), start):
        console.call_out(warning)
    return Monitor(run_dir, config.steps, enabled=ranks.rank() == 0, first_step=goes_on)


def say(line: str) -> None:
    """A console line of rank 0 before the monitor stands."""
    if ranks.rank() == 0:
        console.say(line)
