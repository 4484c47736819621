"""The folder is the same whoever prepares it and however often it is killed, and training starts from it."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

import pytest

from homodistil_ds.data.corpus import INDEX
from homodistil_ds.data.plan import UNFINISHED
from homodistil_ds.errors import EXIT_CODES
from integration.processes import SCRIPTS, TRAIN, WORKERS, Finished, background, run

TOOL = Path(__file__).resolve().parents[2] / "tools" / "prepare_corpus.py"
MPIRUN = shutil.which("mpirun", path=f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}")
HAS_MPI = MPIRUN is not None and importlib.util.find_spec("mpi4py") is not None
needs_mpi = pytest.mark.skipif(not HAS_MPI, reason="mpi4py or mpirun is not installed")
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
FAILS_ON_RANK_1 = """
import sys, traceback
from homodistil_ds.data.workers import under_mpi

def job(these):
    if these.rank == 1:
        raise ZeroDivisionError("on purpose")
    these.everyone(None)

def failed(error):
    traceback.print_exception(error)
    sys.stderr.flush()
    return 1

under_mpi(2, job, failed)
"""


@pytest.fixture(scope="module")
def sources(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One large file, and a folder of small ones with copies of some of its documents."""
    folder = tmp_path_factory.mktemp("sources")
    texts = tiny_corpus.read_text(encoding="utf-8").split("\n\n")
    for number in range(12):
        lines = [json.dumps({"text": text}) for text in (texts[number], f"new {number} " + texts[number + 1])]
        (folder / f"{number}.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    return [str(tiny_corpus), str(folder)]


def command(sources: list[str], teacher: Path, out: Path, *more: str, pause: float = 0.0) -> list[str]:
    arguments = ["--corpus", *sources, "--teacher", str(teacher), "--sequence_length", "32", "--output_dir", str(out)]
    return [sys.executable, str(WORKERS / "prepare_corpus.py"), str(pause), *arguments, *more]


def mpirun(ranks: int, arguments: list[str]) -> Finished:
    assert MPIRUN is not None
    return run([MPIRUN, "--oversubscribe", "-n", str(ranks), *arguments], extra=AS_ROOT)


@pytest.fixture(scope="module")
def prepared(sources: list[str], tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By one worker."""
    out = tmp_path_factory.mktemp("prepared") / "one"
    finished = run(command(sources, tiny_teacher, out, "--workers", "1"))
    assert finished.code == 0, finished.shown
    return out


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_holds_shards_and_an_index_alone(prepared: Path) -> None:
    names = sorted(bytes_of(prepared))
    assert len(names) > 4
    assert all(re.fullmatch(r"(train|held_out)-\d{5}\.npy|index\.json", name) for name in names)
    index = json.loads((prepared / INDEX).read_text(encoding="utf-8"))
    assert index["counts"]["documents"] == 424
    assert index["counts"]["copies"] == 12
    assert len(index["files"]) == 13


@pytest.mark.parametrize("workers", [2, 4])
def test_worker_processes_make_the_same_bytes(
    workers: int, sources: list[str], tiny_teacher: Path, prepared: Path, tmp_path: Path
) -> None:
    finished = run(command(sources, tiny_teacher, tmp_path / "out", "--workers", str(workers)))
    assert finished.code == 0, finished.shown
    assert f"on {workers} workers" in finished.out
    assert bytes_of(tmp_path / "out") == bytes_of(prepared)


@needs_mpi
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_mpi_ranks_make_the_same_bytes(
    ranks: int, sources: list[str], tiny_teacher: Path, prepared: Path, tmp_path: Path
) -> None:
    finished = mpirun(ranks, command(sources, tiny_teacher, tmp_path / "out"))
    assert finished.code == 0, finished.shown
    assert f"on {ranks} workers" in finished.out
    assert finished.out.count("fingerprint") == 1, "rank 0 alone speaks"
    assert bytes_of(tmp_path / "out") == bytes_of(prepared)


def test_a_killed_preparation_goes_on_and_ends_in_the_same_bytes(
    sources: list[str], tiny_teacher: Path, prepared: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    parts = out / UNFINISHED / "parts"
    (tmp_path / "job").mkdir()
    with background(command(sources, tiny_teacher, out, "--workers", "2", pause=0.2), tmp_path / "job") as job:
        job.wait_until(lambda: len(list(parts.glob("*.part"))) >= 10, "ten parts")
        job.process.kill()
        job.wait_for_end()  # the workers go with their parent
    assert not (out / INDEX).exists()
    finished = run(command(sources, tiny_teacher, out, "--workers", "4"))
    assert finished.code == 0, finished.shown
    counted = re.search(r"(\d+) units tokenized, (\d+) found finished", finished.out)
    assert counted is not None
    made, found = map(int, counted.groups())
    assert found >= 10
    assert made > 0
    assert bytes_of(out) == bytes_of(prepared)
    other = run(command(sources, tiny_teacher, out, "--workers", "4", "--no_clean"))
    assert other.code == EXIT_CODES["DATA"], other.shown
    assert "made with other values of clean" in other.err
    again = run(command(sources, tiny_teacher, out, "--workers", "4"))
    assert again.code == 0
    assert "nothing was done" in again.out
    assert bytes_of(out) == bytes_of(prepared)


def test_a_second_preparation_in_the_folder_is_refused(sources: list[str], tiny_teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "job").mkdir()
    with background(command(sources, tiny_teacher, out, "--workers", "2", pause=5), tmp_path / "job") as job:
        job.wait_until(lambda: (out / UNFINISHED / "plan.json").exists(), "it has begun")
        second = run(command(sources, tiny_teacher, out, "--workers", "2"))
        assert job.process.poll() is None, "the first goes on"
    assert second.code == EXIT_CODES["CFG"], second.shown
    assert "error[CFG-RUNNING]" in second.err
    assert (out / UNFINISHED / "plan.json").exists()


@pytest.mark.parametrize("launcher", ["processes", pytest.param("mpi", marks=needs_mpi)])
def test_a_bad_file_ends_all_ranks_at_once(
    launcher: str, sources: list[str], tiny_teacher: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"caf\xe9")
    arguments = command([str(bad), *sources], tiny_teacher, tmp_path / "out", pause=0.5)
    began = time.monotonic()
    finished = mpirun(2, arguments) if launcher == "mpi" else run([*arguments, "--workers", "2"])
    assert finished.code == EXIT_CODES["DATA"], finished.shown
    assert time.monotonic() - began < 60, "the others have work for longer"
    assert f"error[DATA-NOT-UTF8] {bad}" in finished.err
    assert "Traceback" not in finished.err
    assert "the same command goes on from there" in finished.err
    skipping = run(command([str(bad), *sources], tiny_teacher, tmp_path / "out", "--workers", "2", "--skip_bad_files"))
    assert skipping.code == 0, skipping.shown
    assert f"skipped {bad}: DATA-NOT-UTF8" in skipping.out


@needs_mpi
def test_an_unforeseen_error_of_one_rank_ends_all(tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text(FAILS_ON_RANK_1)
    began = time.monotonic()
    finished = mpirun(2, [sys.executable, str(script)])
    assert finished.code != 0
    assert "on purpose" in finished.err
    assert time.monotonic() - began < 60


def test_processes_that_mpi_does_not_know_are_refused(sources: list[str], tiny_teacher: Path, tmp_path: Path) -> None:
    """As srun without --mpi starts them: each would be rank 0 of 1."""
    arguments = command(sources, tiny_teacher, tmp_path / "out")
    finished = run(arguments, extra={"SLURM_STEP_NUM_TASKS": "3", "SLURM_NTASKS": "3"})
    assert finished.code == EXIT_CODES["ENV"], finished.shown
    assert "error[ENV-MPI]" in finished.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "error_id"),
    [
        (["--workers", "0"], "CFG-FLAG"),
        (["--sequence_length", "2"], "CFG-FLAG"),
        (["--teacher", "/no/such/teacher"], "CFG-TEACHER"),
        (["--corpus", "/no/such/corpus"], "DATA-NOT-FOUND"),
    ],
)
def test_bad_arguments_leave_nothing(
    more: list[str], error_id: str, sources: list[str], tiny_teacher: Path, tmp_path: Path
) -> None:
    finished = run([*command(sources, tiny_teacher, tmp_path / "out"), *more])
    assert finished.code == EXIT_CODES[error_id.split("-")[0]], finished.shown
    assert f"error[{error_id}]" in finished.err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_things_is_refused(sources: list[str], tiny_teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    finished = run(command(sources, tiny_teacher, tmp_path))
    assert finished.code == EXIT_CODES["CFG"], finished.shown
    assert "error[CFG-USED-DIR]" in finished.err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_verify(prepared: Path, tmp_path: Path) -> None:
    finished = run([sys.executable, str(TOOL), "--verify", str(prepared)])
    assert finished.code == 0, finished.shown
    shutil.copytree(prepared, tmp_path / "damaged")
    shard = tmp_path / "damaged" / "train-00001.npy"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f")
    finished = run([sys.executable, str(TOOL), "--verify", str(tmp_path / "damaged")])
    assert finished.code == EXIT_CODES["DATA"], finished.shown
    assert "train-00001.npy" in finished.err


def test_training_from_the_folder_is_the_run_from_the_text(
    sources: list[str], tiny_teacher: Path, fp32_config: Path, tmp_path: Path
) -> None:
    """The folder comes from the tool as users start it; the other run packs the same text itself."""
    out = tmp_path / "prepared"
    arguments = ["--teacher", str(tiny_teacher), "--corpus", *sources, "--sequence_length", "32"]
    finished = run([sys.executable, str(TOOL), *arguments, "--output_dir", str(out), "--workers", "2"])
    assert finished.code == 0, finished.shown
    before = bytes_of(out)
    flags = [
        *("--deepspeed_config", str(fp32_config), "--teacher", str(tiny_teacher), "--sequence_length", "32"),
        *("--steps", "2", "--global_batch_size", "16", "--held_out_sequences", "9", "--pruning.interval", "1"),
        *("--student.hidden_size", "16", "--student.intermediate_size", "24", "--student.num_attention_heads", "2"),
    ]
    reports = []
    for name, corpus in (("text", sources), ("folder", [str(out)])):
        run_dir = tmp_path / name
        trained = run([sys.executable, str(TRAIN), *flags, "--corpus", *corpus, "--output_dir", str(run_dir)])
        assert trained.code == 0, trained.shown
        reports.append(json.loads((run_dir / "report.json").read_text(encoding="utf-8")))
    assert reports[0]["corpus_fingerprint"] == reports[1]["corpus_fingerprint"]
    assert reports[0]["student"]["heldout_loss"] == reports[1]["student"]["heldout_loss"]
    students = [(tmp_path / name / "student" / "model.safetensors").read_bytes() for name in ("text", "folder")]
    assert students[0] == students[1]
    assert not (tmp_path / "folder" / "corpus").exists()
    assert bytes_of(tmp_path / "text" / "corpus") == before
    assert bytes_of(out) == before
    flags[flags.index("--sequence_length") + 1] = "16"
    refused = run([sys.executable, str(TRAIN), *flags, "--corpus", str(out), "--output_dir", str(tmp_path / "no")])
    assert refused.code == EXIT_CODES["DATA"], refused.shown
    assert "error[DATA-LENGTH]" in refused.err
    assert "--sequence_length 32" in refused.err
    assert not (tmp_path / "no").exists()
