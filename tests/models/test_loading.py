"""Loading a teacher: each way its folder can be wrong has its own id and names the file; a twin is an exact copy."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import MASKED, tiny_model, tokenizer_for
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BertTokenizerFast,
    BloomConfig,
    ElectraForPreTraining,
)

from homodistil_ds.errors import HomodistilError
from homodistil_ds.models.families import plan_for
from homodistil_ds.models.fused import put_together
from homodistil_ds.models.loading import check_tokenizer, empty_model, load_teacher, save_folder, stored_dtype, twin


@pytest.fixture
def folder(tiny_teacher: Path, tmp_path: Path) -> Path:
    """A copy of the tiny teacher to be damaged."""
    return Path(shutil.copytree(tiny_teacher, tmp_path / "copy"))


def tokenizer(pieces: int) -> BertTokenizerFast:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(pieces - 5))]
    return BertTokenizerFast(vocab={word: place for place, word in enumerate(words)})


def nothing_there(folder: Path) -> None:
    shutil.rmtree(folder)


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def other_family(folder: Path) -> None:
    BloomConfig().save_pretrained(folder)


def own_code(folder: Path) -> None:
    """A type that transformers does not know, and the file that would teach it."""
    values = {"model_type": "no_such_type", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "configuration_own.py").write_text("raise SystemExit('this code was run')\n")


def own_code_for_a_known_type(folder: Path) -> None:
    change_config(folder, auto_map={"AutoModelForMaskedLM": "modeling_own.Own"})


def change_config(folder: Path, **changed: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changed}))


def unknown_type(folder: Path) -> None:
    change_config(folder, model_type="no_such_type")


def one_layer_more(folder: Path) -> None:
    change_config(folder, num_hidden_layers=3)


def sizes_of_no_model(folder: Path) -> None:
    change_config(folder, num_attention_heads=5)


def sizes_of_no_number(folder: Path) -> None:
    change_config(folder, hidden_size="32")


def no_layers(folder: Path) -> None:
    change_config(folder, num_hidden_layers=0)


def cross_attention(folder: Path) -> None:
    change_config(folder, add_cross_attention=True)


def no_head(folder: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.bert.save_pretrained(folder)


def too_many_pieces(folder: Path) -> None:
    tokenizer(186).save_pretrained(folder)


def too_few_pieces(folder: Path) -> None:
    tokenizer(50).save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "error_id", "named"),
    [
        (nothing_there, "DATA-TEACHER", "no such folder"),
        (no_config, "DATA-TEACHER", "no config.json"),
        (truncated, "DATA-CORRUPT", "model.safetensors"),
        (pickle_only, "DATA-PICKLE", ".bin"),
        (other_family, "CFG-FAMILY", "bloom"),
        (unknown_type, "CFG-FAMILY", "no_such_type"),
        (own_code, "DATA-CODE", "code of its own"),
        (own_code_for_a_known_type, "DATA-CODE", "code of its own"),
        (sizes_of_no_model, "DATA-TEACHER", "32 with num_attention_heads 5"),
        (sizes_of_no_number, "DATA-TEACHER", "hidden_size"),
        (no_layers, "DATA-TEACHER", "num_hidden_layers 0"),
        (cross_attention, "CFG-FAMILY", "cross-attention"),
        (one_layer_more, "DATA-TEACHER", "bert.encoder.layer.2."),
        (no_head, "DATA-NO-HEAD", "cls.predictions"),
        (too_many_pieces, "DATA-TOKENIZER", "186 pieces, the model's vocabulary 185"),
        (too_few_pieces, "DATA-TOKENIZER", "50 pieces, the model's vocabulary 185"),
    ],
)
def test_a_damaged_folder_is_refused_with_its_own_id(
    folder: Path, damage: Callable[[Path], None], error_id: str, named: str
) -> None:
    damage(folder)
    with pytest.raises(HomodistilError) as caught:
        load_teacher(str(folder))
    assert caught.value.error_id == error_id
    assert named in caught.value.what
    assert str(folder) in caught.value.what or error_id == "CFG-FAMILY"


def test_an_undamaged_folder_loads_in_eval_mode_and_float32(folder: Path) -> None:
    model, words = load_teacher(str(folder))
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert len(words) == model.config.vocab_size


@pytest.fixture(params=MASKED)
def headless(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder of an encoder without its vocabulary head."""
    model = tiny_model(request.param)
    put_together(model).base_model.save_pretrained(tmp_path)
    tokenizer(model.config.vocab_size).save_pretrained(tmp_path)
    return tmp_path


