"""Two runs in one: of the students that a trial leaves behind, one teaches the smaller ones (M2)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from homodistil_ds.config import RunConfig
from homodistil_ds.machine import Machine
from homodistil_ds.methods.opening import say
from homodistil_ds.methods.parts import complete_first
from homodistil_ds.methods.start import TRIAL
from homodistil_ds.pruning.family import assistant_by_gap, would_teach
from homodistil_ds.runtime import ranks

Descent = Callable[[RunConfig, Machine, str, Path | None], None]


def with_assistant(config: RunConfig, machine: Machine, command: str, descend: Descent, **trial: Any) -> None:
    """One run of `descend`, or with --assistant two: of the students that the first one leaves behind, in trial/ and
    with the values `trial` changed, one teaches the smaller ones."""
    if config.assistant == "none":
        return descend(config, machine, command, None)
    whole = Path(config.output_dir)
    first = replace(config, assistant="none", output_dir=str(whole / TRIAL), **trial)
    # Another teacher, another cache.
    cache = str(Path(machine.teacher_cache, TRIAL)) if machine.teacher_cache else ""
    machine = complete_first(
        first, machine, whole, lambda its: descend(first, replace(its, teacher_cache=cache), command, whole)
    )
    return descend(second(config, whole / TRIAL), machine, command, None)


def second(config: RunConfig, trial: Path) -> RunConfig:
    """The run from the assistant that the trial's figures choose, to the members below it."""
    members = ranks.told_by(0, ranks.together(lambda: _members_in(trial) if ranks.rank() == 0 else []))
    place = choose_assistant(config.assistant, members)
    folder = trial / members[place]["folder"]
    say(f"assistant: the student of scale {members[place]['scale']:g} ({config.assistant}), in {folder}")
    return replace(
        config,
        teacher=str(folder),
        scales_of=config.scales_of or config.teacher,
        family=config.family[place + 1 :],
        assistant="none",
    )


def _members_in(run_dir: Path) -> list[dict[str, Any]]:
    return json.loads((run_dir / "report.json").read_text(encoding="utf-8"))["family"]


def choose_assistant(rule: str, members: Sequence[Mapping[str, Any]]) -> int:
    """The place among the members, as a report has them, of the one that teaches; never the last, which is taught."""
    if rule == "auto":
        place = would_teach([row["trade_off"] for row in members])
        assert place is not None, "an assistant needs two scales, and that was asked before"
        return place
    if rule == "capacity":
        return assistant_by_gap([row["parameters"] for row in members])
    return next(place for place, row in enumerate(members) if f"{row['scale']:g}" == rule)
