"""One scored and pruned step at every ZeRO stage and in every setting; every shard against the gathered tensors."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from counting import Counting
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad, safe_get_full_optimizer_state
from tiny import GLOBAL_BATCH, Tiny, batches_of, start

from homodistil_ds.models.width import Widths
from homodistil_ds.pruning.pruner import Pruner
from homodistil_ds.runtime import ranks
from homodistil_ds.runtime.engine import Engine
from homodistil_ds.runtime.exit_reason import leave
from homodistil_ds.runtime.shards import MOMENTS, Shard, loss_scale, scored_shards, state_shards, trained

TARGET = Widths(hidden=15, ffn=41, heads=3, head_size=5)


class WatchedPruner(Pruner):
    """A pruner that notes, at its place in the loop, what it saw and which collectives it caused."""

    def score(self, engine: Engine, step: int) -> torch.Tensor | None:
        if engine.zero_optimization_stage() == 0:
            weights = {name: parameter.detach() for name, parameter in trained(engine)}
        else:
            weights = {name: safe_get_full_fp32_param(parameter) for name, parameter in trained(engine)}
        self.weights = {name: weight.float().clone() for name, weight in weights.items()}
        self.coverage = coverage(engine, scored_shards(engine))
        scale = loss_scale(engine)
        self.gradient_gap = gap(
            engine,
            ((shard, shard.gradient) for shard in scored_shards(engine)),
            lambda parameter: safe_get_full_grad(parameter).float() / scale,
        )
        with Counting() as counting:
            score = super().score(engine, step)
        self.collectives = [(name, sent) for name, sent, _ in counting.seen]
        return score

    def record(self, score: torch.Tensor | None) -> None:
        self.score_values = score
        super().record(score)


def coverage(engine: Engine, shards: Iterable[Shard]) -> list[int]:
    """How often any entry of any parameter appears over all ranks: the smallest and the largest count."""
    counts = {name: torch.zeros(size_of(parameter)) for name, parameter in trained(engine)}
    for shard in shards:
        counts[shard.name][shard.offset : shard.offset + len(shard.weight)] += 1
    flat = torch.cat(list(counts.values()))
    ranks.add_up(flat)
    return [int(flat.min()), int(flat.max())]


def size_of(parameter: Any) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def gap(engine: Engine, found: Iterable[tuple[Shard, torch.Tensor]], gather: Any) -> float:
    """Largest difference between local slices and the same slices of the gathered tensors. Collective."""
    full = {name: gather(parameter).flatten().clone() for name, parameter in trained(engine)}
    largest = torch.zeros(1)
    for shard, values in found:
        wanted = full[shard.name][shard.offset : shard.offset + len(values)]
        assert values.shape == wanted.shape
        largest = torch.maximum(largest, (values.float() - wanted).abs().max() if len(values) else largest)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return float(largest)


def state_gaps(engine: Engine) -> dict[str, float]:
    if engine.zero_optimization_stage() < 3:
        # DeepSpeed links the moments of the first parameter group only to its public functions.
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    shards = list(state_shards(engine))
    assert all(len(shard.moments) == len(MOMENTS) for shard in shards)
    gaps = {"weight": gap(engine, ((shard, shard.weight) for shard in shards), safe_get_full_fp32_param)}
    for place, key in enumerate(MOMENTS):

        def gather(parameter: torch.nn.Parameter, key: str = key) -> torch.Tensor:
            return safe_get_full_optimizer_state(parameter, key)

        gaps[key] = gap(engine, ((shard, shard.moments[place]) for shard in shards), gather)
    return gaps


def one_case(tiny: Tiny, name: str, stage: int, accumulation: int = 1, **machine: Any) -> dict[str, Any]:
    engine = tiny.engine(tiny.student(noise=0.02), stage, accumulation, **machine)
    pruner = WatchedPruner(tiny.plan, tiny.schedule(TARGET, end=1), "sensitivity", beta=0.0)
    training = tiny.stage(engine, steps=1, pruner=pruner)
    training.run()
    with torch.no_grad():
        batch = next(iter(tiny.batches.micro_batches(1)))
        shown = engine(batch.input_ids, batch.positions)
    result = {
        "coverage": pruner.coverage,
        "gradient_gap": pruner.gradient_gap,
        "collectives": pruner.collectives,
        "neurons": sum(tiny.plan.groups().values()),
        "kept": {group: index.tolist() for group, index in pruner.masks.indices().items()},
        "state_gaps": state_gaps(engine) if stage else None,
        "state_coverage": coverage(engine, state_shards(engine)),
        "masked hidden state": float(torch.stack(shown.hidden).isfinite().all()),
        "skipped": engine.skipped_steps,
        "loss_scale": loss_scale(engine),
        "steps": engine.global_steps,
    }
    whole = next(iter(batches_of(tiny.batches, GLOBAL_BATCH, 0, 1).micro_batches(1)))
    if ranks.rank() == 0:
        facts = {"weights": pruner.weights, "score": pruner.score_values, "batch": vars(whole)}
        torch.save(facts, Path(tiny.settings["out"], f"{name}.pt"))
    engine.destroy()
    return result


def main() -> None:
    tiny = start()
    # Number formats are a matter of the device; the code path of fp16 is DeepSpeed's own, on any.
    type(get_accelerator()).is_fp16_supported = lambda self: True  # type: ignore[method-assign]
    cases: dict[str, dict[str, Any]] = {
        f"zero{stage}-accumulation{accumulation}": {"stage": stage, "accumulation": accumulation}
        for stage in (0, 1, 2, 3)
        for accumulation in (1, 2)
    }
    if ranks.world_size() == 2:
        cases |= {f"zero{stage}-offload": {"stage": stage, "offload": True, "accumulation": 2} for stage in (1, 2, 3)}
        cases |= {f"zero{stage}-fp16": {"stage": stage, "precision": "fp16", "accumulation": 2} for stage in (1, 2, 3)}
        cases |= {f"zero{stage}-bf16": {"stage": stage, "precision": "bf16"} for stage in (1, 2, 3)}
    chosen = tiny.settings.get("cases") or list(cases)
    tiny.finish({name: one_case(tiny, name, **cases[name]) for name in chosen})


if __name__ == "__main__":
    main()
    leave(0)
