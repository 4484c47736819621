"""The command as users start it: under every launcher, from a saved configuration, from a copied folder."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from integration.conftest import succeeded
from integration.processes import TRAIN, run

LAUNCHED = ["one_rank", "two_ranks", "repeated"]
LOAD = """
import json, sys, torch
from transformers import AutoModelForMaskedLM, AutoTokenizer
shapes = []
for folder in sys.argv[1:]:
    model, info = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    ids = AutoTokenizer.from_pretrained(folder)("ban bas [MASK]", return_tensors="pt")["input_ids"]
    assert torch.isfinite(model(ids).logits).all()
    config = model.config
    shapes.append([config.hidden_size, config.intermediate_size, config.num_attention_heads])
print(json.dumps(shapes))
"""


@pytest.mark.parametrize("launched", LAUNCHED)
def test_every_launcher_leaves_a_whole_run_directory(launched: str, request: pytest.FixtureRequest) -> None:
    """python, torchrun and deepspeed."""
    run_dir: Path = request.getfixturevalue(launched)
    for name in ("run_config.json", "report.md", "report.json", "student/config.json", "student/model.safetensors"):
        assert (run_dir / name).stat().st_size > 0, name
    for name in ("student/tokenizer.json", "student/pruning.json", "student/README.md"):
        assert (run_dir / name).stat().st_size > 0, name
    latest = (run_dir / "checkpoints" / "latest").read_text(encoding="utf-8")
    assert latest == "step-60"
    assert any((run_dir / "checkpoints" / latest).iterdir())
    assert len(list((run_dir / "tb").glob("events.*"))) == 1, "one rank writes curves"
    assert {path.stem for path in run_dir.rglob("*.png")} >= {"losses", "widths", "masks", "discrepancy"}
    config = json.loads((run_dir / "run_config.json").read_text(encoding="utf-8"))
    assert config["output_dir"] == str(run_dir)


def test_students_load_without_this_package(one_rank: Path, two_ranks: Path, repeated: Path) -> None:
    folders = [str(run_dir / "student") for run_dir in (one_rank, two_ranks, repeated)]
    finished = run([sys.executable, "-I", "-c", LOAD, *folders])
    assert finished.code == 0, finished.shown
    assert json.loads(finished.out) == [[16, 24, 2]] * 3


def test_saved_configuration_gives_the_same_run(two_ranks: Path, repeated: Path) -> None:
    first, second = (
        json.loads((run_dir / "run_config.json").read_text(encoding="utf-8")) for run_dir in (two_ranks, repeated)
    )
    assert first | {"output_dir": ""} == second | {"output_dir": ""}
    digests = [json.loads((run_dir / "report.json").read_text())["mask_digest"] for run_dir in (two_ranks, repeated)]
    assert digests[0] == digests[1]


def test_copied_folder_runs_uninstalled_with_its_own_default_configuration(
    tiny_teacher: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    """From another working directory, with relative paths of the user's."""
    root = TRAIN.parent.parent
    copied = tmp_path / "copied"
    skipped = shutil.ignore_patterns("assets", "__pycache__")
    shutil.copytree(root / "homodistil_ds", copied / "homodistil_ds", ignore=skipped)
    shutil.copytree(root / "ds_configs", copied / "ds_configs")
    with (copied / "homodistil_ds" / "__init__.py").open("a", encoding="utf-8") as package:
        package.write('\nprint("imported", __file__)\n')
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    arguments = ["--teacher", str(tiny_teacher), "--corpus", str(tiny_corpus), "--output_dir", "out", "--steps", "6"]
    arguments += ["--global_batch_size", "8", "--sequence_length", "32", "--held_out_sequences", "16"]
    arguments += ["--student.hidden_size", "16", "--student.intermediate_size", "24"]
    arguments += ["--student.num_attention_heads", "2", "--pruning.interval", "1"]
    finished = run([sys.executable, str(copied / "homodistil_ds" / "train.py"), *arguments], cwd=elsewhere)
    run_dir = succeeded(finished, elsewhere / "out")
    assert f"imported {copied / 'homodistil_ds' / '__init__.py'}" in finished.out
    report = json.loads((run_dir / "report.json").read_text(encoding="utf-8"))
    assert (report["zero_stage"], report["precision"]) == (2, "bf16")
    assert all(report[model]["tokens_per_second"] > 0 for model in ("teacher", "student"))


def test_mpirun_starts_two_ranks(flags: list[str], tmp_path: Path) -> None:
    """Through DeepSpeed's discovery, because mpi4py is installed; without it, see tests/runtime/test_launch.py."""
    run_dir = tmp_path / "run"
    mpirun = [str(Path(sys.executable).with_name("mpirun")), "--oversubscribe", "--allow-run-as-root"]
    launcher = [*mpirun, "-n", "2", sys.executable, str(TRAIN)]
    finished = run([*launcher, *flags, "--output_dir", str(run_dir)])
    assert json.loads((succeeded(finished, run_dir) / "report.json").read_text())["world_size"] == 2
