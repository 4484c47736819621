"""A model on a task: mixing in its embeddings agrees with transformers' own models, and heads are what a task needs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from family_models import MASKED, SIZES, VARIANTS, save_teacher, tiny_config, tokenizer_for
from tiny_run import WORDS
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from homodistil_ds.errors import HomodistilError
from homodistil_ds.models.families import FAMILIES
from homodistil_ds.models.forward import Read
from homodistil_ds.models.fused import put_together
from homodistil_ds.models.tasks import knows_a_task, load_classifier, task_forward

CLASSES, ROWS, LENGTH, PAD = 3, 5, 12, 0
WITH_TYPES = [name for name in MASKED if "type" in FAMILIES[VARIANTS[name][0]].fields]
Text = tuple[torch.Tensor, torch.Tensor]
NAMES = [f"class{number}" for number in range(CLASSES)]


def classifier(variant: str, classes: int = CLASSES) -> PreTrainedModel:
    """transformers' own, with weights large enough to matter."""
    torch.manual_seed(0)
    config = tiny_config(variant)
    config.num_labels = classes
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def text(model: PreTrainedModel, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids, mask and types of pairs of texts of unequal length; the first row is full."""
    pad = model.config.pad_token_id or PAD
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, SIZES["vocab"], (ROWS, LENGTH), generator=generator)
    lengths = torch.randint(4, LENGTH, (ROWS,), generator=generator)
    lengths[0] = LENGTH
    places = torch.arange(LENGTH)
    mask = (places < lengths[:, None]).long()
    types = ((places >= lengths[:, None] // 2) & mask.bool()).long()
    return ids.where(mask.bool(), torch.tensor(pad)), mask, types


def family(variant: str) -> object:
    return FAMILIES[VARIANTS[variant][0]]


def logits(model: PreTrainedModel, variant: str, *shown: torch.Tensor | None) -> torch.Tensor:
    with torch.no_grad():
        found = task_forward(model, family(variant), *shown, reads={"logits"})  # type: ignore[arg-type]
    assert found.logits is not None
    assert found.hidden == ()
    return found.logits


def plainly(
    model: PreTrainedModel, variant: str, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor | None
) -> torch.Tensor:
    shown = {"token_type_ids": types} if types is not None and variant in WITH_TYPES else {}
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, **shown).logits


@pytest.mark.parametrize("variant", MASKED)
@pytest.mark.parametrize("pairs", [False, True])
def test_without_mixing_it_is_the_plain_model(variant: str, pairs: bool) -> None:
    model = classifier(variant)
    ids, mask, types = text(model, 1)
    shown = types if pairs else None
    found = logits(model, variant, ids, mask, shown)
    assert found.shape == (ROWS, CLASSES)
    assert torch.equal(found, plainly(model, variant, ids, mask, shown))
    if pairs and variant in WITH_TYPES:
        assert not torch.allclose(found, logits(model, variant, ids, mask, None), atol=1e-4), "types matter"


@pytest.mark.parametrize("variant", MASKED)
@pytest.mark.parametrize("pairs", [False, True])
def test_a_row_that_is_wholly_one_text_is_that_text(variant: str, pairs: bool) -> None:
    """Each with its own padding: the other text shows nowhere."""
    model = classifier(variant)
    ids, mask, types = text(model, 1)
    other_ids, other_mask, other_types = text(model, 2)
    first, second = (types, other_types) if pairs else (None, None)
    for share, own_mask, expected in (
        (torch.ones(ROWS), mask, plainly(model, variant, ids, mask, first)),
        (torch.zeros(ROWS), other_mask, plainly(model, variant, other_ids, other_mask, second)),
    ):
        found = logits(model, variant, ids, own_mask, first, other_ids, second, share)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", MASKED)
@pytest.mark.parametrize("pairs", [False, True])
def test_a_mixture_is_transformers_own_model_on_embeddings_mixed_by_hand(variant: str, pairs: bool) -> None:
    model = classifier(variant)
    (ids, mask, types), (other_ids, other_mask, other_types) = text(model, 1), text(model, 2)
    union = mask | other_mask
    share = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0])
    words = model.get_input_embeddings().weight
    tables = [parameter for name, parameter in model.named_parameters() if "token_type_embeddings" in name]
    mixed = torch.zeros(ROWS, LENGTH, words.shape[1])
    with torch.no_grad():
        for row in range(ROWS):
            part = float(share[row])
            for place in range(LENGTH):
                ends = []
                for (text_ids, text_types), weight in (((ids, types), part), ((other_ids, other_types), 1 - part)):
                    state = words[text_ids[row, place]].clone()
                    if pairs and tables:  # transformers adds type 0 to given embeddings
                        state += tables[0][text_types[row, place]] - tables[0][0]
                    ends.append(weight * state)
                mixed[row, place] = ends[0] + ends[1]
        expected = model(inputs_embeds=mixed, attention_mask=union).logits
    first, second = (types, other_types) if pairs else (None, None)
    found = logits(model, variant, ids, union, first, other_ids, second, share)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    half = logits(model, variant, ids, union, first, other_ids, second, torch.full((ROWS,), 0.5))
    swapped = logits(model, variant, other_ids, union, second, ids, first, torch.full((ROWS,), 0.5))
    torch.testing.assert_close(half, swapped, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", MASKED)
def test_longer_padding_changes_no_row(variant: str) -> None:
    model = classifier(variant)
    (ids, mask, types), (other_ids, other_mask, other_types) = text(model, 1), text(model, 2)
    shown = (ids, mask | other_mask, types, other_ids, other_types)
    pad = model.config.pad_token_id or PAD
    wider = [
        torch.nn.functional.pad(part, (0, 3), value=pad if part is ids or part is other_ids else 0) for part in shown
    ]
    share = torch.rand(ROWS, generator=torch.Generator().manual_seed(0))
    expected = logits(model, variant, *shown, share)
    torch.testing.assert_close(logits(model, variant, *wider, share), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", MASKED)
def test_gradients_reach_the_words_of_both_texts(variant: str) -> None:
    model = classifier(variant)
    (ids, mask, types), (other_ids, other_mask, other_types) = text(model, 1), text(model, 2)
    share = torch.full((ROWS,), 0.5)
    found = task_forward(
        model,
        family(variant),  # type: ignore[arg-type]
        *(ids, mask | other_mask, types, other_ids, other_types, share),
        reads={"logits"},
    )
    assert found.logits is not None
    (found.logits**2).sum().backward()
    gradient = model.get_input_embeddings().weight.grad
    assert gradient is not None
    pad = model.config.pad_token_id
    seen = {int(word) for word in torch.cat([ids.flatten(), other_ids.flatten()])} - {pad}
    assert all(gradient[word].abs().sum() > 0 for word in seen)


def test_the_states_of_all_layers_are_handed_on_if_they_are_read() -> None:
    model = classifier("bert")
    ids, mask, _ = text(model, 1)
    reads: set[Read] = {"logits", "hidden"}
    found = task_forward(model, FAMILIES["bert"], ids, mask, reads=reads)
    assert len(found.hidden) == model.config.num_hidden_layers
    expected = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
    assert torch.equal(found.hidden[-1], expected)


def saved(variant: str, classes: int, folder: Path) -> str:
    """A model that was trained for a task, with a tokenizer of its vocabulary."""
    tokenizer = tokenizer_for(variant, WORDS)
    config = tiny_config(variant, SIZES | {"vocab": len(tokenizer)})
    config.num_labels = classes
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("variant", MASKED)
def test_a_trained_head_is_kept_and_its_classes_get_their_names(variant: str, tmp_path: Path) -> None:
    source = saved(variant, CLASSES, tmp_path)
    assert knows_a_task(source)
    model, _ = load_classifier(source, NAMES)
    expected = AutoModelForSequenceClassification.from_pretrained(source).state_dict()
    model = put_together(model)
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    model.save_pretrained(tmp_path / "again")
    config = AutoConfig.from_pretrained(tmp_path / "again")
    assert config.id2label == dict(enumerate(NAMES))
    assert config.label2id == {name: number for number, name in enumerate(NAMES)}


def test_class_names_in_capitals_are_the_same_classes_and_others_are_not(tmp_path: Path) -> None:
    source = saved("bert", 2, tmp_path)
    config = AutoConfig.from_pretrained(source)
    for own, fits in ((["NEGATIVE", "POSITIVE"], True), (["POSITIVE", "NEGATIVE"], False), (["bad", "good"], False)):
        config.id2label, config.label2id = dict(enumerate(own)), {name: number for number, name in enumerate(own)}
        config.save_pretrained(tmp_path)
        if fits:
            assert load_classifier(source, ["negative", "positive"])[0].config.id2label == {
                0: "negative",
                1: "positive",
            }
        else:
            with pytest.raises(HomodistilError, match=f"{own[0]}, {own[1]} are not negative, positive"):
                load_classifier(source, ["negative", "positive"])


@pytest.mark.parametrize(("trained", "classes"), [(2, NAMES), (3, ()), (1, NAMES)])
def test_a_head_for_another_number_of_classes_is_refused(trained: int, classes: list[str], tmp_path: Path) -> None:
    with pytest.raises(HomodistilError, match=f"trained for {trained} classes, this task has {len(classes) or 1}") as e:
        load_classifier(saved("bert", trained, tmp_path), classes)
    assert e.value.error_id == "DATA-CLASSES"


@pytest.mark.parametrize("variant", MASKED)
@pytest.mark.parametrize("classes", [NAMES, []])
def test_a_language_model_gets_a_head_that_the_seed_decides(variant: str, classes: list[str], tmp_path: Path) -> None:
    source = str(save_teacher(variant, WORDS, tmp_path))
    assert not knows_a_task(source)
    heads = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model, _ = load_classifier(source, classes)
        heads.append({name: weight for name, weight in model.named_parameters() if name.startswith("classifier")})
        assert model.config.num_labels == (len(classes) or 1)
        assert model.config.problem_type == ("single_label_classification" if classes else "regression")
    assert heads[0]
    matrices = [name for name, weight in heads[0].items() if weight.ndim > 1]
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
    assert not any(torch.equal(heads[0][name], heads[2][name]) for name in matrices)
    body = AutoModelForSequenceClassification.from_pretrained(source).base_model.state_dict()
    for name, tensor in put_together(model).base_model.state_dict().items():
        assert name.startswith("pooler") or torch.equal(tensor, body[name])


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    for ask in (knows_a_task, lambda source: load_classifier(source, NAMES)):
        with pytest.raises(HomodistilError, match="nowhere"):
            ask(str(tmp_path / "nowhere"))
