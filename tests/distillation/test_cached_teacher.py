"""A cached teacher says what the teacher says, and runs it only for rows that nobody has kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_models import VARIANTS, shown, tiny_model
from torch import nn
from transformers import PreTrainedModel

from homodistil_ds.distillation.cached_teacher import CachedTeacher, vocabulary_head_of
from homodistil_ds.distillation.state_files import StateFiles
from homodistil_ds.models.families import plan_for
from homodistil_ds.models.forward import Activations, Teacher, headed
from homodistil_ds.models.pieces import outline, reader_of

POSITIONS = torch.tensor([[1, 4], [0, 9], [5, 6]])


class Counted(nn.Module):
    """A body that counts its calls."""

    def __init__(self, body: Teacher) -> None:
        super().__init__()
        self.body, self.calls = body, 0

    def forward(self, *shown: torch.Tensor, **told: Any) -> Activations:
        self.calls += 1
        return self.body(*shown, **told)


def taught(model: PreTrainedModel, samples: range) -> tuple[torch.Tensor, ...]:
    ids = torch.randint(5, 185, (100, 10), generator=torch.Generator().manual_seed(0))
    return *shown(model, ids[list(samples)], POSITIONS[: len(samples)]), torch.tensor(samples)


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_states_and_a_head_of_its_own_make_the_logits_of_every_family(variant: str, tmp_path: Path) -> None:
    """The head is read for an outline, as for a teacher that no rank holds; tied weights stay one."""
    model = tiny_model(variant)
    family = plan_for(model.config).family
    head = vocabulary_head_of(outline(model.config, family), family, reader_of(model))
    teacher = Counted(Teacher(model, family, {"logits"}))
    files = StateFiles(tmp_path, "key", (2, 32), torch.float32)
    cached = CachedTeacher(files, head, teacher, calls_per_file=1)
    *plain, samples = taught(model, range(3))
    logits = teacher.body(*plain, reads={"logits"}).logits
    for _ in range(2):
        assert torch.equal(cached(*plain, samples, reads={"logits"}).logits, logits)
    found = headed(cached, cached(*plain, samples, reads={"predicted"}))
    assert found.logits is None
    assert found.head is not None
    assert found.predicted is not None
    assert torch.equal(found.head(found.predicted), logits)
    assert teacher.calls == 1
    own = model.get_submodule(family.head[-1])
    assert len(list(head[-1].parameters())) == len(list(own.parameters()))


@torch.no_grad()
def test_a_body_runs_where_one_row_is_lacking_and_files_hold_several_calls(tmp_path: Path) -> None:
    model = tiny_model("bert")
    family = plan_for(model.config).family
    head = vocabulary_head_of(model, family, reader_of(model))
    body = Counted(Teacher(model, family, {"logits"}))
    files = StateFiles(tmp_path, "key", (2, 32), torch.float32)
    cached = CachedTeacher(files, head, body, calls_per_file=2)

    def ask(samples: range) -> None:
        cached(*taught(model, samples), reads={"logits"})

    ask(range(2))
    ask(range(2))  # a step that is done again
    assert (body.calls, len(files.names())) == (1, 0)
    ask(range(1, 4))
    assert (body.calls, len(files.names()), files.held(0, 9)) == (2, 1, 4)
    ask(range(4, 7))
    cached.keep()
    assert (body.calls, len(files.names()), files.held(0, 9)) == (3, 2, 7)
    reader = CachedTeacher(files, head, None, 1)
    *plain, samples = taught(model, range(3, 6))
    alone = reader.states(plain, samples)
    assert torch.equal(alone, files.read(np.arange(3, 6)))
