"""What a user can get wrong: one block that says what and what next, the family's exit code, and no run left behind."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import save_teacher
from learnable_tasks import write_tasks
from tiny_run import WORDS
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertModel,
    BertTokenizerFast,
)

from homodistil_ds.command import main, parse
from homodistil_ds.errors import EXIT_CODES
from homodistil_ds.task_config import TaskLossConfig
from integration.processes import LAUNCHER_VARIABLES, TRAIN, free_port, run, torchrun

RUN_FILES = ("run_config.json", "checkpoints", "student", "teacher", "logs", "tb")


@dataclass(frozen=True)
class Inputs:
    """A whole set of good inputs, of which each case spoils one."""

    teacher: Path
    corpus: Path
    folder: Path

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    def flags(self, *changed: str, machine: dict[str, Any] | str | None = None) -> list[str]:
        """Later flags win over earlier ones; `machine` is the content of the DeepSpeed file."""
        if not isinstance(machine, str):
            machine = json.dumps({"train_micro_batch_size_per_gpu": 8} | (machine or {}))
        (self.folder / "machine.json").write_text(machine, encoding="utf-8")
        return [
            *("--deepspeed_config", str(self.folder / "machine.json"), "--output_dir", str(self.run_dir)),
            *("--teacher", str(self.teacher), "--corpus", str(self.corpus), "--sequence_length", "32"),
            *("--global_batch_size", "16", "--steps", "2", "--held_out_sequences", "16"),
            *("--student.hidden_size", "16", "--student.intermediate_size", "24", "--student.num_attention_heads", "2"),
            *changed,
        ]

    def task_flags(self, preset: str, *changed: str) -> list[str]:
        """A run on a made-up task; neither model nor teacher has learnt it."""
        data = self.folder / "glue"
        if not data.exists():
            write_tasks(data)
        flags = self.flags("--preset", preset, "--model", str(self.teacher))
        pairs = zip(flags[::2], flags[1::2], strict=True)
        kept = [part for name, value in pairs if not name.startswith("--student") for part in (name, value)]
        return [
            *kept,
            *("--task.name", "SST-2", "--task.data", str(data), *changed),
        ]

    def classifier(self, classes: int, positions: int = 64, hidden: int = 32) -> str:
        """A model that was trained for a task, with the tokenizer of the others."""
        folder = self.folder / "classifier"
        changed = {"num_labels": classes, "max_position_embeddings": positions, "hidden_size": hidden}
        config = AutoConfig.from_pretrained(self.teacher, **changed)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(self.teacher).save_pretrained(folder)
        return str(folder)

    def copied_teacher(self) -> Path:
        return Path(shutil.copytree(self.teacher, self.folder / "teacher"))


@pytest.fixture
def inputs(tiny_teacher: Path, tiny_corpus: Path, tmp_path: Path) -> Inputs:
    return Inputs(teacher=tiny_teacher, corpus=tiny_corpus, folder=tmp_path)


def misspelt_deepspeed_key(inputs: Inputs) -> tuple[list[str], list[str]]:
    return inputs.flags(machine={"zero_optimisation": {"stage": 2}}), ["zero_optimisation", "'zero_optimization'?"]


def refused_deepspeed_key(inputs: Inputs) -> tuple[list[str], list[str]]:
    return inputs.flags(machine={"optimizer": {"type": "Adam"}}), ["'optimizer'", "--learning_rate"]


def broken_deepspeed_json(inputs: Inputs) -> tuple[list[str], list[str]]:
    return inputs.flags(machine='{"bf16": {"enabled": true,}}'), ["machine.json", "line 1"]


def misspelt_key_in_saved_configuration(inputs: Inputs) -> tuple[list[str], list[str]]:
    path = inputs.folder / "saved.json"
    path.write_text(json.dumps({"pruning": {"intervall": 5}}), encoding="utf-8")
    return [*inputs.flags(), "--config", str(path)], ["saved.json", "intervall", "'interval'?"]


def unknown_preset(inputs: Inputs) -> tuple[list[str], list[str]]:
    return inputs.flags("--preset", "homobert_smal"), ["homobert_smal", "'homobert_small'?"]


def no_steps(inputs: Inputs) -> tuple[list[str], list[str]]:
    return inputs.flags("--steps", "0"), ["steps", "1 or more"]


def heads_that_do_not_divide(inputs: Inputs) -> tuple[list[str], list[str]]:
    changed = ("--student.hidden_size", "17", "--student.num_attention_heads", "3")
    return inputs.flags(*changed), ["hidden_size 17", "Nearest", "18 with 3"]


def without_sizes(inputs: Inputs, *changed: str) -> list[str]:
    flags = inputs.flags()
    return [*flags[: flags.index("--student.hidden_size")], *changed]


def too_large_for_any_machine_here(inputs: Inputs) -> tuple[list[str], list[str]]:
    """Told from the configuration alone: there is no weight file."""
    sizes = {"hidden_size": 16384, "intermediate_size": 65536, "num_hidden_layers": 400, "num_attention_heads": 64}
    folder = inputs.folder / "large"
    AutoConfig.from_pretrained(inputs.teacher, **sizes).save_pretrained(folder)
    return inputs.flags("--teacher", str(folder)), ["GiB per rank", "tools/plan.py"]


def too_many_tokens_at_a_time(inputs: Inputs) -> tuple[list[str], list[str]]:
    """The weights would fit."""
    machine = {"train_micro_batch_size_per_gpu": 2**20}
    return inputs.flags("--global_batch_size", str(2**20), machine=machine), ["GiB per rank", "activations"]


def family_that_grows(inputs: Inputs) -> tuple[list[str], list[str]]:
    return without_sizes(inputs, "--family", "0.25,0.5"), ["--family 0.25,0.5 does not fall", "largest first"]


def family_outside_0_and_1(inputs: Inputs) -> tuple[list[str], list[str]]:
    return without_sizes(inputs, "--family", "1.5,0.5"), ["--family 1.5,0.5", "at most 1"]


def family_that_no_shape_meets(inputs: Inputs) -> tuple[list[str], list[str]]:
    return without_sizes(inputs, "--family", "0.5,0.0001"), ["0.0001", "The nearest is"]


def family_that_ends_above_the_target(inputs: Inputs) -> tuple[list[str], list[str]]:
    return inputs.flags("--family", "0.8,0.6"), ["ends at 0.6", "above the target", "Leave the --student sizes out"]


def family_in_too_few_steps(inputs: Inputs) -> tuple[list[str], list[str]]:
    return without_sizes(inputs, "--family", "0.75,0.5,0.25"), ["too few events", "--steps"]


def trade_off_that_is_no_number(inputs: Inputs) -> tuple[list[str], list[str]]:
    return without_sizes(inputs, "--family", "0.5,0.25", "--trade_off", "nan"), ["trade_off", "nan"]


def assistant_outside_the_family(inputs: Inputs) -> tuple[list[str], list[str]]:
    changed = ("--family", "0.5,0.25", "--assistant", "0.25")
    return without_sizes(inputs, *changed), ["assistant", "0.25", "none, auto, capacity, 0.5"]


def assistant_without_a_family(inputs: Inputs) -> tuple[list[str], list[str]]:
    return inputs.flags("--assistant", "auto"), ["assistant", "--family"]


def wider_than_the_teacher(inputs: Inputs) -> tuple[list[str], list[str]]:
    return inputs.flags("--student.intermediate_size", "65"), ["intermediate_size 65", "1 to 64"]


def longer_than_the_teacher(inputs: Inputs) -> tuple[list[str], list[str]]:
    return inputs.flags("--sequence_length", "65"), ["sequence_length 65", "64"]


def batch_that_does_not_divide(inputs: Inputs) -> tuple[list[str], list[str]]:
    return inputs.flags("--global_batch_size", "20"), ["global_batch_size 20", "16, 24"]


def two_global_batches(inputs: Inputs) -> tuple[list[str], list[str]]:
    return inputs.flags(machine={"train_batch_size": 32}), ["train_batch_size 32", "--global_batch_size 16"]


def missing_teacher(inputs: Inputs) -> tuple[list[str], list[str]]:
    missing = inputs.folder / "nowhere"
    return inputs.flags("--teacher", str(missing)), [str(missing)]


def longer_than_a_teacher_whose_positions_start_later(inputs: Inputs) -> tuple[list[str], list[str]]:
    folder = save_teacher("roberta", WORDS, inputs.folder / "roberta")  # its positions start at row 2 of 64
    return inputs.flags("--teacher", str(folder), "--sequence_length", "63"), ["sequence_length 63", "Use 62 or less"]


def decoder_of_a_longer_context(inputs: Inputs) -> tuple[list[str], list[str]]:
    folder = save_teacher("llama", WORDS, inputs.folder / "llama")
    return inputs.flags("--teacher", str(folder), "--sequence_length", "65"), ["knows 64 positions", "Use 64 or less"]


def teacher_without_head(inputs: Inputs) -> tuple[list[str], list[str]]:
    folder = inputs.copied_teacher()
    BertModel.from_pretrained(folder).save_pretrained(folder)
    return inputs.flags("--teacher", str(folder)), ["no masked-language-model head", "--preset correct_teacher"]


def tokenizer_of_another_teacher(inputs: Inputs) -> tuple[list[str], list[str]]:
    folder = inputs.copied_teacher()
    words = AutoTokenizer.from_pretrained(folder).get_vocab()
    more = words | {f"more{place}": len(words) + place for place in range(50)}
    BertTokenizerFast(vocab=more).save_pretrained(folder)
    return inputs.flags("--teacher", str(folder)), [f"{len(more)} pieces", str(len(words))]


def truncated_weights(inputs: Inputs) -> tuple[list[str], list[str]]:
    folder = inputs.copied_teacher()
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)
    return inputs.flags("--teacher", str(folder)), [str(path)]


def empty_corpus(inputs: Inputs) -> tuple[list[str], list[str]]:
    path = inputs.folder / "empty.txt"
    path.write_text("\n\n", encoding="utf-8")
    return inputs.flags("--corpus", str(path)), ["no full row"]


def corpus_in_latin1(inputs: Inputs) -> tuple[list[str], list[str]]:
    path = inputs.folder / "latin1.txt"
    path.write_bytes(b"ban bas bat\n" * 100 + "b\xe4n".encode("latin-1"))
    return inputs.flags("--corpus", str(path)), [str(path), "0xe4", "1201"]


def used_output_dir(inputs: Inputs) -> tuple[list[str], list[str]]:
    (inputs.run_dir / "student").mkdir(parents=True)
    return inputs.flags(), [str(inputs.run_dir), "student"]


def unknown_task(inputs: Inputs) -> tuple[list[str], list[str]]:
    return inputs.task_flags("finetune", "--task.name", "SST-3"), ["SST-3", "'SST-2'?"]


def missing_task_data(inputs: Inputs) -> tuple[list[str], list[str]]:
    missing = str(inputs.folder / "nowhere")
    return inputs.task_flags("mixkd", "--task.data", missing), [missing, "no such folder"]


def task_without_its_folder(inputs: Inputs) -> tuple[list[str], list[str]]:
    return inputs.task_flags("finetune", "--task.name", "CoLA"), ["CoLA", "found none"]


def model_of_another_task(inputs: Inputs) -> tuple[list[str], list[str]]:
    return inputs.task_flags("finetune", "--model", inputs.classifier(3)), ["3 classes", "this task has 2"]


def teacher_of_another_task(inputs: Inputs) -> tuple[list[str], list[str]]:
    return inputs.task_flags("mixkd", "--teacher", inputs.classifier(3)), ["3 classes", "this task has 2"]


def teacher_of_another_vocabulary(inputs: Inputs) -> tuple[list[str], list[str]]:
    """It has not learnt the task, which takes hours."""
    folder = save_teacher("bert", WORDS[::-1], inputs.folder / "reversed")
    return inputs.task_flags("mixkd", "--teacher", str(folder)), [str(folder), "different vocabularies"]


def task_longer_than_the_model(inputs: Inputs) -> tuple[list[str], list[str]]:
    return inputs.task_flags("finetune", "--sequence_length", "65"), ["sequence_length 65", "64"]


def task_longer_than_the_teacher(inputs: Inputs) -> tuple[list[str], list[str]]:
    return inputs.task_flags("mixkd", "--teacher", inputs.classifier(2, 24)), ["sequence_length 32", "Use 24 or less"]


def patience_with_a_teacher_of_another_width(inputs: Inputs) -> tuple[list[str], list[str]]:
    flags = inputs.task_flags("pkd", "--teacher", inputs.classifier(2, hidden=16))
    return flags, ["states of one width", "has 32", "16", "--task_loss.patience 0", "first layers"]


def teacher_of_a_finetune(inputs: Inputs) -> tuple[list[str], list[str]]:
    return inputs.task_flags("finetune", "--task_loss.kd", "1"), ["method finetune", "--method mixkd"]


def nothing_to_go_on_with(inputs: Inputs) -> tuple[list[str], list[str]]:
    """Said before a teacher learns."""
    return inputs.task_flags("mixkd", "--resume", "auto"), [f"no checkpoint in {inputs.run_dir / 'checkpoints'}"]


def used_output_dir_of_a_task(inputs: Inputs) -> tuple[list[str], list[str]]:
    (inputs.run_dir / "student").mkdir(parents=True)
    return inputs.task_flags("mixkd"), [str(inputs.run_dir), "student"]


def teacher_that_learnt_another_task(inputs: Inputs) -> tuple[list[str], list[str]]:
    """An earlier start has left it; it would be taken for this run's own."""
    flags, folder = inputs.task_flags("mixkd"), inputs.run_dir / "teacher"
    config, _ = parse(flags, first=True)
    own = replace(config, method="finetune", model=config.teacher, output_dir=str(folder), task_loss=TaskLossConfig())
    own = replace(own, task=replace(own.task, predict=False))
    folder.mkdir(parents=True)
    (folder / "report.json").write_text("{}", encoding="utf-8")
    other = replace(own, task=replace(own.task, name="CoLA"))
    (folder / "run_config.json").write_text(other.to_json(), encoding="utf-8")
    return flags, [f"{folder} belongs to another run: --task.name was CoLA, is SST-2\n"]


