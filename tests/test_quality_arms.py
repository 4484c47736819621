"""The students of the comparison are legal runs of presets, and those that are compared are of one size."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from quality_arms import FULL_METHOD, THESIS, Arm, ablations, arms
from quality_cells import as_flags
from transformers import BertConfig

from homodistil_ds.command import parse
from homodistil_ds.config import RunConfig
from homodistil_ds.distillation.objective import check_losses
from homodistil_ds.models.depth import layer_map, shallower
from homodistil_ds.models.families import plan_for, target_widths
from homodistil_ds.models.width import WidthPlan, count
from homodistil_ds.presets import PRESETS

SIZES = {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
MINILM = plan_for(BertConfig(vocab_size=8192, **SIZES))
PLANS = {"minilm": MINILM, "base": plan_for(BertConfig())}
SHAPE = ("student.hidden_size", "student.intermediate_size", "student.num_attention_heads", "student.num_hidden_layers")


def config_of(arm: Arm) -> RunConfig:
    return parse(["--preset", arm.preset, *as_flags(arm.flags)], first=True)[0]


def parameters(plan: WidthPlan, name: str) -> int:
    student = config_of(next(arm for arm in arms(plan) if arm.name == name)).student
    widths = target_widths(plan, student.hidden_size, student.intermediate_size, student.num_attention_heads)
    layers = layer_map(plan.layers, student.num_hidden_layers, student.layers)
    return count(shallower(plan, layers), widths).with_head


def flat(values: dict, prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_every_student_is_a_run_that_can_start(plan: WidthPlan) -> None:
    names = [arm.name for arm in (*arms(plan), *ablations(plan))]
    assert len(set(names)) == len({arm.folder for arm in (*arms(plan), *ablations(plan))}) == len(names)
    assert {*THESIS, FULL_METHOD} <= set(names)
    for arm in (*arms(plan), *ablations(plan)):
        config = config_of(arm)
        student = config.student
        widths = target_widths(plan, student.hidden_size, student.intermediate_size, student.num_attention_heads)
        layer_map(plan.layers, student.num_hidden_layers, student.layers)
        check_losses(config.loss, widths, plan.full, student.init == "teacher" and widths != plan.full, plan.family)
        assert arm.speaks == (arm.kind != "start" and config.loss.mlm + config.loss.kl > 0)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_each_shallower_baseline_has_a_homodistil_student_of_its_size(plan: WidthPlan) -> None:
    for name, partner in (
        ("distilbert", "homodistil at distilbert's size"),
        ("plain kd", "homodistil at distilbert's size"),
        ("first layers", "homodistil at distilbert's size"),
        ("tinybert 1/2", FULL_METHOD),
        ("minilmv2 1/2", FULL_METHOD),
    ):
        assert parameters(plan, name) == pytest.approx(parameters(plan, partner), rel=0.005), name


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_method_is_its_preset_but_for_the_shape(plan: WidthPlan) -> None:
    for arm in arms(plan):
        own, its = flat(asdict(config_of(arm))), flat(asdict(PRESETS[arm.preset]()))
        changed = {name for name in own if own[name] != its[name]}
        assert changed <= {*SHAPE, "loss.relation_heads", "student.layers", "steps", "eval_interval"}, arm.name


def test_an_ablation_changes_one_thing_of_the_full_method() -> None:
    full = flat(asdict(config_of(next(arm for arm in arms(MINILM) if arm.name == FULL_METHOD))))
    for arm in ablations(MINILM):
        own = flat(asdict(config_of(arm)))
        changed = {name for name in own if own[name] != full[name]} - {"output_dir"}
        at_once = {"pruning.start", "pruning.end"}
        assert len(changed) == 1 or (arm.name == "one-shot" and changed == at_once), (arm.name, changed)
