"""Proof that a saved folder computes what it should, in a process of its own. It saves no model and judges no quality.

Legend: B batch, L length, V vocabulary.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from homodistil_ds.errors import NOTHING_STARTED, HomodistilError
from homodistil_ds.evaluation import plain

PARITY = 1e-5  # largest difference of float32 logits that passes, in units of the largest logit
FAULT = "Please report this; it is a fault of the program."
Inputs = Mapping[str, torch.Tensor]


def prove(folder: Path, inputs: Sequence[Inputs], expected: Sequence[torch.Tensor], kept: str) -> float:
    """Load the folder where only torch and transformers are known, and compare its logits with the expected ones.

    `inputs` are batches, name -> int64 [B, L]. Returns the difference in units of the largest logit; raises
    HomodistilError if the folder does not load or is off by more than PARITY. `kept` says what is safe even then.
    """
    return compare(Path(plain.__file__), folder, inputs, expected, kept)


def compare(
    script: Path, saved: Path, inputs: Sequence[Inputs], expected: Sequence[torch.Tensor], kept: str, *flags: str
) -> float:
    """The same for any script that is called with what was saved, a file of inputs and a file for its logits."""
    with tempfile.TemporaryDirectory() as scratch:
        given, answered = Path(scratch, "inputs.pt"), Path(scratch, "logits.pt")
        torch.save([dict(batch) for batch in inputs], given)
        fresh_process(script, *flags, str(saved), str(given), str(answered), kept=kept)
        off = difference(expected, torch.load(answered, weights_only=True))
    if not off <= PARITY:
        raise HomodistilError(
            "NUM-EXPORT",
            f"{saved}: its logits differ from those of the model it was made from by {off:.2e}",
            FAULT,
            kept,
        )
    return off


def difference(expected: Sequence[torch.Tensor], got: Sequence[torch.Tensor]) -> float:
    """The largest difference over all batches, each in units of its largest expected logit; NaN if one is in there."""
    worst = [0.0]
    for wanted, logits in zip(expected, got, strict=True):
        off, largest = (wanted - logits).abs().max(), wanted.abs().max()
        worst.append(float(off / largest) if off != 0 else 0.0)
    return max(worst, key=lambda value: float("inf") if value != value else value)


def fresh_process(script: Path, *arguments: str, kept: str = NOTHING_STARTED, remedy: str = FAULT) -> str:
    """What a script prints that knows nothing of this project. If it fails, HomodistilError has its last words."""
    # In a session of its own: Ctrl-C is for the run, which first completes what it has.
    command = [sys.executable, "-I", str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise HomodistilError(
            "NUM-EXPORT",
            f"{script.name} failed on what was saved (exit code {done.returncode}): {reason}",
            remedy,
            kept,
        )
    return done.stdout


def speeds(folders: Sequence[str], ids: torch.Tensor, kept: str) -> list[float]:
    """Tokens per second of each folder's encoder on ids [B, L], measured in turns."""
    with tempfile.TemporaryDirectory() as scratch:
        given = Path(scratch, "ids.pt")
        torch.save(ids, given)
        return list(json.loads(fresh_process(Path(plain.__file__), "--speed", str(given), *folders, kept=kept)))


def latencies(folders: Sequence[str]) -> dict[str, Any]:
    """What plain.latencies says of these folders, measured in turns in one process."""
    remedy = "Load each run's student with transformers to see which one is not whole."
    return dict(json.loads(fresh_process(Path(plain.__file__), "--latency", *folders, remedy=remedy)))
