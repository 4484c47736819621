"""What an assistant is worth and what it costs: MiniDisc's choice against every fixed choice, on tasks and on text.

    python benchmarks/minidisc.py --output_dir runs/minidisc --teacher T --corpus enwiki.train.txt.xz --data glue/
    python benchmarks/minidisc.py --output_dir runs/minidisc ... --parts tasks         # a part of it
    python benchmarks/minidisc.py --output_dir runs/seven ... --parts family --scales 0.75 0.5 0.35 0.25 0.15
    python benchmarks/minidisc.py --output_dir runs/minidisc --table                   # what there is so far
    python benchmarks/minidisc.py --output_dir elsewhere ... --known minidisc.json     # without what that file has

Every cell is a run directory made by the real commands, one process with one thread each, --jobs at a time; what is
complete is not repeated. A trial leaves a student of every scale; each of them but the last then teaches the targets
below it, whichever the trade-off prefers, so the choice is judged against the best that could have been chosen. Direct
distillation has as many steps, and in an arm of its own twice as many, which is what a trial and a second run have.
What judges a trial on a task is held out of the training examples, and its teacher has not seen it either.
"""

import argparse
import itertools
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import minidisc_table
from minidisc_cost import measure
from quality_cells import (
    ROOT,
    SHARES,
    TASKS,
    TRAIN,
    Cells,
    Item,
    as_flags,
    epochs,
    execute,
    prepare_corpus,
    side_by_side,
)
from transformers import AutoConfig

from homodistil_ds.methods.minidisc import HELD_OUT_SHARE
from homodistil_ds.models.families import plan_for
from homodistil_ds.models.loading import folder_of

PARTS = ("tasks", "text", "text_on_tasks", "cost")  # unless some are named; "family" is a part of "text"
FIXED = ("teacher", "corpus", "scales", "targets", "epochs", "learning_rate", "text_steps", "text_rate")
FIXED += ("batch", "sequence_length", "held_out_sequences")
FORM = 2  # of the comparison itself: the cells of another one do not fit beside its own


def main() -> None:
    given = flags().parse_args()
    given.output_dir.mkdir(parents=True, exist_ok=True)
    known = minidisc_table.known_from(given.known)
    bench = Bench(given, known)
    bench.check_same()
    for part in () if given.table else given.parts:
        bench.parts[part]()
    print(minidisc_table.write(given.output_dir, known))


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--teacher", default="builtin", help="of language, whose fine-tuned versions teach the tasks")
    parser.add_argument("--corpus", nargs="+", default=["builtin"])
    parser.add_argument("--data", help="folder of GLUE task folders, or a hub data set")
    parser.add_argument("--parts", nargs="+", choices=(*PARTS, "family"), default=list(PARTS))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--scales", type=float, nargs="+", default=[0.5, 0.3, 0.2], help="that may teach")
    parser.add_argument("--targets", type=float, nargs="+", default=[0.1, 0.05])
    parser.add_argument("--epochs", type=float, default=1.0, help="times the epochs of each task")
    parser.add_argument("--learning_rate", type=float, default=2e-4, help="on tasks")
    parser.add_argument("--text_steps", type=int, default=300)
    parser.add_argument("--text_rate", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=16, help="sequences per step of text")
    parser.add_argument("--sequence_length", type=int, default=128)
    parser.add_argument("--held_out_sequences", type=int, default=128)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one process with one thread each")
    parser.add_argument("--deepspeed_config", default=str(ROOT / "ds_configs" / "zero2.json"))
    parser.add_argument("--known", type=Path, help="a minidisc.json of the same comparison, not to be measured again")
    parser.add_argument("--table", action="store_true", help="run nothing, write the tables of what there is")
    return parser


