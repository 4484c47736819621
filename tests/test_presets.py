"""Presets are runs that can start: legal shapes, true descriptions, a JSON form."""

import re
from pathlib import Path

import pytest
from transformers import BertConfig

from homodistil_ds.config import load_run_config
from homodistil_ds.distillation.objective import Objective
from homodistil_ds.models.families import plan_for, target_widths
from homodistil_ds.models.width import Widths, count
from homodistil_ds.presets import PRESETS

BASE = plan_for(BertConfig())
HOMOBERT = ["homobert_base", "homobert_small", "homobert_xsmall", "homobert_tiny"]


def widths(name: str) -> Widths:
    student = PRESETS[name]().student
    return target_widths(BASE, student.hidden_size, student.intermediate_size, student.num_attention_heads)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_goes_through_json_unchanged_and_is_described(name: str, tmp_path: Path) -> None:
    config = PRESETS[name]()
    (tmp_path / "run.json").write_text(config.to_json(), encoding="utf-8")
    assert load_run_config(tmp_path / "run.json") == config
    assert PRESETS[name].__name__ == name
    assert PRESETS[name].__doc__


def test_no_two_presets_write_to_the_same_folder() -> None:
    folders = [function().output_dir for function in PRESETS.values()]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("name", HOMOBERT)
def test_a_homobert_preset_has_the_shape_and_the_size_that_its_description_states(name: str) -> None:
    stated = re.search(r"to (\d+) / (\d+), (\d+) heads of (\d+): ([\d.]+) M", PRESETS[name].__doc__ or "")
    assert stated is not None
    own = widths(name)
    assert [own.hidden, own.ffn, own.heads, own.head_size] == [int(number) for number in stated.groups()[:4]]
    assert round(count(BASE, own).total / 1e6, 1) == float(stated[5])


def test_the_homobert_presets_are_the_four_published_ones_in_falling_size() -> None:
    sizes = [count(BASE, widths(name)).total for name in HOMOBERT]
    assert sizes == sorted(sizes, reverse=True)
    for name in HOMOBERT:
        config = PRESETS[name]()
        assert (config.steps, config.global_batch_size, config.sequence_length) == (28_000, 4096, 128)
        assert config.learning_rate == (3e-4 if name == "homobert_base" else 6e-4)
        assert config.optimizer.eps == 1e-6


def test_correcting_a_teacher_computes_the_masked_language_model_loss_alone() -> None:
    config = PRESETS["correct_teacher"]()
    assert config.method == "pretrain"
    assert list(Objective(config.loss, with_teacher=False).weights) == ["mlm"]
