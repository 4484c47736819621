"""RunConfig: its JSON form is the run, and every wrong key, type or range is named with a way out."""

import json
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from homodistil_ds.config import LossConfig, OptimizerConfig, PruningConfig, RunConfig, StudentConfig, load_run_config
from homodistil_ds.errors import HomodistilError

CHANGED = RunConfig(
    teacher="some/teacher",
    corpus=("a.txt", "b.jsonl.gz"),
    output_dir="runs/ä",
    steps=7,
    seed=-3,
    learning_rate=2.5e-5,
    student=StudentConfig(hidden_size=24, init="random", dtype="bfloat16"),
    pruning=PruningConfig(start=0.25, end=0.25, interval=3, criterion="platon", beta=0.5),
    loss=LossConfig(kl=0.0, temperature=2.0),
    optimizer=OptimizerConfig(name="adamw", warmup=0.0),
)


def load(folder: Path, text: str) -> RunConfig:
    path = folder / "run_config.json"
    path.write_text(text, encoding="utf-8")
    return load_run_config(path)


def refused(folder: Path, values: Any) -> HomodistilError:
    with pytest.raises(HomodistilError) as caught:
        load(folder, json.dumps(values))
    assert caught.value.exit_code == 2
    return caught.value


@pytest.mark.parametrize("config", [RunConfig(), CHANGED], ids=["default", "changed"])
def test_json_round_trip_is_the_same_run(config: RunConfig, tmp_path: Path) -> None:
    assert load(tmp_path, config.to_json()) == config


def test_what_a_file_leaves_out_keeps_its_default_and_whole_numbers_serve_as_floats(tmp_path: Path) -> None:
    config = load(tmp_path, '{"steps": 5, "learning_rate": 1, "student": {"hidden_size": null}}')
    assert config == RunConfig(steps=5, learning_rate=1.0)
    assert type(config.learning_rate) is float


@pytest.mark.parametrize(
    ("values", "key", "nearest"),
    [
        ({"step": 5}, "'step'", "steps"),
        ({"student": {"hiden_size": 24}}, "'hiden_size'", "hidden_size"),
        ({"pruning": {"criterium": "taylor"}}, "'criterium'", "criterion"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(
    tmp_path: Path, values: Any, key: str, nearest: str
) -> None:
    error = refused(tmp_path, values)
    assert error.error_id == "CFG-UNKNOWN-KEY"
    assert key in error.what
    assert f"Did you mean '{nearest}'?" in error.remedy


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ([], "run_config.json"),
        ({"steps": "300"}, "steps"),
        ({"steps": 3.0}, "steps"),
        ({"steps": True}, "steps"),
        ({"steps": None}, "steps"),
        ({"learning_rate": "1e-3"}, "learning_rate"),
        ({"teacher": 1}, "teacher"),
        ({"corpus": "a.txt"}, "corpus"),
        ({"corpus": ["a.txt", 1]}, "corpus"),
        ({"student": 3}, "student"),
        ({"student": {"hidden_size": 1.5}}, "student: hidden_size"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(tmp_path: Path, values: Any, key: str) -> None:
    error = refused(tmp_path, values)
    assert error.error_id == "CFG-TYPE"
    assert key in error.what


def test_a_value_outside_a_choice_is_refused_with_the_choices(tmp_path: Path) -> None:
    error = refused(tmp_path, {"pruning": {"criterion": "sensitivty"}})
    assert error.error_id == "CFG-VALUE"
    assert "Did you mean 'sensitivity'?" in error.remedy
    assert "platon" in error.remedy


@pytest.mark.parametrize(
    "values",
    [
        {"steps": 0},
        {"global_batch_size": 0},
        {"sequence_length": 7},
        {"log_interval": 0},
        {"mask_probability": 0.0},
        {"mask_probability": 1.0},
        {"pruning": {"interval": 0}},
        {"pruning": {"start": 0.5, "end": 0.4}},
        {"pruning": {"start": -0.1}},
        {"pruning": {"end": 1.1}},
    ],
)
def test_a_value_out_of_range_is_refused_by_name_from_a_file_and_from_code(tmp_path: Path, values: Any) -> None:
    error = refused(tmp_path, values)
    assert error.error_id == "CFG-RANGE"
    assert next(iter(values)) in error.what
    assert error.remedy


def test_the_edges_of_the_ranges_are_accepted() -> None:
    RunConfig(steps=1, global_batch_size=1, sequence_length=8, log_interval=1, mask_probability=0.01)
    for start, end in ((0.0, 0.0), (0.0, 1.0), (1.0, 1.0)):
        RunConfig(pruning=PruningConfig(start=start, end=end, interval=1))


def test_a_missing_file_and_broken_json_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(HomodistilError) as missing:
        load_run_config(tmp_path / "none.json")
    assert missing.value.error_id == "CFG-NO-FILE"
    with pytest.raises(HomodistilError, match=r"line 1") as broken:
        load(tmp_path, '{"steps": 5,}')
    assert broken.value.error_id == "CFG-JSON"


def test_a_run_cannot_be_changed_after_it_was_checked() -> None:
    with pytest.raises(FrozenInstanceError):
        RunConfig().steps = 0  # type: ignore[misc]
