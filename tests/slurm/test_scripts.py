"""The scripts beside the distillation, and what they do without a cluster: chain, array, corpus, containers."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from pathlib import Path

import pytest
from glue_layouts import OFFICIAL

from homodistil_ds.data.glue import TASKS
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import PROJECT, Bench

NO_GPU = "--gpus-per-node=0 --cpus-per-task=2 --time=60"


def test_a_chain_prepares_distils_and_evaluates(bench: Bench, slurm: Cluster) -> None:
    flags = [flag for flag in bench.flags if flag not in ("--teacher", "--corpus")]
    at = {name: bench.flags[bench.flags.index(name) + 1] for name in ("--teacher", "--corpus")}
    flags = [flag for flag in flags if flag not in at.values()]
    printed = slurm.do(
        *(str(PROJECT / "slurm" / "chain.sh"), *flags),
        cwd=bench.folder,
        environment=bench.environment(
            NAME="chain",
            TEACHER=at["--teacher"],
            CORPUS=at["--corpus"],
            SCRIPT="distill_single_node.sh",
            PREPARE="--cpus-per-task=2 --time=60",
            DISTIL=NO_GPU,
            EVALUATE=NO_GPU,
        ),
    )
    jobs = re.findall(r"(?:prepare|distil|evaluate) (\d+)", printed)
    assert len(jobs) == 3
    for job in jobs:
        ended = slurm.wait_for_end(job)
        assert ended["JobState"] == "COMPLETED", Path(ended["StdOut"]).read_text()
    measured = re.search(r"heldout_loss +(\S+) nats", Path(ended["StdOut"]).read_text())
    assert measured is not None
    report = json.loads((bench.folder / "runs" / "chain" / "report.json").read_text())
    assert report["student"]["heldout_loss"] == pytest.approx(float(measured[1]), abs=1e-4)


def test_a_failed_job_ends_its_chain(bench: Bench, slurm: Cluster) -> None:
    broken = bench.environment(
        NAME="broken", TEACHER="none", CORPUS="none.txt", PREPARE="--cpus-per-task=1", DISTIL=NO_GPU, EVALUATE=NO_GPU
    )
    printed = slurm.do(str(PROJECT / "slurm" / "chain.sh"), cwd=bench.folder, environment=broken)
    states = [slurm.wait_for_end(job)["JobState"] for job in re.findall(r"\d+", printed)]
    assert states == ["FAILED", "CANCELLED", "CANCELLED"]


def test_nodes_prepare_a_corpus_together(bench: Bench) -> None:
    flags = ["--corpus", bench.flags[bench.flags.index("--corpus") + 1], "--sequence_length", "32"]
    flags += ["--teacher", bench.flags[bench.flags.index("--teacher") + 1]]
    folders = []
    for nodes, launcher in ((1, "none"), (2, "mpirun"), (2, "srun")):
        options = (f"--nodes={nodes}", "--cpus-per-task=2")
        job = bench.submit(f"corpus-{launcher}", *options, script="prepare_corpus.sh", flags=flags, LAUNCHER=launcher)
        assert job.end()["state"] == "COMPLETED", job.text()
        folders.append({path.name: path.read_bytes() for path in job.run_dir.iterdir() if path.name != "lock"})
    assert folders[0] == folders[1] == folders[2]


def write_official(data: Path, task: str) -> None:
    """The task's folder of three rows per split, in GLUE's own layout."""
    (data / task).mkdir(parents=True, exist_ok=True)
    for split in TASKS[task].splits:
        (data / task / f"{split}.tsv").write_text(OFFICIAL[task].file(split), encoding="utf-8", newline="")


def test_an_array_learns_one_task_with_one_seed_per_element_and_leaves_one_table(bench: Bench, slurm: Cluster) -> None:
    """The real program on official layouts of three rows."""
    for task in ("CoLA", "WNLI"):
        write_official(bench.folder / "glue", task)
    model = bench.flags[bench.flags.index("--teacher") + 1]
    flags = ["--model", model, "--data", "glue", "--output_dir", "glue-runs", "--sequence_length", "32"]
    printed = slurm.do(
        *("sbatch", "--parsable", "--array=0-2", *NO_GPU.split(), str(PROJECT / "slurm" / "glue_array.sh"), *flags),
        cwd=bench.folder,
        environment=bench.environment(TASKS="CoLA WNLI", SEEDS="1"),
    )
    number = printed.strip()

    def left() -> str:
        with contextlib.suppress(RuntimeError):  # a controller that is busy
            return slurm.do("squeue", "-h", "-j", number).strip()
        return "unknown"

    slurm.wait_until(lambda: not left(), "the array")
    said = [(bench.folder / f"glue-{number}_{index}.out").read_text() for index in range(3)]
    assert "no task and seed number 2" in said[2]
    runs = bench.folder / "glue-runs"
    assert sorted(path.parent.name for path in runs.glob("*/report.json")) == ["CoLA-1", "WNLI-1"], "\n".join(said)
    table = (runs / "glue.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (CoLA|WNLI) \|", table, re.MULTILINE) == ["CoLA", "WNLI"]


def test_an_element_of_an_array_saves_at_the_time_limit_and_goes_on(bench: Bench, slurm: Cluster) -> None:
    write_official(bench.folder / "glue", "CoLA")
    model = bench.flags[bench.flags.index("--teacher") + 1]
    flags = ["--model", model, "--data", "glue", "--output_dir", "glue-long", "--sequence_length", "32"]
    flags += ["--epochs", "3000", "--log_interval", "10"]
    number = slurm.do(
        *("sbatch", "--parsable", "--array=0", *NO_GPU.split(), str(PROJECT / "slurm" / "glue_array.sh"), *flags),
        cwd=bench.folder,
        environment=bench.environment(TASKS="CoLA", SEEDS="1"),
    ).strip()
    element, log = f"{number}_0", bench.folder / f"glue-{number}_0.out"

    def said() -> str:
        return log.read_text() if log.exists() else ""

    slurm.wait_until(lambda: "step   10/" in said(), "ten steps", shown=said)
    slurm.do("scancel", "--batch", "--signal=USR1", element)
    assert slurm.wait_for_end(element)["JobState"] == "COMPLETED", said()
    assert said().count("requeue: time limit") == 1
    assert "going on after step" in said()
    assert (bench.folder / "glue-long" / "CoLA-1" / "report.json").exists()


@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        ("apptainer", "apptainer exec --bind {project},{here} --pwd {here} image.sif python train.py"),
        ("pyxis", "--container-image=image.sif --container-mounts={project}:{project},{here}:{here}"),
    ],
)
def test_a_container_is_put_around_the_ranks(tmp_path: Path, runtime: str, expected: str) -> None:
    """The command line only: no container runtime is needed, and none is tried."""
    for name, text in {"scontrol": "echo node1", "srun": 'echo "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    script = "meet; start_ranks train.py; wait"
    done = subprocess.run(
        ["bash", "-c", f"project={PROJECT}; . {PROJECT}/slurm/job.sh; {script}"],
        env={
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            **{"SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_ON_NODE": "2", "SLURM_JOB_NODELIST": "node1"},
            **{"SLURM_JOB_ID": "7", "CONTAINER": "image.sif", "CONTAINER_RUNTIME": runtime},
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert expected.format(project=PROJECT, here=tmp_path) in done.stdout
