"""Cells of a comparison: runs of the real commands, made unless they are complete. It compares nothing."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from quality_arms import THESIS, Arm, Flags, folder_of

from homodistil_ds.models.depth import shallower
from homodistil_ds.models.width import WidthPlan, Widths, count

ROOT = Path(__file__).resolve().parent.parent
TRAIN, GLUE = ROOT / "homodistil_ds" / "train.py", ROOT / "tools" / "evaluate_glue.py"
STILL = 1e-9  # the learning rate of a student that is not trained
TRIAL = 8  # a trial has one in so many of the steps
TASKS = {"SST-2": 1.0, "MRPC": 5.0, "CoLA": 3.0}  # epochs on all training examples
FEW = 0.1  # the limited share of the training examples
SHARES = {"SST-2": FEW}  # in tables of tasks: all of it would cost more than everything else together
Item = TypeVar("Item")


class Cells:
    """The runs of one folder, under the flags of one call."""

    def __init__(self, given: argparse.Namespace, plan: WidthPlan) -> None:
        self.given = given
        self.folder: Path = given.output_dir
        self.plan = plan

    def place(self, name: str) -> Path:
        return self.folder / "distil" / folder_of(name)

    def rate(self, arm: Arm) -> float:
        """The learning rate whose trial ended with the lowest objective of its own, over the last quarter."""
        if arm.kind == "start":
            return STILL
        if len(self.given.rates) == 1:
            return self.given.rates[0]
        found: dict[float, float] = {}
        for rate in self.given.rates:
            place = self.folder / "trials" / f"{arm.folder}-{rate:g}"
            trial: Flags = {"steps": max(4, self.given.steps // TRIAL), "eval_interval": 0, "log_interval": 1}
            report = self.distil(replace(arm, flags={**arm.flags, **trial}), rate, place)
            shutil.rmtree(place / "student", ignore_errors=True)
            totals = [row["total"] for row in report["history"] if "total" in row]
            found[rate] = statistics.mean(totals[-max(1, len(totals) // 4) :])
        return min(found, key=found.__getitem__)

    def distil(self, arm: Arm, rate: float, place: Path) -> dict[str, Any]:
        """One distillation, unless it is complete; its report."""
        if not (place / "arm.json").exists():
            shutil.rmtree(place, ignore_errors=True)
            values = {**self.budget(arm), "output_dir": str(place), "learning_rate": rate, **arm.flags}
            command = [str(TRAIN), "--preset", arm.preset, "--deepspeed_config", self.given.deepspeed_config]
            execute([*command, *as_flags(values)], place.with_name(f"{place.name}.log"))
            for heavy in ("checkpoints", "tb", "logs"):
                shutil.rmtree(place / heavy, ignore_errors=True)
            facts = {
                **vars(arm),
                "speaks": arm.speaks,
                "learning_rate": rate,
                "at_edge": len(self.given.rates) > 1 and rate in (min(self.given.rates), max(self.given.rates)),
                "parameters_of_layers": self.parameters_of_layers(place),
            }
            (place / "arm.json").write_text(json.dumps(facts) + "\n")
            print(f"done: {place.parent.name}/{place.name}", flush=True)
        return json.loads((place / "report.json").read_text())

    def budget(self, arm: Arm) -> Flags:
        """What all students have in common, in place of their presets' values for a cluster.

        Those drawn over the steps are evaluated more often: the jump of pruning at once is over in some ten steps.
        """
        steps = self.given.steps
        return {
            "teacher": self.given.teacher,
            "corpus": str(self.folder / "corpus"),
            "steps": steps,
            "global_batch_size": self.given.batch,
            "sequence_length": self.given.sequence_length,
            "held_out_sequences": self.given.held_out_sequences,
            "eval_interval": max(1, steps // (30 if arm.name in THESIS else 10)),
            "log_interval": 10,
            "save_interval": 0,
            "pruning.interval": 5,
        }

    def parameters_of_layers(self, place: Path) -> dict[str, int]:
        """Of student and teacher, without embeddings and head."""
        report = json.loads((place / "report.json").read_text())
        found = {}
        for model in ("student", "teacher"):
            own = report[model]["widths"]
            names = ("hidden_size", "intermediate_size", "num_attention_heads", "head_size")
            hidden, ffn, heads, head_size = (own[name] for name in names)
            plan = shallower(self.plan, tuple(range(own["num_hidden_layers"])))
            counted = count(plan, Widths(hidden=hidden, ffn=ffn, heads=heads, head_size=head_size))
            found[model] = counted.matrices + counted.vectors
        return found

    def learn(
        self,
        folder: Path,
        model: str,
        task: str,
        preset: str,
        seeds: Sequence[int],
        share: float,
        *,
        teacher: str | None = None,
        times: float = 1.0,
        keep: bool = False,
    ) -> None:
        """tools/evaluate_glue.py on one task, `share` of its training examples, `times` the epochs."""
        if all((folder / f"{task}-{seed}" / "report.json").exists() for seed in seeds):
            return
        values: Flags = {
            "model": model,
            "data": self.given.data,
            "tasks": task,
            "preset": preset,
            "output_dir": str(folder),
            "deepspeed_config": self.given.deepspeed_config,
            "learning_rates": self.given.learning_rate,
            "epochs": times * epochs(task, share) * self.given.epochs,
            "log_interval": 100,
            "sequence_length": self.given.sequence_length,
            "task.fraction": share,
            **({} if teacher is None else {"teacher": teacher}),
        }
        command = [str(GLUE), *as_flags(values), "--seeds", *map(str, seeds), "--task.no-predict"]
        folder.mkdir(parents=True, exist_ok=True)
        execute([*command, *(["--save_models"] if keep else [])], folder / f"{task}.log")
        print(f"done: {folder.parent.name}/{folder.name} {task} {list(seeds)}", flush=True)


def prepare_corpus(given: argparse.Namespace, teacher: str) -> None:
    """The corpus of a comparison, once for all its runs, in corpus/ of its folder."""
    command = [str(ROOT / "tools" / "prepare_corpus.py"), "--corpus", *given.corpus, "--teacher", teacher]
    command += ["--output_dir", str(given.output_dir / "corpus"), "--sequence_length", str(given.sequence_length)]
    execute(command, given.output_dir / "corpus.log")


def side_by_side(jobs: int, items: Iterable[Item], action: Callable[[Item], object]) -> None:
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(action, items))


def epochs(task: str, share: float) -> float:
    """With a share of the examples as many as make up a third of the steps of all."""
    return TASKS[task] * (1.0 if share == 1.0 else 1 / (3 * share))


def as_flags(values: Mapping[str, Any]) -> list[str]:
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def execute(command: Sequence[str], log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    # Runs beside each other meet their own rank at ports of their own.
    kept = {name: value for name, value in os.environ.items() if name not in ("MASTER_PORT", "RANK", "WORLD_SIZE")}
    environment = {**kept, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    whole = [sys.executable, *command]
    with log.open("a") as output:
        done = subprocess.run(whole, stdout=output, stderr=subprocess.STDOUT, env=environment, check=False)
    if done.returncode:
        words = log.read_text(errors="replace")[-2000:]
        raise SystemExit(f"{' '.join(whole)}\nended with {done.returncode}; its words are in {log}:\n{words}")