def teacher_that_knows_no_task(inputs: Inputs) -> tuple[list[str], list[str]]:
    return inputs.task_flags("minidisc"), ["has not learnt a task", "--preset finetune"]


def nested_students_without_scales(inputs: Inputs) -> tuple[list[str], list[str]]:
    return inputs.task_flags("mixkd", "--method", "minidisc"), ["no family", "--family 0.5,0.1"]


def nested_scale_that_no_shape_meets(inputs: Inputs) -> tuple[list[str], list[str]]:
    teacher = inputs.classifier(2)
    changed = ("--teacher", teacher, "--model", teacher, "--family", "0.5,0.0001")
    return inputs.task_flags("minidisc", *changed), ["0.0001", "The nearest is"]


def sizes_beside_nested_students(inputs: Inputs) -> tuple[list[str], list[str]]:
    return inputs.task_flags("minidisc", "--student.hidden_size", "16"), ["--family", "--student"]


def nested_students_that_learn_nothing_of_the_teacher(inputs: Inputs) -> tuple[list[str], list[str]]:
    none = ("--task_loss.task", "1", "--task_loss.kd", "0", "--task_loss.states", "0")
    return inputs.task_flags("minidisc", *none), ["--task_loss.kd or .states"]


def model_beside_nested_students(inputs: Inputs) -> tuple[list[str], list[str]]:
    return inputs.task_flags("minidisc", "--teacher", inputs.classifier(2)), ["--model", "Leave --model out"]


