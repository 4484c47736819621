"""What layers are planned to keep for their backward pass is what they keep, for every family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from family_models import SIZES, VARIANTS, longer, tiny_model
from torch.autograd.graph import saved_tensors_hooks

from homodistil_ds.models.families import plan_for
from homodistil_ds.models.forward import Read, Student
from homodistil_ds.models.loading import as_student
from homodistil_ds.planning.activations import Shape, kept_bytes

ROWS, LENGTH = 3, 48
BESIDE = 0.05
READS: list[frozenset[Read]] = [frozenset({"hidden"}), frozenset({"hidden", "attention"})]


def really_kept(student: Student, shown: list[torch.Tensor]) -> int:
    held = {tensor.untyped_storage()._cdata for tensor in (*student.parameters(), *student.buffers(), *shown)}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in held:
            kept[storage._cdata] = storage
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        student(*shown)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("reads", READS, ids=["fused attention", "maps"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_family_keeps_what_is_planned(variant: str, reads: frozenset[Read], tmp_path: Path) -> None:
    model = tiny_model(variant, SIZES | {"layers": 4, "hidden": 64, "ffn": 128, "embedding": 64})
    model.config.save_pretrained(tmp_path)
    plan = plan_for(model.config)
    own = as_student(model, plan).requires_grad_(True)
    student = Student(own, plan.family, reads, teacher_hidden=plan.full.hidden).to(torch.bfloat16)
    ids = torch.randint(5, 80, (ROWS, LENGTH))
    shown = [ids, torch.zeros(ROWS, 1, dtype=torch.int64)] + ([longer(ids)] if plan.encoder_layers else [])
    shape = Shape(
        teacher=str(tmp_path),
        layers=plan.layers,
        widths=plan.full,
        reads=reads,
        ids=LENGTH,
        decoder_ids=LENGTH + 3 if plan.encoder_layers else 0,
        dtype=torch.bfloat16,
    )
    assert kept_bytes(plan, shape, ROWS) == pytest.approx(really_kept(student, shown), rel=BESIDE)
