"""Facts of the machine and of this start, not of the run: another machine may finish what this one began."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PLACEMENTS = ("auto", "replicated", "node", "zero3", "cpu_offload")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the flags beside the run's say, read before them."""

    ds_config: dict[str, Any]
    """DeepSpeed configuration: ZeRO stage, precision, micro batch."""
    ds_config_after_cuts: dict[str, Any] | None = None
    """Configuration to change to at the first cut where it needs no more memory per rank than the run began with."""
    teacher_placement: str = "auto"
    """Whole on every rank, in pieces over the ranks of a node or over all, or in pieces in host memory."""
    teacher_cache: str = ""
    """Folder of the teacher's final hidden states, read from there or written for later runs; empty: none."""
    resume: str = "never"
    """`never` starts a run, `auto` goes on from the newest whole checkpoint, a path from that one."""
    plan: bool = False
    """Print what the run would take in place of running it."""