def assistant_whose_students_nothing_would_judge(inputs: Inputs) -> tuple[list[str], list[str]]:
    """The trial is judged by training examples; what follows is not."""
    teacher = inputs.classifier(2)
    flags = inputs.task_flags("minidisc", "--teacher", teacher, "--model", teacher, "--task.held_out", "0.2")
    (inputs.folder / "glue" / "SST-2" / "dev.tsv").unlink()
    return flags, ["dev"]


Case = Callable[[Inputs], tuple[list[str], list[str]]]
CASES: dict[Case, str] = {
    misspelt_deepspeed_key: "CFG-UNKNOWN-KEY",
    refused_deepspeed_key: "CFG-REFUSED-KEY",
    broken_deepspeed_json: "CFG-JSON",
    misspelt_key_in_saved_configuration: "CFG-UNKNOWN-KEY",
    unknown_preset: "CFG-PRESET",
    no_steps: "CFG-RANGE",
    heads_that_do_not_divide: "CFG-WIDTH",
    wider_than_the_teacher: "CFG-WIDTH",
    too_large_for_any_machine_here: "CFG-MEMORY",
    too_many_tokens_at_a_time: "CFG-MEMORY",
    family_that_grows: "CFG-SCALE",
    family_outside_0_and_1: "CFG-SCALE",
    family_that_no_shape_meets: "CFG-SCALE",
    family_that_ends_above_the_target: "CFG-SCALE",
    family_in_too_few_steps: "CFG-SCHEDULE",
    trade_off_that_is_no_number: "CFG-RANGE",
    assistant_outside_the_family: "CFG-RANGE",
    assistant_without_a_family: "CFG-RANGE",
    longer_than_the_teacher: "CFG-LENGTH",
    longer_than_a_teacher_whose_positions_start_later: "CFG-LENGTH",
    decoder_of_a_longer_context: "CFG-LENGTH",
    batch_that_does_not_divide: "CFG-BATCH",
    two_global_batches: "CFG-BATCH",
    missing_teacher: "DATA-TEACHER",
    teacher_without_head: "DATA-NO-HEAD",
    tokenizer_of_another_teacher: "DATA-TOKENIZER",
    truncated_weights: "DATA-CORRUPT",
    empty_corpus: "DATA-EMPTY",
    corpus_in_latin1: "DATA-NOT-UTF8",
    used_output_dir: "CFG-USED-DIR",
    unknown_task: "CFG-TASK",
    teacher_that_knows_no_task: "DATA-NO-TASK",
    nested_students_without_scales: "CFG-RANGE",
    nested_scale_that_no_shape_meets: "CFG-SCALE",
    sizes_beside_nested_students: "CFG-RANGE",
    nested_students_that_learn_nothing_of_the_teacher: "CFG-RANGE",
    model_beside_nested_students: "CFG-FLAG",
    assistant_whose_students_nothing_would_judge: "DATA-GLUE-SPLIT",
    missing_task_data: "DATA-GLUE",
    task_without_its_folder: "DATA-GLUE",
    model_of_another_task: "DATA-CLASSES",
    teacher_of_another_task: "DATA-CLASSES",
    teacher_of_another_vocabulary: "DATA-VOCABULARY",
    task_longer_than_the_model: "CFG-LENGTH",
    task_longer_than_the_teacher: "CFG-LENGTH",
    patience_with_a_teacher_of_another_width: "CFG-LOSS",
    teacher_of_a_finetune: "CFG-RANGE",
    nothing_to_go_on_with: "CKPT-NONE",
    used_output_dir_of_a_task: "CFG-USED-DIR",
    teacher_that_learnt_another_task: "CFG-RESUME",
}


