"""A run that reads the teacher's states from files is the run that computes them, and does not run the teacher."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from integration.processes import TRAIN, WORKERS, run, torchrun, work

STEPS, GLOBAL, HELD_OUT = 8, 8, 16
CALLS = (STEPS * GLOBAL + HELD_OUT) // 2  # micro batches of one rank that writes
Results = dict[str, dict[str, Any]]


def machine(stage: int = 2, **more: Any) -> dict[str, Any]:
    """Micro batches of 2, on one rank and on two."""
    zero = {"stage": stage} | ({"stage3_param_persistence_threshold": 0} if stage == 3 else {})
    return {"train_micro_batch_size_per_gpu": 2, "zero_optimization": zero, "gradient_clipping": 1.0} | more


BF16 = {"machine": machine(bf16={"enabled": True})}
AUTOCAST = {"machine": machine(torch_autocast={"enabled": True})}


@pytest.fixture(scope="module")
def values(tiny_teacher: Path, tiny_corpus: Path) -> dict[str, Any]:
    return {
        **{"teacher": str(tiny_teacher), "corpus": [str(tiny_corpus)], "steps": STEPS, "global_batch_size": GLOBAL},
        **{"sequence_length": 32, "held_out_sequences": HELD_OUT, "eval_interval": 4, "log_interval": 1},
        **{"save_interval": 1, "save_total_limit": STEPS, "cuts": 1, "learning_rate": 1e-3},
        **{"student": {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}},
        **{"pruning": {"interval": 1, "end": 0.7}, "loss": {"hidden": 0.0, "attention": 0.0, "embedding": 0.0}},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("teacher_cache")


@pytest.fixture(scope="module")
def one(values: dict[str, Any], folder: Path) -> Results:
    """One rank: runs without a cache, those that write one and those that read it."""

    def step(name: str, number: int) -> str:
        return str(folder / "one" / name / "checkpoints" / f"step-{number}")

    at = {name: str(folder / name) for name in ("cache", "bf16", "autocast", "later")}
    parted, longer = {"most_entries": 300}, {"config": {"steps": STEPS + 2}}
    cases: dict[str, dict[str, Any]] = {
        "plain": {},
        "written": {"cache": at["cache"], "file_bytes": 4000},
        "read": {"cache": at["cache"]},
        "plain in parts": parted,
        "read in parts": {"cache": at["cache"], **parted},
        "plain in bf16": BF16,
        "written in bf16": {**BF16, "cache": at["bf16"]},
        "read in bf16": {**BF16, "cache": at["bf16"]},
        "plain in autocast": AUTOCAST,
        "written in autocast": {**AUTOCAST, "cache": at["autocast"]},
        "read in autocast": {**AUTOCAST, "cache": at["autocast"]},
        "read on": {"cache": at["cache"], "resume": step("read", 3)},
        "read on without": {"resume": step("read", 3)},
        "written on": {"cache": at["later"], "resume": step("plain", 5)},
        "written to the end": {"cache": at["later"]},
        "in other batches": {"cache": at["cache"], "config": {"global_batch_size": 4, "steps": 16}},
        "plain and longer": longer,
        "longer": {"cache": at["cache"], **longer},
    }
    cases = {name: {"machine": machine()} | case for name, case in cases.items()}
    return work(1, "teacher_cache", folder / "one", config=values, cases=cases)


@pytest.mark.parametrize("kind", ["", " in bf16", " in autocast"])
def test_what_is_read_gives_the_same_bits(one: Results, kind: str) -> None:
    assert same(one[f"written{kind}"], one[f"plain{kind}"])
    assert same(one[f"read{kind}"], one[f"plain{kind}"])
    assert len(one[f"read{kind}"]["history"]) == STEPS + 3


def test_logits_may_be_made_in_parts(one: Results) -> None:
    """Products with a single row depend on where in memory a matrix begins, so not to the bit."""
    alike(one["read in parts"], one["plain in parts"], 1e-6)
    alike(one["read in parts"], one["read"], 1e-6)


def test_the_body_runs_once_for_every_row_and_never_for_a_reader(one: Results) -> None:
    assert one["plain"]["calls"] == (STEPS * GLOBAL + 3 * HELD_OUT) // 2
    for kind in ("", " in bf16", " in autocast"):
        assert one[f"written{kind}"]["calls"] == CALLS
    assert all(run["calls"] == 0 for name, run in one.items() if name.startswith("read") and "without" not in name)


def test_a_run_that_goes_on_may_read_or_not(one: Results) -> None:
    assert same(one["read on"], one["plain"])
    assert same(one["read on without"], one["plain"])
    assert one["read on without"]["calls"] > 0


def test_a_run_that_goes_on_writes_what_is_to_come_and_another_writes_the_rest(one: Results) -> None:
    assert same(one["written on"], one["plain"])
    assert one["written on"]["calls"] == (3 * GLOBAL + HELD_OUT) // 2
    assert same(one["written to the end"], one["plain"])
    assert one["written to the end"]["calls"] == 5 * GLOBAL // 2


def test_rows_are_found_whatever_step_they_fall_into(one: Results) -> None:
    assert one["in other batches"]["calls"] == 0
    assert same(one["longer"], one["plain and longer"])
    assert one["longer"]["calls"] == 2 * GLOBAL // 2


def test_storage_is_told_and_is_what_is_there(one: Results, folder: Path) -> None:
    """32 numbers in float32 at 4 of 32 positions; small files were asked for."""
    log, later = (
        (folder / "one" / name / "logs" / "rank0.log").read_text(encoding="utf-8") for name in ("written", "read")
    )
    rows = STEPS * GLOBAL + HELD_OUT
    assert f"16.0 bytes per token (4 of 32 positions x 32 in float32), {rows} sequences are lacking" in log
    files = list((folder / "cache").glob("states-*.safetensors"))
    assert sum(load_file(path)["states"].nbytes for path in files) == (rows + 2 * GLOBAL) * 4 * 32 * 4
    assert len(files) > STEPS
    assert "the teacher's body is not run" in later


@pytest.fixture(scope="module")
def two(one: Results, values: dict[str, Any], folder: Path) -> Results:
    """Two ranks: what one rank wrote is read at other stages, and a teacher in shards writes."""
    sharded = {"machine": machine(3), "placement": "zero3"}
    cases: dict[str, dict[str, Any]] = {
        "plain": {"machine": machine()},
        "read": {"machine": machine(), "cache": str(folder / "cache")},
        "plain in shards": sharded,
        "read in shards": {**sharded, "cache": str(folder / "cache")},
        "written in shards": {**sharded, "cache": str(folder / "sharded"), "file_bytes": 4000},
    }
    return work(2, "teacher_cache", folder / "two", config=values, cases=cases)


@pytest.mark.parametrize("kind", ["", " in shards"])
def test_other_ranks_and_stages_read_what_one_rank_wrote(two: Results, kind: str) -> None:
    alike(two[f"read{kind}"], two[f"plain{kind}"], 1e-6)
    assert two[f"read{kind}"]["calls"] == 0


def test_what_a_sharded_teacher_wrote_on_two_ranks_is_read_by_one(
    one: Results, two: Results, values: dict[str, Any], folder: Path
) -> None:
    alike(two["written in shards"], two["plain in shards"], 1e-6)
    case = {"machine": machine(), "cache": str(folder / "sharded")}
    read = work(1, "teacher_cache", folder / "back", config=values, cases={"read": case})["read"]
    alike(read, one["plain"], 1e-6)
    assert read["calls"] == 0


def test_a_killed_writer_leaves_whole_files_that_the_next_start_uses(
    values: dict[str, Any], folder: Path, one: Results
) -> None:
    """The last of two ranks dies in step 6, with two small files a step behind it."""
    cache = folder / "killed"
    case = {"machine": machine(), "cache": str(cache), "file_bytes": 4000, "dies_at": 6}
    (folder / "dies").mkdir()
    settings = {"config": values, "cases": {"run": case}, "out": str(folder / "dies")}
    (folder / "dies" / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    assert torchrun(2, WORKERS / "teacher_cache.py", str(folder / "dies" / "settings.json")).code != 0
    left = {path.name for path in cache.iterdir()}
    assert len(left) > 5
    cases = {name: {"machine": machine(), "cache": str(cache)} for name in ("again", "read")}
    found = work(1, "teacher_cache", folder / "after", config=values, cases=cases)
    assert found["again"]["calls"] == 3 * GLOBAL // 2  # of five steps and the held-out text all was there
    assert found["read"]["calls"] == 0
    assert left <= {path.name for path in cache.iterdir()}
    for again in found.values():
        alike(again, one["plain"], 1e-6)


def test_what_does_not_belong_together_is_refused(
    one: Results, values: dict[str, Any], folder: Path, tiny_teacher: Path, tiny_corpus: Path
) -> None:
    teacher, corpus = folder / "teacher", folder / "other.txt"
    shutil.copytree(tiny_teacher, teacher)
    weights = load_file(teacher / "model.safetensors")
    save_file(
        {name: weight + 0.01 for name, weight in weights.items()}, teacher / "model.safetensors", {"format": "pt"}
    )
    corpus.write_text(tiny_corpus.read_text(encoding="utf-8").replace("\n\n", "\n\nw1 w2 ", 1), encoding="utf-8")
    differing: dict[str, dict[str, Any]] = {
        "seed": {"seed": 1},
        "teacher": {"teacher": str(teacher)},
        "corpus": {"corpus": [str(corpus)]},
        "prediction": {"mask_probability": 0.3},
        "losses": {"loss": {"hidden": 1.0}},
        "nothing": {"loss": {"kl": 0.0, "hidden": 0.0, "attention": 0.0, "embedding": 0.0}},
    }
    cases: dict[str, Any] = {
        name: {"machine": machine(), "cache": str(folder / "cache"), "config": changed}
        for name, changed in differing.items()
    }
    cases["precision"] = {**BF16, "cache": str(folder / "cache")}
    before = sorted(path.name for path in (folder / "cache").iterdir())
    refused = work(1, "teacher_cache", folder / "refused", config=values, cases=cases)
    for name in ("seed", "teacher", "corpus", "prediction", "precision"):
        assert refused[name]["error"] == "CKPT-CACHE"
        parts = {"prediction": ["prediction", "shape"]}.get(name, [name])
        told = refused[name]["what"].split("run: ")[1]
        assert [part.split(" was ")[0] for part in told.split("; ")] == parts
    assert refused["losses"]["error"] == refused["nothing"]["error"] == "CFG-CACHE"
    assert "attention, embedding, hidden" in refused["losses"]["what"]
    assert sorted(path.name for path in (folder / "cache").iterdir()) == before


def test_damage_is_refused_by_name(one: Results, values: dict[str, Any], folder: Path) -> None:
    damaged = folder / "damaged"
    shutil.copytree(folder / "cache", damaged)
    path = max(damaged.glob("states-*.safetensors"), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1])
    case = {"machine": machine(), "cache": str(damaged)}
    found = work(1, "teacher_cache", folder / "hurt", config=values, cases={"read": case})["read"]
    assert found["error"] == "CKPT-CACHE"
    assert path.name in found["what"]


def test_whole_commands_end_with_the_same_figures(flags: list[str], tmp_path: Path) -> None:
    """One rank writes, two with a teacher in shards read; the last figures are those of the teacher in float32."""
    losses = ("--loss.hidden", "0", "--loss.attention", "0", "--loss.embedding", "0", "--steps", "10")
    given = [str(TRAIN), *flags, *losses, "--teacher_cache", str(tmp_path / "cache")]
    found = [
        run([sys.executable, *given, "--output_dir", str(tmp_path / "written")]),
        torchrun(
            2, *map(Path, given[:1]), *given[1:], "--teacher_placement", "zero3", "--output_dir", str(tmp_path / "read")
        ),
    ]
    assert [finished.code for finished in found] == [0, 0], "\n".join(finished.shown for finished in found)
    assert "bytes per token" in found[0].out
    assert "the teacher's body is not run" in found[1].out
    written, read = (json.loads((tmp_path / name / "report.json").read_text("utf-8")) for name in ("written", "read"))
    for model in ("teacher", "student"):
        assert read[model]["heldout_loss"] == pytest.approx(written[model]["heldout_loss"], abs=1e-4)


def same(found: dict[str, Any], straight: dict[str, Any]) -> bool:
    return (found["weights"], found["history"]) == (straight["weights"], straight["history"])


def alike(found: dict[str, Any], straight: dict[str, Any], within: float) -> None:
    assert "error" not in found, found
    for own, other in zip(found["history"], straight["history"], strict=True):
        assert own == pytest.approx(other, rel=0, abs=within)
