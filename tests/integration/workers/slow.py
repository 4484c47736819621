"""Runs of the loop in one process group: even, with a rank slow in its forward pass, with one slow in its data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tiny import Tiny, start

from homodistil_ds.data.batches import Batches
from homodistil_ds.data.predicted import Batch
from homodistil_ds.runtime import ranks
from homodistil_ds.runtime.exit_reason import leave
from homodistil_ds.runtime.monitor import Monitor
from homodistil_ds.stage import Stage

NAP = 0.25


class Slow(Batches):
    def micro_batches(self, step: int) -> Iterator[Batch]:
        time.sleep(NAP)
        yield from super().micro_batches(step)


class SlowStage(Stage):
    def teach(self, *shown: Any, **options: Any) -> Any:
        time.sleep(NAP)
        return super().teach(*shown, **options)


class Noting(Monitor):
    """Keeps lines and the last value of each scalar."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.lines: list[str] = []
        self.values: dict[str, float] = {}

    def line(self, text: str) -> None:
        self.lines.append(text)

    def scalars(self, step: int, values: Any) -> None:
        self.values.update(values)


def one_case(tiny: Tiny, slow_forward: int | None = None, slow_data: int | None = None) -> dict[str, Any]:
    engine = tiny.engine(tiny.student(), 2)
    origins = [torch.arange(tiny.plan.full.heads)] * tiny.plan.layers
    stage = tiny.stage(engine, steps=24, head_origins=origins)
    monitor = Noting(Path(tiny.settings["out"]), 24, enabled=False)
    if slow_forward == ranks.rank():
        stage = SlowStage(**vars(stage))
    if slow_data == ranks.rank():
        stage.batches = Slow(**vars(stage.batches))
    stage.monitor, stage.config = monitor, replace(stage.config, log_interval=4)
    stage.run()
    engine.destroy()
    warnings = [line for line in monitor.lines if "warning" in line]
    return {"warnings": warnings, "values": {name: monitor.values[name] for name in monitor.values if "perf" in name}}


def main() -> None:
    tiny = start()
    tiny.finish(
        {
            "even": one_case(tiny),
            "forward": one_case(tiny, slow_forward=1),
            "data": one_case(tiny, slow_data=0),
        }
    )


if __name__ == "__main__":
    main()
    leave(0)
