"""What nested students cost together, against each of them alone: memory and time per step, of the real command."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quality_cells import ROOT, TRAIN, as_flags
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from homodistil_ds.models.loading import folder_of

FAMILY = (0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05)  # the preset's
STEPS = 12
TASK = "MRPC"


def measure(folder: Path, teacher: str, data: str) -> dict[str, Any]:
    """Seconds of CPU per step with a small teacher, peak memory with one of BERT-base's size, whose weights outweigh
    the process."""
    folder.mkdir(parents=True, exist_ok=True)
    large = bert_base(folder / "bert-base")
    alone = [str(scale) for scale in FAMILY]
    together = ",".join(alone)
    seconds = {family: step_seconds(folder / "time" / family, teacher, data, family) for family in (together, *alone)}
    peaks = {
        family: peak(folder / "memory" / family, large, data, family) for family in (together, alone[0], alone[-1])
    }
    return {"family": list(FAMILY), "cpu_seconds_per_step": seconds, "peak_bytes": peaks}


def bert_base(folder: Path) -> str:
    """BERT-base's layers with random weights and the embedded vocabulary: memory does not depend on the values."""
    if not folder.exists():
        tokenizer = AutoTokenizer.from_pretrained(folder_of("builtin"))
        BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer))).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)


def step_seconds(place: Path, teacher: str, data: str, family: str) -> float:
    values = {"teacher": teacher, "task.data": data, "family": family, "output_dir": place, "steps": STEPS}
    values["deepspeed_config"] = ROOT / "ds_configs" / "zero2.json"
    report_path = place / "report.json"
    if not report_path.exists():
        watch(values, place, lambda pid, step: None)
    report = json.loads(report_path.read_text(encoding="utf-8"))
    return (report["loop_cpu_seconds"] - report["measured_cpu_seconds"]) / report["steps"]


def peak(place: Path, teacher: str, data: str, family: str) -> int:
    """Bytes of the largest resident set from the second step to the last but one; one sequence of 32 at a time."""
    machine = json.loads((ROOT / "ds_configs" / "zero2.json").read_text(encoding="utf-8"))
    config = place.with_name(f"{place.name}.ds_config.json")
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps({**machine, "train_micro_batch_size_per_gpu": 1}), encoding="utf-8")
    values = {"teacher": teacher, "task.data": data, "family": family, "output_dir": place, "steps": STEPS}
    values |= {
        "deepspeed_config": config,
        "global_batch_size": 2,
        "sequence_length": 32,
    }
    found: list[int] = []

    def at_step(pid: int, step: int) -> None:
        if step == 2:
            Path(f"/proc/{pid}/clear_refs").write_text("5")
        if step == STEPS - 1:
            status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
            found.append(1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")))

    watch(values, place, at_step)
    return found[0]


def watch(values: dict[str, Any], place: Path, at_step: Callable[[int, int], None]) -> None:
    """Run a trial on the task, and call `at_step` once for each step that its words name."""
    common = {"preset": "minidisc", "assistant": "none", "task.name": TASK, "task.held_out": 0.1}
    common |= {"eval_interval": 0, "save_interval": 0, "log_interval": 1}
    command = [sys.executable, str(TRAIN), *as_flags({**common, **values}), "--task.no-predict", "--no-save_student"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    log = place.with_name(f"{place.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(place, ignore_errors=True)  # of a call that was stopped
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        seen = 0
        while process.poll() is None:
            steps = re.findall(r"^step +(\d+)/", log.read_text(errors="replace"), re.MULTILINE)
            for step in map(int, steps[seen:]):
                at_step(process.pid, step)
            seen = len(steps)
            time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with {process.returncode}; its words are in {log}")
