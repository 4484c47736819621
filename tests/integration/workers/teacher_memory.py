"""Load a teacher far larger than what a rank may take, and run it once; writes each rank's peak or how it failed.

A tiny teacher goes the same way first: process groups, threads and libraries are then in place, and the limit bounds
what the large one takes.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import psutil
import torch

from homodistil_ds.config import RunConfig, StudentConfig
from homodistil_ds.errors import HomodistilError
from homodistil_ds.machine import Machine
from homodistil_ds.methods.placing import placed_teacher
from homodistil_ds.methods.setting import prepare_setting
from homodistil_ds.runtime import engine, memory, ranks
from homodistil_ds.runtime.exit_reason import leave


def serve_once(teacher: str, placement: str, corpus: str, out: Path) -> tuple[str, torch.nn.Module]:
    """Start a run as the methods do, up to the teacher's first forward; returns its placement and the teacher."""
    config = RunConfig(
        teacher=teacher,
        corpus=(corpus,),
        output_dir=str(out),
        global_batch_size=ranks.world_size(),
        sequence_length=16,
        held_out_sequences=ranks.world_size(),
        student=StudentConfig(hidden_size=16, intermediate_size=16, num_attention_heads=2, init="random"),
    )
    setting = prepare_setting(config, Machine(ds_config={}, teacher_placement=placement), "", False)
    placed = placed_teacher(setting, {"logits"})
    batch = next(iter(setting.batches.micro_batches(1)))
    with torch.no_grad():
        logits = placed(batch.input_ids, batch.positions, reads={"logits"}).logits
    assert bool(logits.isfinite().all())
    return setting.placement, placed


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    out = Path(settings["out"])
    engine.prepare_op_folder()
    ranks.start()
    _, tiny = serve_once(settings["tiny"], "zero3", settings["corpus"], out / "tiny")
    engine.dispose(tiny)
    memory.forget_peak()
    before, taken = memory.peak_bytes(), psutil.Process().memory_info().data
    resource.setrlimit(resource.RLIMIT_DATA, (taken + settings["limit"], resource.RLIM_INFINITY))
    result: dict[str, Any] = {}
    try:
        result["placement"], _ = serve_once(settings["teacher"], settings["placement"], settings["corpus"], out / "run")
    except (HomodistilError, MemoryError) as error:
        result["error"] = f"{type(error).__name__}: {error}"
    result["peak"] = memory.peak_bytes() - before
    (out / f"rank{ranks.rank()}.json").write_text(json.dumps(result), encoding="utf-8")
    if ranks.rank() == 0:
        (out / "result.json").write_text("{}", encoding="utf-8")
    ranks.stop()


if __name__ == "__main__":
    main()
    leave(0)
