"""What is the student worth: HomoDistil at three sizes, the baselines, the ablations, GLUE and MixKD, in one table.

    python benchmarks/quality.py --output_dir runs/quality --teacher T --corpus enwiki.train.txt.xz --data glue/
    python benchmarks/quality.py --output_dir runs/quality ... --parts distil ablate          # a part of it
    python benchmarks/quality.py --output_dir runs/quality --table                            # what there is so far

Every cell is a run directory made by the real commands, one process with one thread each, --jobs at a time; what is
complete is not repeated, so the command goes on where it was. Every arm gets the same data in the same order, the same
number of tokens and the same tuning: short trials at the same learning rates, of which the one counts whose own
objective is lowest at the end. It writes quality.md, quality.json and discrepancy.png into the folder.
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import quality_table
from quality_arms import FULL_METHOD, Arm, Flags, ablations, arms
from transformers import AutoConfig

from homodistil_ds.models.families import plan_for
from homodistil_ds.models.loading import folder_of

ROOT = Path(__file__).resolve().parent.parent
TRAIN, GLUE = ROOT / "homodistil_ds" / "train.py", ROOT / "tools" / "evaluate_glue.py"
PARTS = ("distil", "ablate", "glue", "mixkd")
RATES = (5e-4, 1e-3, 2e-3, 4e-3)
STILL = 1e-9  # the learning rate of a student that is not trained
TRIAL = 8  # a trial has one in so many of the steps
TASKS = {"SST-2": 1.0, "MRPC": 5.0, "CoLA": 3.0}  # epochs on all training examples
FEW = 0.1  # the limited share of the training examples; as many epochs as make up a third of the steps
ARMS_ON_TASKS = {"fine-tuning": "finetune", "KD": "task_kd", "MixKD": "mixkd"}
Item = TypeVar("Item")


def main() -> None:
    given = flags().parse_args()
    given.output_dir.mkdir(parents=True, exist_ok=True)
    if not given.table:
        bench = Bench(given)
        bench.check_same()
        bench.prepare()
        for part in given.parts:
            getattr(bench, part)()
    print(quality_table.write(given.output_dir))


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--teacher", default="builtin")
    parser.add_argument("--corpus", nargs="+", default=["builtin"])
    parser.add_argument("--data", help="folder of GLUE task folders, or a hub data set")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16, help="sequences per step")
    parser.add_argument("--sequence_length", type=int, default=128)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of GLUE")
    parser.add_argument("--mixkd_seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES), help="tried by each arm of its own")
    parser.add_argument("--only", nargs="+", help="arms with these names")
    parser.add_argument("--epochs", type=float, default=1.0, help="times the epochs of each task")
    parser.add_argument("--learning_rate", type=float, default=2e-4, help="on tasks")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one process with one thread each")
    parser.add_argument("--deepspeed_config", default=str(ROOT / "ds_configs" / "zero2.json"))
    parser.add_argument("--table", action="store_true", help="run nothing, write the table of what there is")
    return parser


class Bench:
    """The cells of one folder."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.folder: Path = given.output_dir
        self.plan = plan_for(AutoConfig.from_pretrained(folder_of(given.teacher)))

    def check_same(self) -> None:
        """One folder is of one comparison: what decides its figures is written down by the first call."""
        names = ("teacher", "corpus", "data", "steps", "batch", "sequence_length", "rates", "epochs", "learning_rate")
        own = {name: getattr(self.given, name) for name in names}
        path = self.folder / "settings.json"
        if not path.exists():
            path.write_text(json.dumps(own, indent=1) + "\n")
        before = json.loads(path.read_text())
        differing = [f"--{name} was {before[name]}, is {own[name]}" for name in names if before[name] != own[name]]
        if differing:
            raise SystemExit(
                f"{self.folder} holds another comparison: {'; '.join(differing)}. Use another --output_dir."
            )

    def prepare(self) -> None:
        """The corpus, once for all."""
        command = [str(ROOT / "tools" / "prepare_corpus.py"), "--corpus", *self.given.corpus]
        command += ["--teacher", self.given.teacher, "--output_dir", str(self.corpus)]
        command += ["--sequence_length", str(self.given.sequence_length)]
        execute(command, self.folder / "corpus.log")

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus"

    # --- the parts ----------------------------------------------------------------------------------------------

    def distil(self) -> None:
        self.each(self.wanted(arms(self.plan)), lambda arm: self.run(arm, self.rate(arm), self.place(arm.name)))

    def ablate(self) -> None:
        full = next(arm for arm in arms(self.plan) if arm.name == FULL_METHOD)
        rate = self.rate(full)
        self.each(self.wanted(ablations(self.plan)), lambda arm: self.run(arm, rate, self.place(arm.name)))

    def glue(self) -> None:
        """Every student and the teacher on the tasks; PKD learns from the teacher that this part leaves behind."""
        if not self.given.data:
            return
        self.task_runs("teacher", self.given.teacher, "finetune", keep=True)
        trained = [arm.name for arm in self.wanted(arms(self.plan)) if arm.kind == "arm"]
        self.each(trained, lambda name: self.task_runs(name, str(self.place(name) / "student"), "finetune"))
        if (self.place("pkd") / "arm.json").exists():
            self.each(itertools.product(self.given.tasks, self.given.seeds), lambda cell: self.patient(*cell))

    def patient(self, task: str, seed: int) -> None:
        """PKD, from the teacher's own run with the same seed: it has seen the same examples."""
        flags, more = self.budget(task)
        flags = {**flags, "teacher": str(self.folder / "glue" / "teacher" / f"{task}-{seed}" / "student")}
        self.task_run(
            self.folder / "glue" / "pkd", str(self.place("pkd") / "student"), task, "pkd", [seed], flags, more
        )

    def mixkd(self) -> None:
        """MixKD, plain KD and fine-tuning of the same student, on all training examples and on few."""
        if not self.given.data:
            return
        self.each(self.given.tasks, self.whole_teacher)
        cells = [
            (task, share, seed) for task in self.given.tasks for share in (FEW, 1.0) for seed in self.given.mixkd_seeds
        ]
        self.each(cells, lambda cell: self.compare(*cell))

    def compare(self, task: str, share: float, seed: int) -> None:
        """The three arms with one seed; with few examples their teacher has seen no more than these."""
        student = str(self.place(FULL_METHOD) / "student")
        folder = self.folder / "mixkd" / f"{task}-{share:g}"
        few: Flags = {} if share == 1.0 else {"task.fraction": share}
        more = 1.0 if share == 1.0 else 1 / (3 * share)
        if share == 1.0:
            teacher = self.whole_teacher(task)
        else:
            self.task_run(folder / "teacher", self.given.teacher, task, "finetune", [seed], few, more, keep=True)
            teacher = str(folder / "teacher" / f"{task}-{seed}" / "student")
        for arm, preset in ARMS_ON_TASKS.items():
            taught = {} if preset == "finetune" else {"teacher": teacher}
            self.task_run(folder / arm, student, task, preset, [seed], {**few, **taught}, more)

    # --- cells --------------------------------------------------------------------------------------------------

    def wanted(self, arms: Sequence[Arm]) -> list[Arm]:
        return [arm for arm in arms if not self.given.only or arm.name in self.given.only]

    def each(self, items: Iterable[Item], action: Callable[[Item], object]) -> None:
        with ThreadPoolExecutor(self.given.jobs) as pool:
            list(pool.map(action, items))

    def place(self, name: str) -> Path:
        return self.folder / "distil" / Arm(name=name, flags={}).folder

    def whole_teacher(self, task: str) -> str:
        """One that has learnt from all examples of a task."""
        folder = self.folder / "mixkd" / f"{task}-1" / "teacher"
        self.task_run(folder, self.given.teacher, task, "finetune", [0], {}, keep=True)
        return str(folder / f"{task}-0" / "student")

    def rate(self, arm: Arm) -> float:
        """The learning rate whose trial ended with the lowest objective of its own, over the last quarter."""
        found: dict[float, float] = {}
        if arm.kind == "start":
            return STILL
        if len(self.given.rates) == 1:
            return self.given.rates[0]
        for rate in self.given.rates:
            place = self.folder / "trials" / f"{arm.folder}-{rate:g}"
            trial: Flags = {"steps": max(4, self.given.steps // TRIAL), "eval_interval": 0, "log_interval": 1}
            report = self.run(replace(arm, flags={**arm.flags, **trial}), rate, place)
            totals = [row["total"] for row in report["history"] if "total" in row]
            found[rate] = statistics.mean(totals[-max(1, len(totals) // 4) :])
        return min(found, key=found.__getitem__)

    def run(self, arm: Arm, rate: float, place: Path) -> dict:
        """One distillation, unless it is complete; its report."""
        if not (place / "arm.json").exists():
            shutil.rmtree(place, ignore_errors=True)
            values: Flags = {
                "teacher": self.given.teacher,
                "corpus": str(self.corpus),
                "output_dir": str(place),
                "steps": self.given.steps,
                "global_batch_size": self.given.batch,
                "sequence_length": self.given.sequence_length,
                "learning_rate": rate,
                "eval_interval": max(1, self.given.steps // 10),
                "held_out_sequences": 128,
                "pruning.interval": 5,
                **arm.flags,
            }
            command = [str(TRAIN), "--deepspeed_config", self.given.deepspeed_config]
            command += [part for name, value in values.items() for part in (f"--{name}", str(value))]
            execute(command, place.with_name(f"{place.name}.log"))
            for heavy in ("checkpoints", "tb", "logs"):
                shutil.rmtree(place / heavy, ignore_errors=True)
            facts = {
                **vars(arm),
                "learning_rate": rate,
                "at_edge": rate in (min(self.given.rates), max(self.given.rates)),
            }
            (place / "arm.json").write_text(json.dumps(facts) + "\n")
            print(f"done: {place.parent.name}/{place.name}", flush=True)
        return json.loads((place / "report.json").read_text())

    def task_runs(self, name: str, model: str, preset: str, keep: bool = False) -> None:
        for task in self.given.tasks:
            folder = self.folder / "glue" / self.place(name).name
            self.task_run(folder, model, task, preset, self.given.seeds, *self.budget(task), keep)

    def budget(self, task: str) -> tuple[Flags, float]:
        """Flags and times the epochs: all of SST-2 would cost more than everything else together."""
        return ({"task.fraction": FEW}, 3.0) if task == "SST-2" else ({}, 1.0)

    def task_run(
        self,
        folder: Path,
        model: str,
        task: str,
        preset: str,
        seeds: Sequence[int],
        more_flags: Flags,
        more_epochs: float = 1.0,
        keep: bool = False,
    ) -> None:
        """tools/evaluate_glue.py on one task."""
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
            "epochs": TASKS[task] * more_epochs * self.given.epochs,
            "log_interval": 100,
            "sequence_length": self.given.sequence_length,
            **more_flags,
        }
        command = [str(GLUE), *(part for name, value in values.items() for part in (f"--{name}", str(value)))]
        command += ["--seeds", *map(str, seeds), "--task.no-predict", *(["--save_models"] if keep else [])]
        folder.mkdir(parents=True, exist_ok=True)
        execute(command, folder / f"{task}.log")
        print(f"done: {folder.parent.name}/{folder.name} {task} {list(seeds)}", flush=True)


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


if __name__ == "__main__":
    main()
