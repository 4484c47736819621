"""A teacher and a corpus small enough for hundreds of starts, and a launched run that can be watched and disturbed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

SCRIPTS = Path(sys.executable).parent
TRAIN = Path(__file__).resolve().parent.parent / "homodistil_ds" / "train.py"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [first + vowel + last for first in "bdfgklmnprst" for vowel in "aeiou" for last in "nst"]
MARK = "HOMODISTIL_FAULT_JOB"
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMPI_COMM_WORLD_RANK")
PATIENCE_SECONDS = 240.0


def write_teacher(folder: Path) -> Path:
    """A BERT: 2 layers, hidden 32, 4 heads of 8, ffn 64, 185 words, random weights large enough to matter."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    model = BertForMaskedLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    vocabulary = {word: place for place, word in enumerate([*SPECIAL, *WORDS])}
    BertTokenizerFast(vocab=vocabulary, model_max_length=64).save_pretrained(folder)
    return folder


def write_corpus(path: Path) -> Path:
    """A .txt file of 400 documents; each word mostly decides the next one, so that there is something to learn."""
    generator = np.random.default_rng(0)
    documents = []
    for _ in range(400):
        place = int(generator.integers(len(WORDS)))
        words = []
        for _ in range(60):
            words.append(WORDS[place])
            place = (7 * place + int(generator.integers(3))) % len(WORDS)
        documents.append(" ".join(words))
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launcher(name: str) -> list[str]:
    if name == "python":
        return [sys.executable]
    if name == "torchrun":
        return [str(SCRIPTS / "torchrun"), "--standalone", "--nproc_per_node", "2"]
    return [str(SCRIPTS / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port())]


@dataclass
class Job:
    """A launch in the background; everything it starts carries `mark` in its environment, orphans too."""

    process: subprocess.Popen[bytes]
    mark: str
    log: Path
    started: float
    seconds_to_end: float | None = None  # of the first wait

    @classmethod
    def start(cls, launched_by: str, arguments: list[str], log: Path) -> Job:
        environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
        environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
        environment |= {"MASTER_PORT": str(free_port()), MARK: str(log)}
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as stream:
            command = [*launcher(launched_by), *arguments]
            process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
        return cls(process, str(log), log, time.monotonic())

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def last_step(self) -> int | None:
        steps = re.findall(r"^step +(\d+)/", self.text(), re.MULTILINE)
        return int(steps[-1]) if steps else None

    def members(self) -> list[psutil.Process]:
        """What still runs of it, the launchers included."""
        return [process for process in psutil.process_iter() if self._of(process).get(MARK) == self.mark]

    def ranks(self) -> dict[int, psutil.Process]:
        """The training processes; a launcher has no RANK, and what a rank starts has the rank as its parent."""
        found: dict[int, psutil.Process] = {}
        for process in sorted(self.members(), key=lambda member: member.create_time()):
            rank = self._of(process).get("RANK")
            if rank is not None:
                found.setdefault(int(rank), process)
        return found

    @staticmethod
    def _of(process: psutil.Process) -> dict[str, str]:
        try:
            return process.environ() if process.status() != psutil.STATUS_ZOMBIE else {}
        except psutil.Error:
            return {}

    def wait_until(self, true: Callable[[], Any], what: str, tick: float = 0.01) -> None:
        """Raises TimeoutError with the output so far, also if the job ends before."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not true():
            ended = self.process.poll() is not None
            if (ended and not true()) or time.monotonic() > deadline:
                state = "ended" if ended else "goes on"
                raise TimeoutError(f"the job {state} without this: {what}\n{self.text()[-6000:]}")
            time.sleep(tick)

    def wait_for_end(self) -> float:
        """Seconds until no process of it was left. Raises TimeoutError if some stay."""
        begin = time.monotonic()
        while self.process.poll() is None or self.members():
            if time.monotonic() - begin > PATIENCE_SECONDS:
                raise TimeoutError(f"processes stay: {self.members()}\n{self.text()[-6000:]}")
            time.sleep(0.05)
        if self.seconds_to_end is None:
            self.seconds_to_end = time.monotonic() - begin
        return self.seconds_to_end

    def clear(self) -> None:
        """Nothing of it is left after this, whatever happened."""
        while members := self.members():
            for member in members:
                with suppress(psutil.NoSuchProcess):
                    member.kill()
        self.process.wait()


@dataclass(frozen=True)
class Outcome:
    """What makes two runs the same: the student's bytes and the masks."""

    student: str
    masks: str

    @classmethod
    def of(cls, run_dir: Path) -> Outcome:
        student = hashlib.sha256((run_dir / "student" / "model.safetensors").read_bytes()).hexdigest()
        return cls(student, json.loads((run_dir / "report.json").read_text(encoding="utf-8"))["mask_digest"])
