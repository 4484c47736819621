"""What a model is worth on GLUE: one run per task and seed, and a table of them.

    python tools/evaluate_glue.py --model runs/mine/student --data glue/ --tasks CoLA MRPC --seeds 0 1 2
    python tools/evaluate_glue.py --model runs/mine/student --data glue/ --preset mixkd --teacher bert-base-uncased
    python tools/evaluate_glue.py --model runs/mine/student --data glue/ --learning_rates 2e-5 5e-5 --epochs 3 5
    deepspeed --num_gpus 8 tools/evaluate_glue.py ...                  the same on several ranks

Every other flag of train.py works here too (--sequence_length, --task.fraction, --optimizer.warmup ...). With more than
one learning rate, number of epochs or batch size each combination is tried with one seed, the same whatever --seeds
says, on a tenth of the training examples that is held out for it; the best one is then used for all seeds, with all
training examples.
A run that is complete is not repeated and one that was stopped goes on, so the same command finishes the table.
Each run is a run directory <output_dir>/<task>-<seed>; beside them glue.md, glue.json and submission/.
"""

import argparse
import itertools
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from homodistil_ds.runtime import guard

if __name__ == "__main__":
    guard.install(leave_at_once=True)

from homodistil_ds.command import parse, to_the_end
from homodistil_ds.config import RunConfig, load_run_config
from homodistil_ds.data.glue import TASKS, task_named
from homodistil_ds.data.glue_files import check_files
from homodistil_ds.errors import HomodistilError
from homodistil_ds.evaluation.glue_table import cell_name, write_table
from homodistil_ds.machine import Machine
from homodistil_ds.methods import command_of, process_group, run_method
from homodistil_ds.methods.mixkd import TEACHER
from homodistil_ds.methods.start import check_same_values
from homodistil_ds.runtime import console, launch, ranks
from homodistil_ds.runtime.checkpoint import newest_first
from homodistil_ds.runtime.exit_reason import leave

HELD_OUT = 0.1  # of the training examples, to choose among settings
TRIAL_SEED = 0  # of these choices: elements of a job array, with a seed each, must choose alike


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    given, rest = flags().parse_known_args(arguments)
    return to_the_end(lambda: fill_table(given, rest, arguments), debug="--debug" in rest)


def fill_table(given: argparse.Namespace, rest: list[str], arguments: list[str]) -> None:
    """One run after the other, the table after each. Raises HomodistilError."""
    tasks = [task_named(name).name for name in given.tasks]
    start = ["--preset", given.preset, "--model", given.model, "--task.data", given.data, *rest]
    config, machine = parse(start, launch.is_first_rank())
    if config.method not in ("finetune", "mixkd"):
        what = "has a teacher for each task" if config.method == "minidisc" else "learns no task"
        raise HomodistilError(
            "CFG-PRESET",
            f"--preset {given.preset} {what}",
            "Use finetune, mixkd, task_kd or pkd; minidisc is for homodistil_ds/train.py.",
        )
    of_preset = "" if given.preset == "finetune" else f"-{given.preset}"
    folder = Path(given.output_dir or f"runs/glue-{name_of(given.model)}{of_preset}")
    for task in tasks:  # before hours go into the first of them
        check_files(given.data, task_named(task))
    with process_group(config.method):
        command = command_of("tools/evaluate_glue.py", arguments)
        for task in tasks:
            settings = chosen(config, machine, given, folder, task, command)
            for seed in given.seeds:
                cell = replace(settings, seed=seed, output_dir=str(folder / cell_name(task, seed)))
                complete(cell, machine, command)
                ranks.on_first(lambda: write_table(folder, given.model))
        if ranks.rank() == 0:
            console.say(f"\n{write_table(folder, given.model)}\n{folder}/glue.md")


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", required=True, help="folder or hub name")
    parser.add_argument("--data", default="nyu-mll/glue", help="folder of task folders, or a hub data set")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), metavar="TASK")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED")
    parser.add_argument("--output_dir", help="default: runs/glue-<model>, of other presets -<preset>")
    parser.add_argument("--preset", default="finetune", help="finetune, mixkd, task_kd or pkd")
    parser.add_argument("--learning_rates", nargs="+", type=float)
    parser.add_argument("--epochs", nargs="+", type=float)
    parser.add_argument("--batch_sizes", nargs="+", type=int)
    parser.add_argument("--save_models", action="store_true", help="keep every trained model")
    return parser


def name_of(model: str) -> str:
    """Of a run's student the run's name."""
    path = Path(model)
    return path.parent.name if path.name == "student" else path.name


def chosen(
    config: RunConfig, machine: Machine, given: argparse.Namespace, folder: Path, task: str, command: str
) -> RunConfig:
    """The run of a task, with the settings that did best on held-out training examples if there are several."""
    config = replace(config, save_student=given.save_models, task=replace(config.task, name=task))
    settings = list(grid(config, given))
    if len(settings) == 1:
        return settings[0]
    scores = []
    for number, setting in enumerate(settings):
        trial = replace(
            setting,
            seed=TRIAL_SEED,
            save_student=False,
            # A folder for each element of an array: one run directory takes one run at a time.
            output_dir=str(folder / "trials" / f"{cell_name(task, given.seeds[0])}-{number}"),
            task=replace(setting.task, held_out=HELD_OUT, predict=False),
        )
        scores.append(complete(trial, machine, command))
    return settings[max(range(len(settings)), key=scores.__getitem__)]


def grid(config: RunConfig, given: argparse.Namespace) -> Iterator[RunConfig]:
    rates = given.learning_rates or [config.learning_rate]
    sizes = given.batch_sizes or [config.global_batch_size]
    for rate, epochs, size in itertools.product(rates, given.epochs or [config.task.epochs], sizes):
        yield replace(config, learning_rate=rate, global_batch_size=size, task=replace(config.task, epochs=epochs))


def complete(config: RunConfig, machine: Machine, command: str) -> float:
    """Run it, unless it is complete, and return its score; all ranks call it."""
    run_dir = Path(config.output_dir)
    # What other ranks see of a network file system may be older than what rank 0 sees.
    done, began = ranks.told_by(0, ((run_dir / "report.json").exists(), has_begun(run_dir)))
    if not done:
        run_method(config, replace(machine, resume="auto" if began else "never"), command)
    else:
        ranks.on_first(lambda: check_same(config, run_dir))
    ranks.on_first(lambda: clear(run_dir, config.save_student))
    score = json.loads((run_dir / "report.json").read_text(encoding="utf-8"))["primary"] if ranks.rank() == 0 else 0.0
    return float(ranks.told_by(0, score))


def has_begun(run_dir: Path) -> bool:
    return bool(newest_first(run_dir / "checkpoints")) or (run_dir / TEACHER / "run.json").exists()


def check_same(config: RunConfig, run_dir: Path) -> None:
    """A complete run counts only if it is the one that is wanted. Raises HomodistilError."""
    before = load_run_config(run_dir / "run_config.json")
    remedy = "A table is of one model and one method: name another --output_dir, or give the flags of this one."
    check_same_values(replace(config, steps=config.steps or before.steps), asdict(before), str(run_dir), remedy)


def clear(run_dir: Path, keep_models: bool) -> None:
    """What a complete run needs no more: checkpoints, and the teacher's model unless models are kept."""
    for run in (run_dir, run_dir / TEACHER):
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
    if not keep_models:
        shutil.rmtree(run_dir / TEACHER / "student", ignore_errors=True)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