class Bench:
    """The parts of the comparison, each a set of cells of one folder."""

    def __init__(self, given: argparse.Namespace, known: minidisc_table.Known) -> None:
        self.given = given
        self.known = known
        self.folder: Path = given.output_dir
        self.cells = Cells(given, plan_for(AutoConfig.from_pretrained(folder_of(given.teacher))))
        self.targets = scales_text(given.targets)
        self.family = scales_text([*given.scales, *given.targets])
        self.parts = {
            "tasks": self.tasks,
            "text": self.text,
            "text_on_tasks": self.text_on_tasks,
            "family": self.family_alone,
            "cost": self.cost,
        }

    def check_same(self) -> None:
        path = self.folder / "settings.json"
        own: dict[str, Any] = {name: getattr(self.given, name) for name in FIXED} | {"form": FORM}
        own["corpus"] = [Path(source).name for source in own["corpus"]]  # they lie elsewhere on another machine
        others = [json.loads(path.read_text())] if path.exists() else []
        for before in [*others, *([self.known["settings"]] if self.known else [])]:
            if changed := [name for name in own if own[name] != before.get(name)]:
                raise SystemExit(f"{self.folder} or --known is of another comparison, of other {changed}.")
        path.write_text(json.dumps(own, indent=1) + "\n")

    def tasks(self) -> None:
        self.each(self.given.tasks, self.make_task_teacher)
        cells = [
            cell for cell in itertools.product(self.given.tasks, self.given.seeds) if not self.knows("tasks", *cell)
        ]
        self.each(cells, lambda cell: self.on_task(*cell))

    def knows(self, part: str, name: str, seed: int) -> bool:
        return any((row["name"], row["seed"]) == (name, seed) for row in self.known.get(part, ()))

    def task_teacher(self, task: str) -> str:
        """The folder of the teacher that has learnt a task."""
        return str(self.folder / "teachers" / task / "student")

    def make_task_teacher(self, task: str) -> None:
        values = {"preset": "finetune", "model": self.given.teacher, **self.of(task)}
        self.train(self.folder / "teachers" / task, values)

    def of(self, task: str, times: float = 1.0) -> dict[str, Any]:
        """What all runs on a task have in common; `times` the epochs."""
        share = SHARES.get(task, 1.0)
        return {
            "task.name": task,
            "task.data": self.given.data,
            "task.fraction": share,
            "task.held_out": HELD_OUT_SHARE,
            "task.epochs": times * self.given.epochs * epochs(task, share),
            "learning_rate": self.given.learning_rate,
            "sequence_length": self.given.sequence_length,
            "eval_interval": 0,
        }

    def on_task(self, task: str, seed: int) -> None:
        """The trial, direct distillation with as many steps and with twice as many, and every assistant's turn."""
        place, teacher = self.folder / "tasks" / task / str(seed), self.task_teacher(task)
        common = {"preset": "minidisc", "assistant": "none", "seed": seed}

        def run(name: str, family: str, times: float = 1.0, **more: Any) -> None:
            self.train(place / name, {"teacher": teacher, "family": family, **self.of(task, times), **common, **more})

        run("trial", self.family)
        # All but the trial, which chooses, learn from every example that is used and are judged by the development set.
        whole = {"task.held_out": 0.0}
        run("direct", self.targets, **whole)
        run("direct-twice", self.targets, times=2.0, **whole)
        for scale, below in self.assistants():
            student = place / "trial" / "students" / f"{scale:g}"
            run(f"assistant-{scale:g}", below, teacher=str(student), scales_of=teacher, **whole)
        self.forget(place)

    def assistants(self) -> list[tuple[float, str]]:
        """Every scale that may teach, with the targets below it."""
        scales = [*self.given.scales, *self.given.targets[:-1]]
        return [(scale, scales_text(target for target in self.given.targets if target < scale)) for scale in scales]

    def text(self) -> None:
        """The same on the path of one homotopic descent, and the smallest target alone, for the family's cost."""
        prepare_corpus(self.given, self.given.teacher)
        seeds = [seed for seed in self.given.seeds if not self.knows("text", "text", seed)]
        self.each(seeds, lambda seed: self.distil("trial", self.family, seed))
        direct = [("direct", self.targets, 1, None), ("direct-twice", self.targets, 2, None)]
        taught = [(f"assistant-{scale:g}", below, 1, scale) for scale, below in self.assistants()]
        cells = itertools.product([*direct, *taught], seeds)
        self.each(cells, lambda cell: self.distil(cell[0][0], cell[0][1], cell[1], cell[0][2], cell[0][3]))
        self.each(seeds, self.alone)

    def family_alone(self) -> None:
        """What a family costs: the descent that leaves it, and the smallest alone, without any assistant's turn."""
        prepare_corpus(self.given, self.given.teacher)
        self.each(self.given.seeds, lambda seed: self.distil("trial", self.family, seed))
        self.each(self.given.seeds, self.alone)

    def alone(self, seed: int) -> None:
        """The smallest student of the trial by itself, at the very shape that it has there."""
        family = json.loads((self.folder / "text" / str(seed) / "trial" / "report.json").read_text())["family"]
        names = ("hidden_size", "intermediate_size", "num_attention_heads")
        shape = {f"student.{name}": family[-1]["widths"][name] for name in names}
        self.distil(f"alone-{family[-1]['scale']:g}", "", seed, **shape)

    def distil(
        self, name: str, family: str, seed: int, times: int = 1, assistant: float | None = None, **more: Any
    ) -> None:
        """`more` are flags of a run of one student, in place of a `family`."""
        place = self.folder / "text" / str(seed)
        values: dict[str, Any] = {
            "preset": "homobert_small",
            "teacher": self.given.teacher,
            "corpus": self.folder / "corpus",
            **({"family": family} if family else more),
            "steps": times * self.given.text_steps,
            "learning_rate": self.given.text_rate,
            "global_batch_size": self.given.batch,
            "sequence_length": self.given.sequence_length,
            "held_out_sequences": self.given.held_out_sequences,
            "eval_interval": 0,
            "save_interval": 0,
            "pruning.interval": 5,
            "seed": seed,
        }
        if assistant is not None:
            values["teacher"] = place / "trial" / "students" / f"{assistant:g}"
            values["scales_of"] = self.given.teacher
        self.train(place / name, values)

    def text_on_tasks(self) -> None:
        """The students of every seed's descents at every target, fine-tuned with that seed."""
        arms = [("direct", self.targets), ("direct-twice", self.targets)]
        arms += [(f"assistant-{scale:g}", below) for scale, below in self.assistants()]
        models = [(arm, float(target)) for arm, targets in arms for target in targets.split(",")]
        cells = itertools.product(self.given.seeds, models, self.given.tasks)
        self.each(cells, lambda cell: self.learn(cell[0], *cell[1], cell[2]))

    def learn(self, seed: int, arm: str, target: float, task: str) -> None:
        last = target == self.given.targets[-1]
        own = self.folder / "text" / str(seed) / arm
        folder = self.folder / "text_on_tasks" / str(seed) / f"{arm}-at-{target:g}"
        known = self.known.get("text_on_tasks", {}).get(folder.name, {}).get(task, ())
        if seed in [run["seed"] for run in known]:
            return
        model = own / "student" if last else own / "students" / f"{target:g}"
        self.cells.learn(folder, str(model), task, "finetune", [seed], SHARES.get(task, 1.0))

    def cost(self) -> None:
        if not (self.folder / "cost.json").exists():
            self.make_task_teacher("MRPC")
            found = measure(self.folder / "cost", self.task_teacher("MRPC"), self.given.data)
            (self.folder / "cost.json").write_text(json.dumps(found, indent=1) + "\n")

    def train(self, place: Path, values: dict[str, Any]) -> None:
        """One run, unless it is complete."""
        if not (place / "report.json").exists():
            shutil.rmtree(place, ignore_errors=True)
            values = {**values, "output_dir": place, "deepspeed_config": self.given.deepspeed_config}
            no_predictions = ["--task.no-predict"] if "task.name" in values else []
            execute([str(TRAIN), *as_flags(values), *no_predictions], place.with_name(f"{place.name}.log"))
            for heavy in ("checkpoints", "tb", "logs"):
                shutil.rmtree(place / heavy, ignore_errors=True)
            print(f"done: {place}", flush=True)

    def forget(self, place: Path) -> None:
        """The weights on a task whose arms are all complete."""
        for folder in (*place.glob("*/students"), *place.glob("*/student")):
            shutil.rmtree(folder)

    def each(self, items: Iterable[Item], action: Callable[[Item], object]) -> None:
        side_by_side(self.given.jobs, items, action)


def scales_text(scales: Iterable[float]) -> str:
    return ",".join(f"{scale:g}" for scale in scales)


if __name__ == "__main__":
    main()
