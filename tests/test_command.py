"""How a family is asked for on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import BertConfig, LlamaConfig

from homodistil_ds.command import parse, to_the_end, unnamed_run
from homodistil_ds.config import LossConfig
from homodistil_ds.errors import HomodistilError
from homodistil_ds.presets import PRESETS


@pytest.mark.parametrize(
    "given",
    [
        ["--family", "0.5,0.25"],
        ["--family", "0.5", "0.25"],
        ["--family=0.5,0.25"],
        ["--family", "0.75,0.1", "--family", "0.5,0.25"],
    ],
)
def test_a_family_sets_the_sizes_in_place_of_the_presets(given: list[str]) -> None:
    config, _ = parse(["--preset", "demo", *given, "--steps", "100"], first=True)
    assert config.family == (0.5, 0.25)
    assert (config.student.hidden_size, config.student.num_attention_heads, config.steps) == (None, None, 100)
    assert parse(["--preset", "demo"], first=True)[0].student.hidden_size == 128


def test_sizes_that_are_given_beside_a_family_stay() -> None:
    config, _ = parse(["--family", "0.5,0.25", "--student.hidden_size", "128"], first=True)
    assert config.student.hidden_size == 128


def test_a_decoder_without_a_preset_is_taught_by_logits_alone(tmp_path: Path) -> None:
    LlamaConfig(num_hidden_layers=2).save_pretrained(tmp_path / "llama")
    BertConfig().save_pretrained(tmp_path / "bert")

    def losses(*given: str) -> LossConfig:
        return parse([*given, "--steps", "100"], first=True)[0].loss

    assert losses("--teacher", str(tmp_path / "llama")) == PRESETS["logit"]().loss
    assert losses(f"--teacher={tmp_path / 'llama' / 'config.json'}") == PRESETS["logit"]().loss
    assert losses("--teacher", str(tmp_path / "llama"), "--loss.hidden", "1").hidden == 1
    own = ["--teacher", str(tmp_path / "llama")]
    for others in (["--teacher", str(tmp_path / "bert")], [], ["--preset", "demo", *own]):
        assert losses(*others) == PRESETS["demo"]().loss
    assert unnamed_run(["--method", "pretrain", *own]) == unnamed_run(["--help", *own]) == PRESETS["demo"]()
    assert unnamed_run([*own, "--teacher"]) == PRESETS["demo"](), "what is wrong is told with all other flags"
    with pytest.raises(HomodistilError, match="no such folder"):
        losses("--teacher", str(tmp_path / "none"))


def test_a_teacher_cache_is_a_fact_of_the_machine_and_of_distillation_alone() -> None:
    config, machine = parse(["--teacher_cache", "caches/mine"], first=True)
    assert (machine.teacher_cache, hasattr(config, "teacher_cache")) == ("caches/mine", False)
    with pytest.raises(HomodistilError, match="--method pretrain") as raised:
        parse(["--teacher-cache", "caches/mine", "--preset", "correct_teacher"], first=True)
    assert raised.value.error_id == "CFG-CACHE"


def test_an_error_that_nobody_foresaw_shows_its_traceback_and_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> None:
        raise ZeroDivisionError("nobody thought of it")

    assert to_the_end(run, debug=False) == 1
    assert "ZeroDivisionError: nobody thought of it" in capsys.readouterr().err
