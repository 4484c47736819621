"""Ten pruned steps with a checkpoint after the fifth, then a fresh engine that goes on from it."""

from __future__ import annotations

from pathlib import Path

from tiny import start

from homodistil_ds.models.width import Widths
from homodistil_ds.pruning.pruner import Pruner
from homodistil_ds.runtime import checkpoint

STEPS, SAVED_AFTER = 10, 5
TARGET = Widths(hidden=15, ffn=41, heads=3, head_size=5)


def main() -> None:
    tiny = start()
    folder = Path(tiny.settings["out"], "checkpoints")

    def fresh_pruner() -> Pruner:
        # Pruning goes on after the checkpoint, so the saved importance decides which neurons leave.
        return Pruner(tiny.plan, tiny.schedule(TARGET, end=8), "sensitivity", beta=0.85)

    first_engine, first_pruner = tiny.engine(tiny.student(noise=0.02), stage=2), fresh_pruner()
    saved: dict[int, str] = {}

    def save(step: int) -> None:
        if step <= SAVED_AFTER:
            checkpoint.save(first_engine, folder, step, {"step": step, "pruner": first_pruner.state_dict()})
            saved[step] = first_pruner.masks.digest()

    first = tiny.stage(first_engine, STEPS, pruner=first_pruner, save=save, save_interval=1)
    first.run()
    files = sorted(path.name for path in folder.iterdir())
    first_engine.destroy()

    again_engine, again_pruner = tiny.engine(tiny.student(), stage=2), fresh_pruner()
    state = checkpoint.load(again_engine, folder)
    again_pruner.load_state_dict(state["pruner"])
    again_pruner.apply(again_engine)
    restored = again_pruner.masks.digest()
    again = tiny.stage(again_engine, STEPS, pruner=again_pruner, first_step=state["step"] + 1)
    again.run()
    tiny.finish(
        {
            "files": files,
            "step": state["step"],
            "saved digests": saved,
            "restored digest": restored,
            "final digests": [first_pruner.masks.digest(), again_pruner.masks.digest()],
            "agreements": [first_pruner.agreements, again_pruner.agreements],
            "histories": [first.history, again.history],
        }
    )


if __name__ == "__main__":
    main()