def check(error_id: str, code: int, err: str, said: list[str]) -> None:
    assert code == EXIT_CODES[error_id.split("-", 1)[0]], err
    blocks = err[err.index("homodistil_ds: error[") :].splitlines() if "homodistil_ds: error[" in err else []
    assert blocks, err
    assert blocks[0].startswith(f"homodistil_ds: error[{error_id}] ")
    assert len(blocks) >= 2
    assert all(line.startswith("  ") for line in blocks[1:]), "one block, and nothing after it"
    assert err.count("homodistil_ds: error[") == 1
    assert "Traceback" not in err
    for part in said:
        assert part in err


def left_behind(run_dir: Path) -> list[str]:
    return [name for name in RUN_FILES if (run_dir / name).exists()]


@pytest.mark.parametrize(("case", "error_id"), CASES.items(), ids=lambda value: getattr(value, "__name__", value))
def test_bad_input_stops_with_one_block(
    case: Case,
    error_id: str,
    inputs: Inputs,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    # Set here, so that what the command would set for itself does not outlive the test.
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "127.0.0.1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    arguments, said = case(inputs)
    before = left_behind(inputs.run_dir)
    capfd.readouterr()
    code = main(arguments)
    err = capfd.readouterr().err
    check(error_id, code, err, said)
    assert err.startswith("homodistil_ds: error["), "nothing before the block"
    assert left_behind(inputs.run_dir) == before
    assert not torch.distributed.is_initialized()


def test_misspelt_flag_names_the_near_one(inputs: Inputs) -> None:
    """In seconds, before anything heavy is imported."""
    finished = run([sys.executable, str(TRAIN), *inputs.flags("--learning_rte", "1e-3")])
    assert finished.code == 2, finished.shown
    assert "--learning_rte" in finished.err
    assert "--learning-rate" in finished.err.replace("_", "-").replace("learning-rte", "")
    assert "Traceback" not in finished.err
    assert not inputs.run_dir.exists()


def test_unrelated_package_named_apex_is_recognised(inputs: Inputs) -> None:
    (inputs.folder / "packages" / "apex").mkdir(parents=True)
    (inputs.folder / "packages" / "apex" / "__init__.py").write_text("", encoding="utf-8")
    arguments = inputs.flags("--optimizer.name", "apex_fused_adam")
    finished = run([sys.executable, str(TRAIN), *arguments], extra={"PYTHONPATH": str(inputs.folder / "packages")})
    check("ENV-APEX", finished.code, finished.err, ["not NVIDIA's", "pip uninstall apex"])
    assert left_behind(inputs.run_dir) == []


def test_a_port_that_is_taken_is_named(inputs: Inputs) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        meeting = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        finished = run([sys.executable, str(TRAIN), *inputs.flags()], extra=meeting)
    check("ENV-MEET", finished.code, finished.err, [f"127.0.0.1:{port}", "MASTER_PORT"])


def test_a_rank_that_fails_alone_before_it_has_a_log_speaks_for_itself(inputs: Inputs) -> None:
    """As on a node that lacks a file: rank 0 of another machine cannot know."""
    alone = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    finished = run([sys.executable, str(TRAIN), *inputs.flags(machine="{")], extra=alone)
    check("CFG-JSON", finished.code, finished.err, ["machine.json"])


def test_two_ranks_print_the_block_once(inputs: Inputs) -> None:
    """The file is read by rank 0 alone; the other rank leaves with the same code instead of waiting for it."""
    arguments, said = corpus_in_latin1(inputs)
    finished = torchrun(2, TRAIN, *arguments)
    assert finished.code != 0, finished.shown
    assert finished.err.count("homodistil_ds: error[") == 1, finished.shown
    assert "homodistil_ds: error[DATA-NOT-UTF8]" in finished.err
    for part in said:
        assert part in finished.err
    own = finished.err.split("torch/distributed/elastic")[
        0
    ]  # torchrun reports a failed rank with a traceback of its own
    assert "Traceback" not in own, finished.shown
    assert f"exitcode  : {EXIT_CODES['DATA']}" in finished.err
    assert left_behind(inputs.run_dir) == []
