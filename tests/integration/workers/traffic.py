"""What a run sends and opens, phase by phase: two pruned steps, a cut, a checkpoint, and reading it and another's."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from counting import Counting, opened
from tiny import Tiny, start

from homodistil_ds.models.width import Widths
from homodistil_ds.pruning.pruner import Pruner
from homodistil_ds.runtime import carry, checkpoint, checkpoint_writing, ranks
from homodistil_ds.runtime.engine import Engine
from homodistil_ds.runtime.exit_reason import leave
from homodistil_ds.runtime.shards import places

TARGET = Widths(hidden=16, ffn=24, heads=2, head_size=8)
Figures = dict[str, dict[str, int]]


class Watch:
    """Figures of the named phases; a phase that is met again keeps its first ones."""

    def __init__(self) -> None:
        self.phases = Figures()

    def phase(self, name: str, action: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        with Counting() as counting, opened("/checkpoints/") as names:
            self.tensor_files = 0
            result = action(*arguments, **options)
        gathers = [(sent, got) for kind, sent, got in counting.seen if kind == "all_gather"]
        values = sum(sent for kind, sent, _ in counting.seen if kind == "all_to_all_single")
        opens = len(names) + self.tensor_files
        lists = {"lists_sent": sum(sent for sent, _ in gathers), "lists": sum(got for _, got in gathers)}
        self.phases.setdefault(name, {**counting.figures, **lists, "values": values, "opens": opens})
        return result

    def watching(self, place: Any, attribute: str, name: str) -> None:
        """From now on every call of a function of the package is this phase."""
        setattr(place, attribute, partial(self.phase, name, getattr(place, attribute)))

    def counting_opens(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """safetensors opens files where Python does not see it."""

        def counted(*arguments: Any, **options: Any) -> Any:
            self.tensor_files += 1
            return function(*arguments, **options)

        return counted


def resume(watch: Watch, asked: str, folder: Path, engine: Engine) -> list[torch.Tensor]:
    """As a start does it, without the engine."""
    wanted = [(place.name, place.offset, place.count) for place in places(engine)]
    found = checkpoint.find(asked, folder, print)
    ranks.together(found.tensors)
    return found.read(wanted)


def one_case(tiny: Tiny, zero: int, other: str | None, folder: Path) -> dict[str, Any]:
    watch = Watch()
    engine = tiny.engine(tiny.student(noise=0.02), zero)
    pruner = Pruner(tiny.plan, tiny.schedule(TARGET, end=1), "sensitivity", beta=0.0)

    def build(widths: Widths) -> Engine:
        return tiny.engine(tiny.blank(widths), zero)

    stage = tiny.stage(engine, steps=2, pruner=pruner, milestones={2: TARGET}, build=build)
    originals = [(ranks, "differing"), (ranks, "agree_to_stop"), (ranks, "rows"), (carry, "exchange")]
    kept = [getattr(place, name) for place, name in originals]
    for (place, name), phase in zip(originals, ("agreement", "stop", "log", "cut"), strict=True):
        watch.watching(place, name, phase)
    pruner.score = partial(watch.phase, "scoring", pruner.score)  # type: ignore[method-assign]
    stage.run()
    for (place, name), original in zip(originals, kept, strict=True):
        setattr(place, name, original)
    engine = stage.engine
    watch.phase("together", ranks.together, lambda: None)
    state = {"step": 2, "world_size": ranks.world_size()}
    pieces = carry.take(engine)
    saved = watch.phase("save", checkpoint_writing.save, folder, state, pruner.state_dict(), pieces, 3)
    opening = checkpoint.safe_open, checkpoint.load_file
    checkpoint.safe_open, checkpoint.load_file = map(watch.counting_opens, opening)  # type: ignore[assignment,misc]
    values = watch.phase("resume", resume, watch, "auto", folder, engine)
    for place, (weight, *_) in zip(places(engine), values, strict=True):
        assert torch.equal(weight, place.of(place.flat.data).detach())
    if other:
        watch.phase("resume elsewhere", resume, watch, other, folder, engine)
    checkpoint.safe_open, checkpoint.load_file = opening  # type: ignore[misc]
    sizes = {path.name: path.stat().st_size for path in saved.iterdir()}
    shapes = [(name, list(getattr(p, "ds_shape", p.shape))) for name, p in engine.module.named_parameters()]
    result = {
        "ranks": ranks.everyone(watch.phases),
        "saved": str(saved),
        "files": sizes,
        "path_bytes": len(pickle.dumps([saved])),
        "state_bytes": sum(ranks.everyone(sum(piece.values.nbytes for piece in pieces))),
        "runs": ranks.everyone([piece.run for piece in pieces]),
        "shapes": shapes,
        "neurons": sum(tiny.plan.groups().values()),
        "groups": len(tiny.plan.groups()),
    }
    engine.destroy()
    return result


def main() -> None:
    tiny = start()
    out, others = Path(tiny.settings["out"]), tiny.settings.get("others", {})
    cases = {}
    for zero in tiny.settings["stages"]:
        folder = out / f"zero{zero}" / "checkpoints"
        ranks.on_first(partial(folder.parent.mkdir, exist_ok=True))
        cases[f"zero{zero}"] = one_case(tiny, zero, others.get(f"zero{zero}"), folder)
    tiny.finish(cases)


if __name__ == "__main__":
    main()
    leave(0)
