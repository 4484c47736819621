"""Whole runs of the command, each made once and shared by the tests that look at it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from integration.processes import SCRIPTS, TRAIN, Finished, free_port, run, torchrun


@pytest.fixture(scope="session")
def fp32_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ZeRO 2 in float32; micro batches of 8, so that one rank accumulates twice and two ranks do not."""
    path = tmp_path_factory.mktemp("ds_configs") / "zero2_fp32.json"
    values = {"train_micro_batch_size_per_gpu": 8, "zero_optimization": {"stage": 2}, "gradient_clipping": 1.0}
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def flags(tiny_teacher: Path, tiny_corpus: Path, fp32_config: Path) -> list[str]:
    """A run of 60 steps to half the widths, without its --output_dir."""
    return [
        *("--deepspeed_config", str(fp32_config), "--teacher", str(tiny_teacher), "--corpus", str(tiny_corpus)),
        *("--steps", "60", "--global_batch_size", "16", "--sequence_length", "32", "--held_out_sequences", "33"),
        *("--student.hidden_size", "16", "--student.intermediate_size", "24", "--student.num_attention_heads", "2"),
        *("--pruning.interval", "2", "--eval_interval", "30"),
    ]


@pytest.fixture(scope="session")
def one_rank(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of a run under plain python."""
    run_dir = tmp_path_factory.mktemp("runs") / "one_rank"
    return succeeded(run([sys.executable, str(TRAIN), *flags, "--output_dir", str(run_dir)]), run_dir)


@pytest.fixture(scope="session")
def two_ranks(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of the same run on two ranks under torchrun."""
    run_dir = tmp_path_factory.mktemp("runs") / "two_ranks"
    return succeeded(torchrun(2, TRAIN, *flags, "--output_dir", str(run_dir)), run_dir)


@pytest.fixture(scope="session")
def repeated(two_ranks: Path, fp32_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of that run's saved configuration, again on two ranks, under deepspeed."""
    run_dir = tmp_path_factory.mktemp("runs") / "repeated"
    launcher = [str(SCRIPTS / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port()), str(TRAIN)]
    arguments = ["--deepspeed_config", str(fp32_config), "--config", str(two_ranks / "run_config.json")]
    return succeeded(run([*launcher, *arguments, "--output_dir", str(run_dir)]), run_dir)


def succeeded(finished: Finished, run_dir: Path) -> Path:
    """A launcher's exit code alone proves little: a report must be there too. The console is kept beside the run."""
    run_dir.with_suffix(".out").write_text(finished.out, encoding="utf-8")
    assert finished.code == 0, finished.shown
    assert (run_dir / "report.json").exists(), finished.shown
    assert "Traceback" not in finished.err, finished.shown
    return run_dir
