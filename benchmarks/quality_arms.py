"""The students that benchmarks/quality.py compares: which flags make each of them. It runs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from homotopy import target

from homodistil_ds.models.width import WidthPlan

Flags = dict[str, float | int | str]
NO_LOSS: Flags = {f"loss.{name}": 0 for name in ("mlm", "kl", "hidden", "attention", "embedding")}
FULL_METHOD = "homodistil 1/2"  # what the ablations change


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One student.

    An ablation changes one thing of the full method and takes its learning rate, a start is not trained; the others are
    tuned themselves. `from_teacher`: it is the teacher before the first step. `speaks`: its objective trains the
    vocabulary head, without which held-out figures say nothing of it.
    """

    name: str
    flags: Flags
    kind: Literal["arm", "ablation", "start"] = "arm"
    from_teacher: bool = False
    speaks: bool = True

    @property
    def folder(self) -> str:
        return self.name.replace(" ", "_").replace("/", "of")


def shape(hidden: int, ffn: int, heads: int) -> Flags:
    return {"student.hidden_size": hidden, "student.intermediate_size": ffn, "student.num_attention_heads": heads}


def narrowed(plan: WidthPlan, share: float) -> Flags:
    """The teacher's widths times `share`; the heads stay, their size shrinks."""
    widths = target(plan, share)
    return shape(widths.hidden, widths.ffn, widths.heads)


def arms(plan: WidthPlan) -> list[Arm]:
    """HomoDistil at three sizes, and every baseline with the layers and the start of its paper."""
    half, whole, layers = narrowed(plan, 0.5), narrowed(plan, 1.0), plan.layers
    at_once: Flags = {"pruning.start": 0.03, "pruning.end": 0.03}
    shallow: Flags = {**whole, "student.num_hidden_layers": max(1, layers // 2)}
    random: Flags = {"student.init": "random", "cuts": 0}
    small: Flags = {**random, **shallow, **narrowed(plan, 0.625)}
    distilbert: Flags = {"loss.mlm": 2, "loss.kl": 5, "loss.cosine": 1, "loss.temperature": 2}
    tinybert: Flags = {"loss.hidden": 1, "loss.embedding": 1, "loss.scores": 1}
    minilm: Flags = {"loss.attention_kl": 1, "loss.value_relation": 1}
    minilmv2: Flags = {"loss.relation": 1, "loss.relation_heads": 2 * plan.full.heads}
    magnitude: Flags = {"pruning.criterion": "magnitude"}
    first: Flags = {"student.layers": "first", "student.num_hidden_layers": max(2, layers // 2), "steps": 1}
    return [
        Arm(name="homodistil 3/4", flags=narrowed(plan, 0.75), from_teacher=True),
        Arm(name=FULL_METHOD, flags=half, from_teacher=True),
        Arm(name="homodistil 1/4", flags=narrowed(plan, 0.25), from_teacher=True),
        Arm(name="one-shot 1/2", flags={**half, **at_once}, from_teacher=True),
        Arm(name="magnitude 1/2", flags={**half, **magnitude}, from_teacher=True),
        Arm(name="masks at the end 1/2", flags={**half, **at_once, **magnitude, "cuts": 0}, from_teacher=True),
        Arm(name="random start 1/2", flags={**half, **random}),
        Arm(name="distilbert", flags={**NO_LOSS, **shallow, **distilbert}),
        Arm(name="plain kd", flags={**NO_LOSS, **shallow, "loss.mlm": 1, "loss.kl": 1}),
        Arm(name="tinybert", flags={**NO_LOSS, **small, **tinybert}, speaks=False),
        Arm(name="minilm 1/2", flags={**NO_LOSS, **random, **half, **minilm}, speaks=False),
        Arm(name="minilmv2 1/2", flags={**NO_LOSS, **random, **half, **minilmv2}, speaks=False),
        # The teacher's first layers as they are: PKD distils on the task alone.
        Arm(name="pkd", flags={**whole, **first, "eval_interval": 0}, kind="start", speaks=False),
    ]


def ablations(plan: WidthPlan) -> list[Arm]:
    """The full method with one thing changed."""
    changes: dict[str, Flags] = {f"without {name[5:]}": {name: 0} for name in NO_LOSS}
    changes |= {f"criterion {name}": {"pruning.criterion": name} for name in ("taylor", "platon")}
    changes |= {f"target reached at {end}": {"pruning.end": end} for end in (0.3, 0.5, 0.9)}
    changes |= {f"{cuts} cuts": {"cuts": cuts} for cuts in (0, 1, 4)}
    changes |= {"without moving average": {"pruning.beta": 0.0}}
    half = narrowed(plan, 0.5)
    return [Arm(name=name, flags={**half, **change}, kind="ablation") for name, change in changes.items()]
