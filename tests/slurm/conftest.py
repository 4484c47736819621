"""One cluster for all tests here, a tiny run, and jobs that can be watched."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny_run import Outcome, write_corpus, write_teacher

from tests.slurm.cluster import Cluster, cluster, why_not


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The cluster has one set of addresses, and its jobs are watched by the clock."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.alone)


PROJECT = Path(__file__).resolve().parent.parent.parent
MACHINE = {"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": 2}, "gradient_clipping": 1.0}
STEPS = 120


@pytest.fixture(scope="session")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of three megabytes, which all nodes see because it is there before them."""
    lacking = why_not()
    if lacking:
        pytest.skip(lacking)
    folder = tmp_path_factory.mktemp("small")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory, small_disk: Path) -> Iterator[Cluster]:
    """Five nodes with eight CPUs each."""
    folder = Path(tempfile.mkdtemp(prefix="hds", dir="/tmp"))  # a short path, for munge's socket
    try:
        with cluster(folder, 5, cpus=8, shared=[tmp_path_factory.getbasetemp(), PROJECT, Path(sys.prefix)]) as made:
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Job:
    """A submitted job; `text` is its log over all of its starts."""

    cluster: Cluster
    number: str
    log: Path
    run_dir: Path

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def checkpoints(self) -> list[int]:
        return sorted(int(path.name[5:]) for path in self.run_dir.glob("checkpoints/step-*"))

    def wait_for_saves(self, count: int = 1, start: int = 1) -> None:
        """Until the given start, counted from 1, has written `count` checkpoints."""

        def saved() -> bool:
            assert self.cluster.state(self.number) not in ("FAILED", "CANCELLED"), self.text()
            return self.text().split(f", start {start}, ")[-1].count("saved ") >= count and self.starts() >= start

        self.cluster.wait_until(saved, f"save {count} of start {start} of {self.log.name}", shown=self.text)

    def starts(self) -> int:
        return len(re.findall(r"\] job \d+, start \d+, on ", self.text()))

    def nodes(self) -> list[str]:
        """The node list of each start."""
        return re.findall(r"\] job \d+, start \d+, on (\S+),", self.text())

    def tell(self, *command: str) -> None:
        self.cluster.do(*command, self.number)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Its ranks, and what started them, stand still: what is done meanwhile is not too late."""
        self._signal("STOP")
        try:
            yield
        finally:
            self._signal("CONT")

    def _signal(self, name: str) -> None:
        for node in self.cluster.names:
            if node in self.cluster.processes:
                self.cluster.on(node, "pkill", f"-{name}", "-f", f"train.py.*{self.run_dir}")

    def wait_to_be_told(self) -> None:
        """Until the ranks have been asked to stop, by the file that asks them; or have left because of it."""

        def told() -> bool:
            return (self.run_dir / "stop").exists() or "requeue: time limit" in self.text()

        self.cluster.wait_until(told, f"{self.log.name} to be told", shown=self.text)

    def end(self, seconds: float = 900) -> dict[str, str]:
        facts = self.cluster.wait_for_end(self.number, seconds)
        return {"state": facts["JobState"], "code": facts["ExitCode"].split(":")[0], "restarts": facts["Restarts"]}

    def reason(self) -> dict[str, Any]:
        return json.loads((self.run_dir / "exit_reason.json").read_text())  # type: ignore[no-any-return]

    def succeeded(self) -> dict[str, str]:
        ended = self.end()
        assert ended["state"] == "COMPLETED", f"{ended}\n{self.text()}"
        assert self.reason()["id"] == "DONE"
        return ended


@dataclass
class Bench:
    """Submits the tiny run, from a folder outside of the project."""

    cluster: Cluster
    folder: Path
    flags: list[str]
    small_disk: Path

    def submit(
        self,
        name: str,
        *options: str,
        script: str = "distill_multi_node.sh",
        run_dir: Path | None = None,
        flags: list[str] | None = None,
        **environment: str,
    ) -> Job:
        run_dir = run_dir or self.folder / "runs" / name
        log = self.folder / f"{name}.out"
        usual = [
            "--gpus-per-node=0",
            "--cpus-per-task=1",
            "--time=60",
            "--signal=B:USR1@60",
            f"--job-name={name}",
            f"--output={log}",
        ]
        given = [*(self.flags if flags is None else flags), "--output_dir", str(run_dir)]
        number = self.cluster.do(
            *("sbatch", "--parsable", *usual, *options, str(PROJECT / "slurm" / script), *given),
            cwd=self.folder,
            environment=self.environment(**environment),
        )
        return Job(self.cluster, number.strip(), log, run_dir)

    def environment(self, **more: str) -> dict[str, str]:
        own = {"VENV": sys.prefix, "PYTHONPATH": str(PROJECT), "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
        allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        return own | allowed | {"OMP_NUM_THREADS": "1"} | more


@pytest.fixture(scope="session")
def bench(slurm: Cluster, small_disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("jobs")
    teacher, corpus = write_teacher(folder / "teacher"), write_corpus(folder / "words.txt")
    machine = folder / "zero2.json"
    machine.write_text(json.dumps(MACHINE))
    flags = [
        *("--deepspeed_config", str(machine), "--teacher", str(teacher), "--corpus", str(corpus)),
        *("--steps", str(STEPS), "--save_interval", "4", "--cuts", "3", "--log_interval", "8", "--eval_interval", "0"),
        *("--pruning.interval", "4", "--global_batch_size", "8", "--sequence_length", "32"),
        *("--held_out_sequences", "16", "--student.hidden_size", "16", "--student.intermediate_size", "24"),
        *("--student.num_attention_heads", "2", "--student.dtype", "float32"),
    ]
    return Bench(slurm, folder, flags, small_disk)


@pytest.fixture(scope="session")
def undisturbed(bench: Bench) -> Path:
    """Two nodes, one rank each, nothing happens; its run directory."""
    job = bench.submit("undisturbed")
    job.succeeded()
    return job.run_dir


def same_bits(run_dir: Path, other: Path) -> bool:
    return Outcome.of(run_dir) == Outcome.of(other)


def largest_difference(run_dir: Path, other: Path) -> float:
    """Of the students' weights, relative to the largest weight of each tensor."""
    own, its = (load_file(folder / "student" / "model.safetensors") for folder in (run_dir, other))
    assert own.keys() == its.keys()
    return max(float((own[name] - its[name]).abs().max() / its[name].abs().max()) for name in own)
