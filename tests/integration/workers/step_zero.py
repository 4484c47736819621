"""The first step of a stage, at every ZeRO stage: the untouched student beside its teacher."""

from __future__ import annotations

from typing import Any

import torch
from tiny import Tiny, start

from homodistil_ds.runtime import ranks
from homodistil_ds.runtime.exit_reason import leave


def one_case(tiny: Tiny, zero: int) -> dict[str, Any]:
    trained = tiny.engine(tiny.student(), zero)
    stage = tiny.stage(trained, steps=1)
    stage.head_origins = [torch.arange(tiny.plan.full.heads)] * tiny.plan.layers
    batch = next(iter(tiny.batches.micro_batches(1)))
    with torch.no_grad():
        own = trained(batch.input_ids, batch.positions)
        shown = stage.teach(batch.input_ids, batch.positions, reads=tiny.objective.teacher_reads())
    differing = torch.tensor([float(not torch.equal(own.logits, shown.logits))])
    ranks.add_up(differing)
    stage.run()
    trained.destroy()
    return {"ranks with other logits": int(differing), "terms": stage.history[0]}


def main() -> None:
    tiny = start()
    tiny.finish({f"zero{zero}": one_case(tiny, zero) for zero in (0, 1, 2, 3)})


if __name__ == "__main__":
    main()
    leave(0)
