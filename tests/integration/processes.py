"""Start processes and show their output when they fail. They see a clean environment and are never left behind."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

SCRIPTS = Path(sys.executable).parent
WORKERS = Path(__file__).parent / "workers"
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TRAIN = Path(__file__).resolve().parents[2] / "homodistil_ds" / "train.py"
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMPI_COMM_WORLD_RANK")
MARK = "HOMODISTIL_TEST_JOB"
SECONDS = 900  # a machine under load is slow; this only ends what hangs


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str

    @property
    def shown(self) -> str:
        return f"exit code {self.code}\n--- stdout ---\n{self.out}\n--- stderr ---\n{self.err}"


def run(command: list[str], cwd: Path | None = None, extra: dict[str, str] | None = None) -> Finished:
    """Run to the end, or end it and everything it started after SECONDS. Raises TimeoutError with the output so far."""
    environment = clean_environment() | (extra or {})
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, cwd=cwd, env=environment)
        try:
            code: int | None = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            code = None
            end(process)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read())
    if code is None:
        raise TimeoutError(f"{' '.join(command)}: not finished in {SECONDS} s\n{Finished(-1, *texts).shown}")
    return Finished(code, *texts)


def clean_environment() -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
    # Workers count with benchmarks/counting.py.
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(BENCHMARKS), environment.get("PYTHONPATH")]))
    # Runs beside this one may hold the port that a launch takes by default.
    return environment | {"MASTER_PORT": str(free_port())}


@dataclass(frozen=True)
class Job:
    """A launch in the background. Everything it starts carries `mark` in its environment, orphans too."""

    process: subprocess.Popen[bytes]
    mark: str
    err: Path

    def members(self) -> list[psutil.Process]:
        """What still runs of it, the launchers included."""
        return [process for process in psutil.process_iter() if self._owns(process)]

    def _owns(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def wait_until(self, true: Callable[[], bool], what: str, seconds: float = 120) -> None:
        """Raises TimeoutError with the stderr so far."""
        deadline = time.monotonic() + seconds
        while not true():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {seconds} s: {what}\n{self.err.read_text(encoding='utf-8')}")
            time.sleep(0.05)

    def wait_for_end(self) -> None:
        self.wait_until(lambda: self.process.poll() is not None and not self.members(), "no process is left")


@contextmanager
def background(command: list[str], folder: Path) -> Iterator[Job]:
    """Start a launch whose stdout is a pipe to this process; at the end nothing of it is left, whatever happened."""
    mark, err = str(folder), folder / "stderr.txt"
    with err.open("wb") as stream:
        environment = clean_environment() | {MARK: mark}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stream, env=environment)
    job = Job(process, mark, err)
    try:
        yield job
    finally:
        # A launcher may start a process between a look and a kill.
        while members := job.members():
            for member in members:
                with suppress(psutil.NoSuchProcess):
                    member.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def end(process: subprocess.Popen[bytes]) -> None:
    """Launchers put their ranks into sessions of their own, and some leave them behind when they are killed."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        member.kill()
    process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def machine(stage: int) -> dict[str, Any]:
    """Micro batches of 4: of 16 rows four are accumulated on one rank, two on two. Stage 3 shards every parameter."""
    zero = {"stage": stage} | ({"stage3_param_persistence_threshold": 0} if stage == 3 else {})
    return {"train_micro_batch_size_per_gpu": 4, "zero_optimization": zero, "gradient_clipping": 1.0}


def torchrun(ranks: int, script: Path, *arguments: str, extra: dict[str, str] | None = None) -> Finished:
    launcher = [str(SCRIPTS / "torchrun"), "--standalone", "--nproc_per_node", str(ranks)]
    return run([*launcher, str(script), *arguments], extra=extra)


def work(ranks: int, worker: str, out: Path, **settings: Any) -> dict[str, Any]:
    """Run workers/<worker>.py on `ranks` ranks; returns what rank 0 wrote to <out>/result.json."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "settings.json").write_text(json.dumps(settings | {"out": str(out)}, default=str), encoding="utf-8")
    finished = torchrun(ranks, WORKERS / f"{worker}.py", str(out / "settings.json"))
    assert finished.code == 0, finished.shown
    return json.loads((out / "result.json").read_text(encoding="utf-8"))
