"""Weight files read a run at a time give what transformers loads, and what does not fit the model is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from family_models import tiny_model, tokenizer_for
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM

from homodistil_ds.errors import HomodistilError
from homodistil_ds.models.fused import put_together
from homodistil_ds.models.loading import load_outline, load_teacher
from homodistil_ds.models.pieces import Read, reader_of, unfilled
from homodistil_ds.runtime import placement


def saved_model(variant: str, folder: Path) -> Path:
    model = put_together(tiny_model(variant))
    model.save_pretrained(folder)
    tokenizer_for(variant, [f"w{number}" for number in range(80)]).save_pretrained(folder)
    return folder


def set_in_config(folder: Path, **values: int) -> None:
    facts = json.loads((folder / "config.json").read_text(encoding="utf-8")) | values
    (folder / "config.json").write_text(json.dumps(facts), encoding="utf-8")


@pytest.mark.parametrize("load", [load_teacher, load_outline])
def test_a_head_that_is_tied_and_another_in_the_files_is_refused(load: Callable[[str], object], tmp_path: Path) -> None:
    folder = saved_model("llama", tmp_path)
    set_in_config(folder, tie_word_embeddings=True)
    with pytest.raises(HomodistilError, match=r"lm_head\.weight"):
        load(str(folder))


@pytest.mark.parametrize("load", [load_teacher, load_outline])
def test_a_head_of_its_own_that_no_file_has_is_refused(load: Callable[[str], object], tmp_path: Path) -> None:
    folder = saved_model("t5", tmp_path)
    set_in_config(folder, tie_word_embeddings=False, scale_decoder_outputs=False)
    with pytest.raises(HomodistilError, match=r"no file has a lm_head\.weight"):
        load(str(folder))


@pytest.fixture
def folder(tiny_teacher: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_teacher, tmp_path / "copy"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def as_it_is(folder: Path) -> None:
    pass


def in_shards(folder: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="30KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1


def in_half_precision(folder: Path) -> None:
    rewrite(folder, {name: tensor.half() for name, tensor in weights(folder).items()})


def with_old_names(folder: Path) -> None:
    new = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    tensors = weights(folder)
    rewrite(folder, {next((n.replace(a, b) for a, b in new.items() if a in n), n): t for n, t in tensors.items()})


def with_parts_that_are_not_used(folder: Path) -> None:
    tensors = weights(folder)
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
    rewrite(folder, tensors | {"bert.pooler.dense.weight": torch.ones(32, 32)})


def without_head(folder: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(folder)
    model.bert.save_pretrained(folder)
    rewrite(folder, {f"bert.{name}": tensor for name, tensor in weights(folder).items()})


def test_what_transformers_calls_idle_is_passed_over(tmp_path: Path) -> None:
    """DeBERTa v3 has relative positions alone; older files also hold a table of absolute ones."""
    folder = saved_model("deberta-v2-relative", tmp_path)
    rewrite(folder, weights(folder) | {"deberta.embeddings.position_embeddings.weight": torch.ones(64, 32)})
    for load in (load_teacher, load_outline):
        load(str(folder))


@pytest.mark.parametrize(
    "change",
    [as_it_is, in_shards, in_half_precision, with_old_names, with_parts_that_are_not_used, without_head],
)
def test_a_filled_model_is_the_loaded_one(folder: Path, change: Callable[[Path], None]) -> None:
    change(folder)
    expected, _ = load_teacher(str(folder), head_may_be_missing=True)
    outline, words, read = load_outline(str(folder), head_may_be_missing=True)
    assert {parameter.device.type for parameter in outline.parameters()} == {"meta"}
    model = unfilled(outline)
    placement.fill(model, read)
    assert len(words) == model.config.vocab_size
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_runs_cross_rows_and_end_anywhere(folder: Path) -> None:
    model, _ = load_teacher(str(folder))
    _, _, read = load_outline(str(folder))
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    flat = model.get_parameter(name).detach().flatten()
    readers: tuple[Read, ...] = (read, reader_of(model))
    for start, count in ((0, 1), (31, 2), (5, 100), (2047, 1), (0, 2048)):
        assert all(torch.equal(one(name, start, count), flat[start : start + count]) for one in readers)


def one_layer_more(folder: Path) -> None:
    set_in_config(folder, num_hidden_layers=3)


def one_layer_less(folder: Path) -> None:
    set_in_config(folder, num_hidden_layers=1)


def other_width(folder: Path) -> None:
    set_in_config(folder, intermediate_size=48)


def biases_without_a_place(folder: Path) -> None:
    """Files with biases that a configuration without them has no place for."""
    shutil.rmtree(folder)
    set_in_config(saved_model("llama-tied", folder), attention_bias=False, mlp_bias=False)


def a_shard_missing(folder: Path) -> None:
    in_shards(folder)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def header_cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("damage", "error_id", "named"),
    [
        (one_layer_more, "DATA-TEACHER", "bert.encoder.layer.2."),
        (one_layer_less, "DATA-TEACHER", "bert.encoder.layer.1."),
        (other_width, "DATA-TEACHER", "intermediate.dense.weight is [64, 32]"),
        (biases_without_a_place, "DATA-TEACHER", "no place for 14 tensors"),
        (a_shard_missing, "DATA-TEACHER", "model-00002"),
        (truncated, "DATA-CORRUPT", "model.safetensors"),
        (header_cut, "DATA-CORRUPT", "model.safetensors"),
        (without_head, "DATA-NO-HEAD", "cls.predictions"),
    ],
)
@pytest.mark.parametrize("load", [load_teacher, load_outline])
def test_files_that_do_not_fit_are_refused_by_name(
    load: Callable[[str], object], folder: Path, damage: Callable[[Path], None], error_id: str, named: str
) -> None:
    damage(folder)
    with pytest.raises(HomodistilError) as caught:
        load(str(folder))
    assert caught.value.error_id == error_id
    assert named in caught.value.what
    assert str(folder) in caught.value.what
