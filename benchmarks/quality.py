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
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import quality_table
from quality_arms import FIRST_LAYERS, FULL_METHOD, Arm, ablations, arms
from quality_cells import FEW, ROOT, SHARES, TASKS, Cells, Item, epochs, prepare_corpus, side_by_side
from transformers import AutoConfig

from homodistil_ds.models.families import plan_for
from homodistil_ds.models.loading import folder_of

PARTS = ("distil", "ablate", "glue", "mixkd")
RATES = (1e-3, 2e-3, 4e-3)
# Folder -> preset, and times the epochs: MixKD shows a mixture beside every example, twice the rows of plain KD.
ON_TASKS = {
    "fine-tuning": ("finetune", 1.0),
    "KD": ("task_kd", 1.0),
    "MixKD": ("mixkd", 1.0),
    "KD-twice": ("task_kd", 2.0),
}
# One folder is of one comparison: these decide its figures.
FIXED = ("teacher", "corpus", "data", "steps", "batch", "sequence_length", "held_out_sequences", "rates", "epochs")
FIXED += ("learning_rate", "deepspeed_config")


def main() -> None:
    given = flags().parse_args()
    given.output_dir.mkdir(parents=True, exist_ok=True)
    if not given.table:
        bench = Bench(given)
        bench.check_same()
        if {"distil", "ablate"} & set(given.parts):
            prepare_corpus(given, given.teacher)
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
    parser.add_argument("--held_out_sequences", type=int, default=128)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of GLUE")
    parser.add_argument("--mixkd_seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--mixkd_shares", type=float, nargs="+", default=[FEW, 1.0], help="of the training examples")
    parser.add_argument("--mixkd_arms", nargs="+", choices=ON_TASKS, default=list(ON_TASKS))
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
    """The parts of the comparison, each a set of cells of one folder."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.folder: Path = given.output_dir
        self.plan = plan_for(AutoConfig.from_pretrained(folder_of(given.teacher)))
        self.cells = Cells(given, self.plan)

    def check_same(self) -> None:
        """What decides the figures is written down by the first call; later ones may add seeds."""
        path = self.folder / "settings.json"
        own: dict[str, Any] = {name: getattr(self.given, name) for name in FIXED}
        before: dict[str, Any] = json.loads(path.read_text()) if path.exists() else own
        differing = [
            f"--{name} was {before.get(name)}, is {own[name]}" for name in own if before.get(name) != own[name]
        ]
        if differing:
            raise SystemExit(
                f"{self.folder} holds another comparison: {'; '.join(differing)}. Use another --output_dir."
            )
        for name in ("seeds", "mixkd_seeds"):
            own[name] = sorted({*before.get(name, []), *getattr(self.given, name)})
        own["shares"], own["epochs_on_tasks"] = SHARES, {task: self.epochs(task) for task in TASKS}
        path.write_text(json.dumps(own, indent=1) + "\n")

    def epochs(self, task: str) -> float:
        return self.given.epochs * epochs(task, SHARES.get(task, 1.0))

    def distil(self) -> None:
        self.each(self.wanted(arms(self.plan)), lambda arm: self.run(arm, self.cells.rate(arm)))

    def ablate(self) -> None:
        full = next(arm for arm in arms(self.plan) if arm.name == FULL_METHOD)
        rate = self.cells.rate(full)
        self.each(self.wanted(ablations(self.plan)), lambda arm: self.run(arm, rate))

    def run(self, arm: Arm, rate: float) -> None:
        self.cells.distil(arm, rate, self.cells.place(arm.name))

    def glue(self) -> None:
        """The teacher and every student, PKD's start too, fine-tuned; PKD itself from the teachers left behind."""
        if not self.given.data:
            return
        self.each(self.given.tasks, lambda task: self.tune("teacher", self.given.teacher, task, keep=True))
        trained = [arm.name for arm in self.wanted(arms(self.plan))]
        students = itertools.product(trained, self.given.tasks)
        self.each(students, lambda cell: self.tune(cell[0], self.student(cell[0]), cell[1]))
        if FIRST_LAYERS in trained:
            self.each(itertools.product(self.given.tasks, self.given.seeds), lambda cell: self.patient(*cell))

    def student(self, name: str) -> str:
        return str(self.cells.place(name) / "student")

    def tune(self, name: str, model: str, task: str, keep: bool = False) -> None:
        folder = self.folder / "glue" / self.cells.place(name).name
        self.cells.learn(folder, model, task, "finetune", self.given.seeds, SHARES.get(task, 1.0), keep=keep)

    def patient(self, task: str, seed: int) -> None:
        """PKD, from the teacher's own run with the same seed: it has seen the same examples."""
        folder, teacher = self.folder / "glue" / "pkd", self.folder / "glue" / "teacher" / f"{task}-{seed}" / "student"
        model, share = self.student(FIRST_LAYERS), SHARES.get(task, 1.0)
        self.cells.learn(folder, model, task, "pkd", [seed], share, teacher=str(teacher))

    def mixkd(self) -> None:
        """MixKD, plain KD, also twice as long, and fine-tuning of the same student, on all examples and on few."""
        if not self.given.data:
            return
        cells = list(itertools.product(self.given.mixkd_seeds, self.given.mixkd_shares, self.given.tasks))
        teachers = {(task, share, teacher_seed(share, seed)) for seed, share, task in cells}
        self.each(sorted(teachers), lambda cell: self.teach(*cell))
        # Arms one after the other: what is asked for is there before what it costs most to know.
        self.each(itertools.product(self.given.mixkd_arms, cells), lambda cell: self.compare(cell[0], *cell[1]))

    def compare(self, arm: str, seed: int, share: float, task: str) -> None:
        """An arm with one seed; with few examples its teacher has seen no more than these."""
        preset, times = ON_TASKS[arm]
        folder, student = self.mixed(task, share) / arm, self.student(FULL_METHOD)
        if preset == "finetune":
            self.taken_over(self.cells.place(FULL_METHOD).name, folder, task, share, seed)
            self.cells.learn(folder, student, task, preset, [seed], share, times=times)
            return
        teacher = str(self.mixed(task, share) / "teacher" / f"{task}-{teacher_seed(share, seed)}" / "student")
        self.cells.learn(folder, student, task, preset, [seed], share, teacher=teacher, times=times)

    def teach(self, task: str, share: float, seed: int) -> None:
        """A teacher that has learnt a share of a task's examples."""
        folder = self.mixed(task, share) / "teacher"
        self.taken_over("teacher", folder, task, share, seed)
        self.cells.learn(folder, self.given.teacher, task, "finetune", [seed], share, keep=True)

    def mixed(self, task: str, share: float) -> Path:
        return self.folder / "mixkd" / f"{task}-{share:g}"

    def taken_over(self, name: str, folder: Path, task: str, share: float, seed: int) -> None:
        """Fine-tuning that the table of tasks has made already, with the same flags, is not made again."""
        made, place = self.folder / "glue" / name / f"{task}-{seed}", folder / f"{task}-{seed}"
        if share == SHARES.get(task, 1.0) and (made / "report.json").exists() and not place.exists():
            unfinished = self.folder / f"{folder.parent.name}-{folder.name}-{seed}.partial"
            shutil.rmtree(unfinished, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copytree(made, unfinished)
            unfinished.rename(place)

    def wanted(self, arms: Sequence[Arm]) -> list[Arm]:
        return [arm for arm in arms if not self.given.only or arm.name in self.given.only]

    def each(self, items: Iterable[Item], action: Callable[[Item], object]) -> None:
        side_by_side(self.given.jobs, items, action)


def teacher_seed(share: float, seed: int) -> int:
    """With all examples one teacher is enough for all seeds."""
    return 0 if share == 1.0 else seed


if __name__ == "__main__":
    main()
