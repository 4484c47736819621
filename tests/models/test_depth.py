"""A shallower student has exactly the teacher's layers that it should."""

from pathlib import Path

import pytest
import torch
from family_models import VARIANTS, tiny_model

from homodistil_ds.errors import HomodistilError
from homodistil_ds.models.depth import from_layers, layer_map, outline_of, shallower
from homodistil_ds.models.families import DENOISING, FAMILIES, plan_for
from homodistil_ds.models.fused import put_together
from homodistil_ds.models.pieces import reader_of, unfilled
from homodistil_ds.models.width import count
from homodistil_ds.runtime.placement import fill


@pytest.mark.parametrize(
    ("teacher", "student", "which", "layers"),
    [
        (12, 6, "uniform", (1, 3, 5, 7, 9, 11)),
        (12, 4, "uniform", (2, 5, 8, 11)),
        (6, 4, "uniform", (0, 2, 3, 5)),
        (6, 1, "uniform", (5,)),
        (6, 3, "first", (0, 1, 2)),
        (12, 6, "spread", (0, 2, 4, 7, 9, 11)),
        (6, 6, "spread", (0, 1, 2, 3, 4, 5)),
        (6, 2, "spread", (0, 5)),
        (6, 1, "spread", (0,)),
        (6, None, "uniform", (0, 1, 2, 3, 4, 5)),
    ],
)
def test_layers(teacher: int, student: int | None, which: str, layers: tuple[int, ...]) -> None:
    assert layer_map(teacher, student, which) == layers


@pytest.mark.parametrize("student", [0, 7])
def test_a_depth_that_cannot_be_is_refused(student: int) -> None:
    with pytest.raises(HomodistilError, match="num_hidden_layers"):
        layer_map(6, student, "uniform")


@pytest.mark.parametrize("variant", [name for name in VARIANTS if FAMILIES[VARIANTS[name][0]] not in DENOISING])
@torch.no_grad()
def test_a_shallower_student_computes_what_the_teacher_without_the_other_layers_computes(
    variant: str, tmp_path: Path
) -> None:
    teacher = tiny_model(variant)
    plan = plan_for(teacher.config)
    layers = (1,) if plan.family.layers_alike else (0,)
    student = unfilled(outline_of(teacher, plan, layers))
    fill(student, from_layers(reader_of(teacher), plan, layers))
    assert sum(p.numel() for p in student.parameters()) == count(shallower(plan, layers), plan.full).with_head
    put_together(student).save_pretrained(tmp_path)
    ids = torch.randint(5, 185, (2, 9), generator=torch.Generator().manual_seed(0))
    base = teacher.base_model
    stack = next((getattr(base, name) for name in ("encoder", "decoder", "transformer") if hasattr(base, name)), base)
    name = next(name for name in ("layer", "layers", "h") if hasattr(stack, name))
    setattr(stack, name, torch.nn.ModuleList([getattr(stack, name)[layers[0]]]))
    for index, layer in enumerate(getattr(stack, name)):  # caches of decoders count layers
        for attention in ("self_attn", "attn"):
            if hasattr(layer, attention):
                getattr(layer, attention).layer_idx = index
    teacher.config.num_hidden_layers = 1
    torch.testing.assert_close(student(ids).logits, teacher(ids).logits)


def test_layers_that_are_not_alike_take_no_others_place() -> None:
    plan = plan_for(tiny_model("modernbert").config)
    assert shallower(plan, (0,)).layers == 1
    with pytest.raises(HomodistilError, match="not alike"):
        shallower(plan, (1,))


def test_an_encoder_and_a_decoder_keep_their_layers() -> None:
    plan = plan_for(tiny_model("t5").config)
    assert shallower(plan, (0, 1, 2, 3, 4)) == plan
    with pytest.raises(HomodistilError, match="keep theirs"):
        shallower(plan, (0, 1, 2, 3))