def test_every_family_without_its_head_is_refused(headless: Path) -> None:
    with pytest.raises(HomodistilError) as caught:
        load_teacher(str(headless))
    assert caught.value.error_id == "DATA-NO-HEAD"


def test_a_missing_head_starts_as_the_identity_if_it_may_be_missing(headless: Path) -> None:
    model, _ = load_teacher(str(headless), head_may_be_missing=True)
    family = plan_for(model.config).family
    states = torch.randn(3, model.config.hidden_size)
    assert family.head_transform is not None
    transform = model.get_submodule(family.head_transform)
    assert torch.equal(transform(states), states[:, : transform.out_features])
    assert not model.get_output_embeddings().bias.any()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_discriminator_has_no_head_to_predict_words_with(tmp_path: Path) -> None:
    ElectraForPreTraining(tiny_model("electra").config).save_pretrained(tmp_path)
    tokenizer(185).save_pretrained(tmp_path)
    with pytest.raises(HomodistilError) as caught:
        load_teacher(str(tmp_path))
    assert caught.value.error_id == "DATA-NO-HEAD"


@pytest.mark.parametrize("variant", ["llama", "llama-tied"])
def test_a_causal_model_loads_unless_a_masked_one_is_asked_for(variant: str, tmp_path: Path) -> None:
    teacher = tiny_model(variant)
    teacher.save_pretrained(tmp_path)
    tokenizer(185).save_pretrained(tmp_path)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(load_teacher(str(tmp_path))[0](ids).logits, teacher(ids).logits)
    with pytest.raises(HomodistilError, match="causal") as caught:
        load_teacher(str(tmp_path), only="masked")
    assert caught.value.error_id == "CFG-FAMILY"
    assert "bert, roberta, distilbert, electra" in caught.value.remedy


def test_the_vocabulary_may_be_padded_by_less_than_128_rows() -> None:
    words = tokenizer(100)
    for size in (100, 101, 227):
        check_tokenizer(words, size, "teacher")
    for size in (99, 228):
        with pytest.raises(HomodistilError):
            check_tokenizer(words, size, "teacher")


def test_a_twin_in_training_mode_has_the_teachers_logits_to_the_bit_and_shares_no_memory(tiny_teacher: Path) -> None:
    teacher, _ = load_teacher(str(tiny_teacher))
    student = twin(teacher, plan_for(teacher.config))
    ids = torch.randint(0, teacher.config.vocab_size, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = teacher(ids).logits
        assert student.training
        assert torch.equal(student(ids).logits, before)
        for parameter in student.parameters():
            parameter.zero_()
        assert torch.equal(teacher(ids).logits, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_saved_folder_keeps_its_number_format_and_the_model_its_own(
    tiny_teacher: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    teacher, words = load_teacher(str(tiny_teacher))
    save_folder(teacher, words, tmp_path / "saved", dtype, pruning=None)
    assert stored_dtype(str(tmp_path / "saved"), "auto") is dtype
    assert stored_dtype(str(tmp_path / "saved"), "float32") is torch.float32
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "saved").dtype is dtype
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.float32}
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").get_vocab() == words.get_vocab()


def test_a_vocabulary_head_of_its_own_is_drawn_and_said_to_be_one(tmp_path: Path) -> None:
    """transformers ties the head of a new T5 1.1 and writes so, which its version 4 would believe."""
    teacher = tiny_model("t5-1.1")
    plan = plan_for(teacher.config)
    drawn = empty_model(teacher, plan, plan.full)
    head, embedding = drawn.get_output_embeddings().weight, drawn.get_input_embeddings().weight
    assert abs(torch.corrcoef(torch.stack([head.flatten(), embedding.flatten()]))[0, 1]) < 0.1
    save_folder(drawn, tokenizer_for("t5-1.1", ["ban"]), tmp_path, torch.float32, None)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is False
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight, head)
    assert again.config.scale_decoder_outputs is False
