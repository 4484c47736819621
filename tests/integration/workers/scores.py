"""One scored and pruned step at every ZeRO stage and accumulation; every shard against DeepSpeed's public functions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad, safe_get_full_optimizer_state
from tiny import GLOBAL_BATCH, Tiny, batches_of, by_name, link_moments, start

from homodistil_ds.models.width import Widths
from homodistil_ds.pruning.pruner import Pruner
from homodistil_ds.runtime import ranks
from homodistil_ds.runtime.engine import Engine
from homodistil_ds.runtime.shards import MOMENTS, Shard, scored_shards, state_shards

COLLECTIVES = ("all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_object", "reduce", "reduce_scatter")
COLLECTIVES += ("reduce_scatter_tensor", "broadcast", "gather", "scatter", "all_to_all", "all_to_all_single", "barrier")


class WatchedPruner(Pruner):
    """A pruner that notes, at its place in the loop, what it saw and which collectives it caused."""

    def score(self, engine: Engine, step: int) -> None:
        self.weights = {name: parameter.detach().clone() for name, parameter in by_name(engine).items()}
        self.coverage = coverage(engine, scored_shards(engine))
        self.gradient_gap = gap(
            engine, ((shard, shard.gradient) for shard in scored_shards(engine)), safe_get_full_grad
        )
        with Counting() as counting:
            super().score(engine, step)
        self.collectives = counting.seen
        self.score_values = self.importance.mean.clone()


class Counting:
    """Names of the collectives issued inside the with block."""

    def __enter__(self) -> Counting:
        self.seen: list[str] = []
        self.originals = {name: getattr(dist, name) for name in COLLECTIVES}
        for name, original in self.originals.items():
            setattr(dist, name, self.noting(name, original))
        return self

    def noting(self, name: str, original: Any) -> Any:
        def noted(*arguments: Any, **options: Any) -> Any:
            self.seen.append(name)
            return original(*arguments, **options)

        return noted

    def __exit__(self, *_: object) -> None:
        for name, original in self.originals.items():
            setattr(dist, name, original)


def coverage(engine: Engine, shards: Iterable[Shard]) -> list[int]:
    """How often any entry of any parameter appears over all ranks: the smallest and the largest count."""
    counts = {name: torch.zeros(parameter.numel()) for name, parameter in by_name(engine).items()}
    for shard in shards:
        counts[shard.name][shard.offset : shard.offset + len(shard.weight)] += 1
    flat = torch.cat(list(counts.values()))
    ranks.add_up(flat)
    return [int(flat.min()), int(flat.max())]


def gap(engine: Engine, found: Iterable[tuple[Shard, torch.Tensor]], gather: Any) -> float:
    """Largest difference between local slices and the same slices of the gathered tensors. Collective."""
    full = {name: gather(parameter).flatten().clone() for name, parameter in by_name(engine).items()}
    largest = torch.zeros(1)
    for shard, values in found:
        wanted = full[shard.name][shard.offset : shard.offset + len(values)]
        assert values.shape == wanted.shape
        largest = torch.maximum(largest, (values - wanted).abs().max() if len(values) else largest)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return float(largest)


def state_gaps(engine: Engine) -> dict[str, float]:
    link_moments(engine)
    shards = list(state_shards(engine))
    assert all(len(shard.moments) == len(MOMENTS) for shard in shards)
    gaps = {"weight": gap(engine, ((shard, shard.weight) for shard in shards), safe_get_full_fp32_param)}
    for place, key in enumerate(MOMENTS):

        def gather(parameter: torch.nn.Parameter, key: str = key) -> torch.Tensor:
            return safe_get_full_optimizer_state(parameter, key)

        gaps[key] = gap(engine, ((shard, shard.moments[place]) for shard in shards), gather)
    copies = [
        (safe_get_full_fp32_param(parameter) - parameter.data).abs().max() for parameter in by_name(engine).values()
    ]
    return gaps | {"forward copy": float(max(copies))}


def one_case(tiny: Tiny, stage: int, accumulation: int) -> dict[str, Any]:
    trained = tiny.engine(tiny.student(noise=0.02), stage, accumulation)
    target = Widths(hidden=15, ffn=41, heads=3, head_size=5)
    pruner = WatchedPruner(tiny.plan, tiny.schedule(target, end=1), "sensitivity", beta=0.0)
    tiny.stage(trained, steps=1, pruner=pruner).run()
    result = {
        "coverage": pruner.coverage,
        "gradient_gap": pruner.gradient_gap,
        "collectives": pruner.collectives,
        "kept": {group: index.tolist() for group, index in pruner.masks.indices().items()},
        "state_gaps": state_gaps(trained) if stage else None,
        "state_coverage": coverage(trained, state_shards(trained)),
    }
    batch = next(iter(batches_of(tiny.batches, GLOBAL_BATCH, 0, 1).micro_batches(1)))
    facts = {"weights": pruner.weights, "score": pruner.score_values, "batch": vars(batch)}
    if ranks.rank() == 0:
        torch.save(facts, Path(tiny.settings["out"], f"zero{stage}-accumulation{accumulation}.pt"))
    trained.destroy()
    return result


def main() -> None:
    tiny = start()
    tiny.finish(
        {
            f"zero{stage}-accumulation{accumulation}": one_case(tiny, stage, accumulation)
            for stage in (0, 1, 2)
            for accumulation in (1, 2)
        }
    )


if __name__ == "__main__":
    main()
