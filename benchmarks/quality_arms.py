"""The students that benchmarks/quality.py compares: a preset each, at sizes made from the teacher's. It runs nothing.

What a method is stands in its preset; here is what the benchmark changes of it: shapes, and one thing per ablation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from homotopy import target

from homodistil_ds.models.depth import shallower
from homodistil_ds.models.width import WidthPlan, Widths, count
from homodistil_ds.presets import NO_LOSS, PRESETS

Flags = dict[str, float | int | str]
GRADUAL = "homobert_small"  # the preset of HomoDistil itself
FULL_METHOD = "homodistil 1/2"  # what the ablations change
THESIS = (FULL_METHOD, "one-shot 1/2", "random start 1/2", "distilbert", "plain kd")  # drawn over the steps
FIRST_LAYERS = "first layers"  # where PKD starts; it distils on the task alone
MORE_SEEDS = (1, 2)  # of the full method's distillation, beside 0
FFN_STEP = 8


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One student: `preset` with `flags` changed.

    An ablation changes one thing of the full method, a seed only that; both take its learning rate. A start is not
    trained. The others are tuned themselves.
    """

    name: str
    preset: str
    flags: Flags
    kind: Literal["arm", "ablation", "seed", "start"] = "arm"

    @property
    def folder(self) -> str:
        return folder_of(self.name)

    @property
    def speaks(self) -> bool:
        """Whether training reaches the vocabulary head, without which held-out figures say nothing of a student."""
        loss = PRESETS[self.preset]().loss
        return self.kind != "start" and loss.mlm + loss.kl > 0


def folder_of(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name.replace("/", "of"))


def shape(widths: Widths) -> Flags:
    return {
        "student.hidden_size": widths.hidden,
        "student.intermediate_size": widths.ffn,
        "student.num_attention_heads": widths.heads,
    }


def nearest(plan: WidthPlan, parameters: int) -> Widths:
    """Widths with the teacher's heads whose model has almost this many parameters.

    The head size is the best one in the teacher's proportions; steps of the feed-forward width make up the rest.
    """

    def off(widths: Widths) -> int:
        return abs(count(plan, widths).with_head - parameters)

    full = plan.full
    best = min((target(plan, size / full.head_size) for size in range(1, full.head_size + 1)), key=off)
    return min((replace(best, ffn=ffn) for ffn in range(FFN_STEP, full.ffn + 1, FFN_STEP)), key=off)


def arms(plan: WidthPlan) -> list[Arm]:
    """HomoDistil at three sizes, the largest that of the shallower baselines; every baseline from its preset."""
    layers = max(1, plan.layers // 2)
    shallow = shallower(plan, tuple(range(layers)))
    depth: Flags = {"student.num_hidden_layers": layers}
    half = shape(target(plan, 0.5))
    # At half the size of the paper's teacher; heads of the same 16 entries in the teacher as there.
    relations: Flags = {"loss.relation_heads": 2 * plan.full.heads}
    as_deep: Flags = {**half, "student.num_hidden_layers": plan.layers}
    tiny = nearest(shallow, count(plan, target(plan, 0.5)).with_head)
    large = nearest(plan, count(shallow, plan.full).with_head)
    return [
        Arm(name="homodistil at distilbert's size", preset=GRADUAL, flags=shape(large)),
        Arm(name=FULL_METHOD, preset=GRADUAL, flags=half),
        Arm(name="homodistil 1/4", preset=GRADUAL, flags=shape(target(plan, 0.25))),
        Arm(name="one-shot 1/2", preset="one_shot", flags=half),
        Arm(name="magnitude 1/2", preset="magnitude", flags=half),
        Arm(name="masks at the end 1/2", preset="masks_at_the_end", flags=half),
        Arm(name="random start 1/2", preset="random_start", flags=half),
        Arm(name="distilbert", preset="distilbert", flags=depth),
        Arm(name="plain kd", preset="plain_kd", flags=depth),
        Arm(name="tinybert 1/2", preset="tinybert", flags={**shape(tiny), **depth}),
        Arm(name="minilm 1/2", preset="minilm", flags=as_deep),
        Arm(name="minilmv2 1/2", preset="minilmv2", flags={**as_deep, **relations}),
        first_layers(max(2, layers)),
    ]


def first_layers(layers: int) -> Arm:
    """The teacher's, as they are."""
    flags: Flags = {"student.layers": "first", "student.num_hidden_layers": layers, "steps": 1, "eval_interval": 0}
    return Arm(name=FIRST_LAYERS, preset="plain_kd", flags=flags, kind="start")


def ablations(plan: WidthPlan) -> list[Arm]:
    """The full method with one thing changed, and with other seeds."""
    half = shape(target(plan, 0.5))
    changes: dict[str, Flags] = {f"without {name}": {f"loss.{name}": 0} for name in NO_LOSS}
    changes |= {f"criterion {name}": {"pruning.criterion": name} for name in ("magnitude", "taylor", "platon")}
    changes |= {f"target reached at {end}": {"pruning.end": end} for end in (0.3, 0.5, 0.9)}
    changes |= {f"{cuts} cuts": {"cuts": cuts} for cuts in (0, 1, 4)}
    changes |= {"without moving average": {"pruning.beta": 0.0}}
    seeds = [Arm(name=f"seed {seed}", preset=GRADUAL, flags={**half, "seed": seed}, kind="seed") for seed in MORE_SEEDS]
    return [
        *seeds,
        Arm(name="one-shot", preset="one_shot", flags=half, kind="ablation"),
        *(Arm(name=name, preset=GRADUAL, flags={**half, **flags}, kind="ablation") for name, flags in changes.items()),
    ]
