"""HomoDistil against one-shot pruning with the same distillation and against a random start: equal data, equal steps;
one-shot also at equal FLOPs.

    python benchmarks/homotopy.py --output_dir runs/homotopy                      # budgets, compressions, three seeds
    python benchmarks/homotopy.py --output_dir runs/homotopy --budgets 500 --seeds 0
    python benchmarks/homotopy.py --output_dir runs/homotopy --map                # one setting at a time

Every run is the real command; a run that is already there is not repeated, so the calls above add up. Each prints a
Markdown table of all runs in the folder and writes results.json and discrepancy.png.
"""

import argparse
import dataclasses
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from matplotlib.figure import Figure
from transformers import AutoConfig

from homodistil_ds.models.families import plan_for
from homodistil_ds.models.loading import folder_of
from homodistil_ds.models.width import WidthPlan, Widths
from homodistil_ds.pruning.schedule import WidthSchedule

ROOT = Path(__file__).resolve().parent.parent
TRAIN = ROOT / "homodistil_ds" / "train.py"
SCORED_BEFORE_ONE_SHOT = 8  # steps, at the low learning rate of the warm-up
PREDICTED = 0.15
DEFAULT = {"learning_rate": 1e-3, "pruning.end": 0.7, "pruning.interval": 5, "pruning.beta": 0.85}
ARMS = ("homotopic", "one-shot", "one-shot, equal FLOPs", "random")
MAP = {
    "pruning.end": (0.1, 0.3, 0.5, 0.9),
    "learning_rate": (5e-4, 2e-3, 4e-3),
    "pruning.interval": (1, 20),
    "pruning.beta": (0.0, 0.97),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One training run; `compression` is the target over the teacher's width, `flops` its cost in teacher forwards."""

    arm: str
    compression: float
    budget: int
    seed: int
    steps: int
    flags: tuple[tuple[str, float | str], ...]

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.compression}-{self.budget}-{self.seed}"


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--output_dir", type=Path, required=True)
    flags.add_argument("--teacher", default="builtin")
    flags.add_argument("--corpus", nargs="+", default=["builtin"])
    flags.add_argument("--budgets", type=int, nargs="+", default=[150], help="optimizer steps")
    flags.add_argument("--compressions", type=float, nargs="+", default=[0.5, 0.25])
    flags.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    flags.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    flags.add_argument("--learning_rate", type=float, default=DEFAULT["learning_rate"])
    flags.add_argument("--batch", type=int, default=16, help="sequences of 128 tokens per step")
    flags.add_argument(
        "--map", nargs="*", choices=MAP, help="vary these settings (all if none is named), one at a time"
    )
    flags.add_argument("--jobs", type=int, default=2, help="runs at a time, one process with one thread each")
    flags.add_argument("--deepspeed_config", default=str(ROOT / "ds_configs" / "zero2.json"))
    given = flags.parse_args()
    plan = plan_for(AutoConfig.from_pretrained(folder_of(given.teacher)))
    wanted = arm_runs(given, plan) if given.map is None else map_runs(given)
    first, *others = wanted
    execute(first, given, plan)  # packs the corpus for the others
    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(lambda run: execute(run, given, plan), others))
    rows = collect(given.output_dir)
    (given.output_dir / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    draw(given.output_dir, rows)
    print(table(rows))


def target(plan: WidthPlan, compression: float) -> Widths:
    """The teacher's widths times `compression`; the heads stay, their size shrinks."""
    full = plan.full
    size = round(full.head_size * compression)
    return Widths(hidden=full.heads * size, ffn=round(full.ffn * compression), heads=full.heads, head_size=size)


def arm_runs(given: argparse.Namespace, plan: WidthPlan) -> list[Run]:
    """The arms at equal steps, one-shot also at the homotopic run's FLOPs."""
    runs = []
    rate = given.learning_rate
    changed, label = (
        ({}, "") if rate == DEFAULT["learning_rate"] else ({"learning_rate": rate}, f" learning_rate {rate:g}")
    )
    for seed, budget in itertools.product(given.seeds, given.budgets):
        for arm, compression in itertools.product(given.arms, given.compressions):
            schedule = schedule_of(plan, compression, budget, DEFAULT["pruning.end"])
            steps = equal_flops_steps(plan, schedule, budget) if "equal FLOPs" in arm else budget
            runs.append(make_run(arm + label, compression, budget, seed, steps, changed))
    return runs


def map_runs(given: argparse.Namespace) -> list[Run]:
    """The homotopic arm with one setting changed, and one-shot at the other learning rates for a fair comparison."""
    runs = []
    for budget, compression, seed in itertools.product(given.budgets, given.compressions, given.seeds):
        for setting in given.map or MAP:
            for value in MAP[setting]:
                changed, label = {setting: value}, f"{setting.split('.')[-1]} {value:g}"
                runs.append(make_run(f"homotopic {label}", compression, budget, seed, budget, changed))
                if setting == "learning_rate":
                    runs.append(make_run(f"one-shot {label}", compression, budget, seed, budget, changed))
    return runs


def make_run(
    arm: str, compression: float, budget: int, seed: int, steps: int, changed: dict[str, float] | None = None
) -> Run:
    values: dict[str, float | str] = {**DEFAULT, **(changed or {})}
    if arm.startswith("one-shot"):
        share = SCORED_BEFORE_ONE_SHOT / steps
        values |= {"pruning.start": share, "pruning.end": share}
    if arm.startswith("random"):
        values |= {"student.init": "random"}
    return Run(arm=arm, compression=compression, budget=budget, seed=seed, steps=steps, flags=tuple(values.items()))


def execute(run: Run, given: argparse.Namespace, plan: WidthPlan) -> None:
    folder = given.output_dir / run.name.replace(" ", "_").replace(",", "")
    if (folder / "report.json").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    packed = given.output_dir / "corpus"
    if packed.exists():
        shutil.copytree(packed, folder / "corpus")
    widths = target(plan, run.compression)
    values: dict[str, float | int | str] = {
        **dict(run.flags),
        "teacher": given.teacher,
        "output_dir": str(folder),
        "steps": run.steps,
        "seed": run.seed,
        "global_batch_size": given.batch,
        "student.hidden_size": widths.hidden,
        "student.intermediate_size": widths.ffn,
        "student.num_attention_heads": widths.heads,
        "eval_interval": max(1, run.steps // 8),
        "held_out_sequences": 128,
    }
    command = [sys.executable, str(TRAIN), "--deepspeed_config", given.deepspeed_config, "--corpus", *given.corpus]
    command += [part for name, value in values.items() for part in (f"--{name}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    given.output_dir.mkdir(parents=True, exist_ok=True)
    with Path(f"{folder}.log").open("w") as output:
        subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment, check=True)
    if not packed.exists():
        shutil.copytree(folder / "corpus", packed)
    for heavy in ("checkpoints", "corpus", "tb", "student"):
        shutil.rmtree(folder / heavy, ignore_errors=True)
    (folder / "benchmark.json").write_text(json.dumps(dataclasses.asdict(run)) + "\n")
    print(f"done: {run.name}", flush=True)


def schedule_of(plan: WidthPlan, compression: float, steps: int, end: float) -> WidthSchedule:
    return WidthSchedule(
        full=plan.full, target=target(plan, compression), start=0, end=max(1, round(end * steps)), interval=1
    )


def step_flops(plan: WidthPlan, widths: Widths, length: int = 128) -> float:
    """FLOPs per token of one step whose student is physically `widths` wide: teacher forward, student forward and
    backward, projections with both gradients. The vocabulary head runs at the predicted positions only."""

    def forward(at: Widths) -> float:
        inner = at.heads * at.head_size
        layer = 2 * (4 * at.hidden * inner + 2 * at.hidden * at.ffn) + 4 * length * inner
        head = PREDICTED * 2 * at.hidden * (plan.fixed["vocab"] + at.hidden)
        return plan.layers * layer + head

    return forward(plan.full) + 3 * forward(widths) + 6 * (plan.layers + 1) * plan.full.hidden * widths.hidden


def equal_flops_steps(plan: WidthPlan, schedule: WidthSchedule, steps: int) -> int:
    """Steps at the target width that cost what the homotopic run costs if it is cut after every event."""
    spent = sum(step_flops(plan, schedule.widths_at(step)) for step in range(steps))
    return round(spent / step_flops(plan, schedule.target))


def collect(folder: Path) -> list[dict]:
    """One row per finished run: its settings, final held-out figures and the discrepancy along the way."""
    rows = []
    for path in sorted(folder.glob("*/benchmark.json")):
        report = json.loads((path.parent / "report.json").read_text())
        evaluations = [row for row in report["history"] if "discrepancy_kl" in row]
        rows.append(
            {
                **json.loads(path.read_text()),
                "heldout_loss": report["student"]["heldout_loss"],
                "discrepancy_kl": report["student"]["discrepancy_kl"],
                "teacher_loss": report["teacher"]["heldout_loss"],
                "curve": [[row["step"], row["discrepancy_kl"]] for row in evaluations],
                "wall_seconds": report["wall_seconds"],
            }
        )
    return rows


def grouped(rows: list[dict]) -> dict[tuple[float, int, str], list[dict]]:
    groups: dict[tuple[float, int, str], list[dict]] = {}
    for row in rows:
        groups.setdefault((row["compression"], row["budget"], row["arm"]), []).append(row)
    return dict(sorted(groups.items(), key=lambda item: (-item[0][0], item[0][1], item[0][2])))


def table(rows: list[dict]) -> str:
    """Markdown: mean and range over seeds of the final held-out loss and discrepancy, in nats."""
    lines = ["| widths kept | budget | arm | steps | seeds | held-out loss | KL to teacher |", "|" + "---|" * 7]
    for (compression, budget, arm), group in grouped(rows).items():
        cells = [spread([row[key] for row in group]) for key in ("heldout_loss", "discrepancy_kl")]
        start = f"| {compression:.0%} | {budget} | {arm} | {group[0]['steps']} | {len(group)} |"
        lines.append(f"{start} {cells[0]} | {cells[1]} |")
    teacher = rows[0]["teacher_loss"]
    return "\n".join([*lines, f"\nTeacher: held-out loss {teacher:.3f}."])


def spread(values: list[float]) -> str:
    mean = statistics.mean(values)
    return f"{mean:.3f}" if len(values) == 1 else f"{mean:.3f} ± {(max(values) - min(values)) / 2:.3f}"


def by_rate(column: tuple[int, str]) -> tuple[int, float]:
    budget, setting = column
    return budget, float(setting.split()[-1]) if setting else DEFAULT["learning_rate"]


def draw(folder: Path, rows: list[dict]) -> None:
    """Discrepancy over steps: a row of panels per compression, a column per budget and setting that has both arms."""
    groups = grouped(rows)
    columns: dict[tuple[int, str], None] = {}
    for compression, budget, arm in groups:
        setting = arm.removeprefix("homotopic")
        if (compression, budget, f"one-shot{setting}") in groups and arm.startswith("homotopic"):
            columns[budget, setting] = None
    compressions = list(dict.fromkeys(compression for compression, *_ in groups))
    figure = Figure(figsize=(3.4 * len(columns), 2.8 * len(compressions)), layout="constrained")
    for place, (compression, (budget, setting)) in enumerate(
        itertools.product(compressions, sorted(columns, key=by_rate))
    ):
        axes = figure.add_subplot(len(compressions), len(columns), place + 1)
        for arm, colour in (("homotopic", "#0072B2"), ("one-shot", "#D55E00"), ("random", "#777777")):
            for row in groups.get((compression, budget, f"{arm}{setting}"), []):
                steps, values = zip(*row["curve"], strict=True)
                axes.plot(steps, values, color=colour, alpha=0.8, label=arm if row["seed"] == 0 else None)
        title = setting.strip() or f"learning_rate {DEFAULT['learning_rate']:g}"
        axes.set(title=f"{compression:.0%} of the widths, {budget} steps\n{title}", ylim=(0, 4))
        axes.grid(alpha=0.3)
        if place % len(columns) == 0:
            axes.set_ylabel("held-out KL (nats)")
        if place == 0:
            axes.legend(frameon=False, loc="lower right", fontsize="small")
        if place >= len(columns) * (len(compressions) - 1):
            axes.set_xlabel("optimizer step")
    figure.savefig(folder / "discrepancy.png", dpi=90)


if __name__ == "__main__":
    main()
