"""Ten pruned steps with checkpoints up to the fifth, then a fresh engine that goes on from the last of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny import Tiny, start

from homodistil_ds.config import OptimizerConfig
from homodistil_ds.models.width import Widths
from homodistil_ds.pruning.pruner import Pruner
from homodistil_ds.runtime import checkpoint

STEPS, SAVED_UP_TO = 10, 5
TARGET = Widths(hidden=15, ffn=41, heads=3, head_size=5)


def one_case(tiny: Tiny, optimizer: OptimizerConfig) -> dict[str, Any]:
    folder = Path(tiny.settings["out"], optimizer.name)

    def fresh_pruner() -> Pruner:
        # Pruning goes on after the checkpoint, so the saved importance decides which neurons leave.
        return Pruner(tiny.plan, tiny.schedule(TARGET, end=8), "sensitivity", beta=0.85)

    trained, pruner = tiny.engine(tiny.student(noise=0.02), stage=2, optimizer=optimizer), fresh_pruner()
    saved: dict[int, str] = {}

    def save(step: int) -> None:
        if step <= SAVED_UP_TO:
            checkpoint.save(trained, folder, step, {"step": step, "pruner": pruner.state_dict()})
            saved[step] = pruner.masks.digest()

    stage = tiny.stage(trained, STEPS, pruner=pruner, save=save, save_interval=1)
    stage.run()
    trained.destroy()

    # The noise is left out: every weight must come from the checkpoint.
    again_engine, again_pruner = tiny.engine(tiny.student(), stage=2, optimizer=optimizer), fresh_pruner()
    state = checkpoint.load(again_engine, folder)
    again_pruner.load_state_dict(state["pruner"])
    again_pruner.apply(again_engine)
    restored = again_pruner.masks.digest()
    again = tiny.stage(again_engine, STEPS, pruner=again_pruner, first_step=state["step"] + 1)
    again.run()
    again_engine.destroy()
    return {
        "files": sorted(path.name for path in folder.iterdir()),
        "step": state["step"],
        "saved digests": saved,
        "restored digest": restored,
        "final digests": [pruner.masks.digest(), again_pruner.masks.digest()],
        "agreements": [pruner.agreements, again_pruner.agreements],
        "histories": [stage.history, again.history],
    }


def main() -> None:
    tiny = start()
    names = ("adamw", "fused_adam")
    tiny.finish({name: one_case(tiny, OptimizerConfig(name=name)) for name in names})


if __name__ == "__main__":
    main()
