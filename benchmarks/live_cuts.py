"""What cutting a live student saves and costs, on the CPU, in ratios of process CPU time; wall time stands beside it.

    python benchmarks/live_cuts.py --output_dir runs/live_cuts                      # every part
    python benchmarks/live_cuts.py --output_dir runs/live_cuts --parts steps runs

steps: a cut against a masked student, step by step, beside the cost model. runs: whole runs of the command with 0 to 8
cuts. cut: one cut of a BERT-base, by part. scoring: scores and masks as a share of a step. Every job is a process of
its own with one thread per rank; one that is there already is not repeated. Prints Markdown tables and writes
results.json, and live_cuts.png for the runs. Weights of BERT-base are random: no speed depends on them.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, BertConfig, BertForMaskedLM, PreTrainedModel

from homodistil_ds import stage as loop
from homodistil_ds.config import LossConfig, OptimizerConfig, RunConfig
from homodistil_ds.data.batches import Batches
from homodistil_ds.data.corpus import Corpus, Order
from homodistil_ds.data.masking import Masking, masking_for
from homodistil_ds.data.prepare import prepare
from homodistil_ds.distillation.objective import Objective
from homodistil_ds.evaluation.heldout import measure_on
from homodistil_ds.models.families import plan_for
from homodistil_ds.models.forward import Student, Teacher
from homodistil_ds.models.loading import folder_of, load_teacher, twin, without_dropout
from homodistil_ds.models.width import WidthPlan, Widths
from homodistil_ds.pruning.cost import step_flops
from homodistil_ds.pruning.milestones import place_cuts, relative_cost
from homodistil_ds.pruning.pruner import Pruner
from homodistil_ds.pruning.schedule import WidthSchedule
from homodistil_ds.pruning.shrink import blank
from homodistil_ds.runtime import carry, ds_config, engine, ranks
from homodistil_ds.runtime.engine import Engine
from homodistil_ds.runtime.exit_reason import leave
from homodistil_ds.runtime.monitor import Monitor
from homodistil_ds.runtime.watchdog import Watchdog
from homodistil_ds.stage import Stage

ROOT = Path(__file__).resolve().parent.parent
TRAIN = ROOT / "homodistil_ds" / "train.py"
PARTS = ("steps", "runs", "cut", "scoring")
LOSSES = {"all": LossConfig(), "no maps": LossConfig(attention=0)}
# Of the embedded teacher's 256/1024/8x32. Heads that stay are what most presets do; heads that leave take their maps.
SHAPES = ("192/768/8x24", "192/768/6x32", "128/512/8x16", "128/512/4x32", "80/336/5x16")
THIRD = "80/336/5x16"
CUTS = (0, 1, 2, 4, 8)
END = 0.5
BASE_TARGETS = ("576/2304/12x48", "384/1536/12x32")
CUT_JOBS = ((BASE_TARGETS[0], 1), (BASE_TARGETS[0], 2), (BASE_TARGETS[1], 1))  # target and ranks
MEBI = 2**20
MATRICES = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_dot")


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--output_dir", type=Path, required=True)
    flags.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    flags.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)), help="of the jobs with one rank")
    flags.add_argument("--batch", type=int, default=16, help="sequences per step of steps and runs")
    flags.add_argument("--length", type=int, default=64, help="their tokens")
    flags.add_argument("--blocks", type=int, default=5, help="of the steps part; all arms take turns in each")
    flags.add_argument("--steps", type=int, default=200, help="of a run")
    flags.add_argument("--job", help=argparse.SUPPRESS)
    given = flags.parse_args()
    if given.job:
        work(json.loads(given.job), given.output_dir)
        return
    given.output_dir.mkdir(parents=True, exist_ok=True)
    for part in given.parts:
        TABLES[part](given)


# --- jobs: what runs in a process of its own ---


def job(given: argparse.Namespace, name: str, world: int = 1, **facts: Any) -> dict[str, Any]:
    """The result of one job, measured now unless it lies in the output folder."""
    path = given.output_dir / f"{name.replace(' ', '_').replace('/', '-')}.json"
    if not path.exists():
        facts |= {"name": name, "path": str(path)}
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)]
        command = [sys.executable, *start, str(Path(__file__)), "--output_dir", str(given.output_dir)]
        execute([*command, "--job", json.dumps(facts)], path.with_suffix(".log"), given.core if world == 1 else None)
    return json.loads(path.read_text())


def execute(command: list[str], log: Path, core: int | None) -> None:
    """Run a command with one thread per process, on one core if it is given."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w") as output:
        pinned = None if core is None else lambda: os.sched_setaffinity(0, {core})
        subprocess.run(command, stdout=output, stderr=output, env=environment, check=True, preexec_fn=pinned)


def work(facts: dict[str, Any], folder: Path) -> None:
    """A job, on every rank; rank 0 writes its result."""
    engine.prepare_op_folder()
    ranks.start()
    torch.manual_seed(0)
    gc.freeze()  # as methods.run_method does
    result = WORK[facts["part"]](facts, folder)
    if ranks.rank() == 0:
        Path(facts["path"]).write_text(json.dumps({**facts, **result}, indent=1) + "\n")
    ranks.everyone(None)
    ranks.stop()


def clock() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def since(start: tuple[float, float]) -> np.ndarray:
    """CPU seconds of this process and wall seconds."""
    return np.array(clock()) - np.array(start)


@contextlib.contextmanager
def timing(owner: Any, name: str, spent: dict[str, np.ndarray]) -> Iterator[None]:
    """Add up in `spent[name]` what calls of an attribute take."""
    function = getattr(owner, name)

    def timed(*arguments: Any) -> Any:
        start = clock()
        result = function(*arguments)
        spent[name] = spent.get(name, np.zeros(2)) + since(start)
        return result

    setattr(owner, name, timed)
    yield
    setattr(owner, name, function)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What the stages of a job share."""

    source: PreTrainedModel
    plan: WidthPlan
    objective: Objective
    corpus: Corpus
    masking: Masking
    batch: int
    folder: Path

    def stage(self, target: Widths, zero: int, end: int = 1) -> Stage:
        """The package's own loop around a twin of the teacher, in float32, with an event after each step to `end`."""
        plan, reads = self.plan, self.objective.student_reads()

        def around(model: PreTrainedModel) -> Engine:
            student = Student(model.requires_grad_(True), plan.family, reads, plan.full.hidden)
            machine = {"zero_optimization": {"stage": zero}, "gradient_clipping": 1.0}
            machine = ds_config.with_batch_sizes(machine, self.batch, ranks.world_size())
            return engine.initialize(student, OptimizerConfig(), 1e-4, machine, print)

        config = RunConfig(steps=10_000, global_batch_size=self.batch, sequence_length=self.corpus.train.shape[1])
        schedule = WidthSchedule(full=plan.full, target=target, start=0, end=end, interval=1)
        return Stage(
            config=config,
            engine=around(twin(self.source, plan)),
            plan=plan,
            teacher=Teacher(self.source, plan.family, self.objective.teacher_reads()),
            objective=self.objective,
            batches=self.batches(),
            measure=measure_on(self.batches()),
            monitor=Monitor(self.folder, 1, enabled=False),
            pruner=Pruner(plan, schedule, "sensitivity", beta=0.85),
            build=lambda widths: around(blank(self.source, plan, widths)),
            save=lambda step: self.folder,
            watchdog=Watchdog(3600, ranks.rank(), lambda *_: None),
            fixed_widths=plan.full,
        )

    def batches(self) -> Batches:
        world = ranks.world_size()
        order, micro = Order(len(self.corpus.train), 0), self.batch // world
        sizes = {"global_batch": self.batch, "micro_batch": micro, "rank": ranks.rank(), "world_size": world}
        return Batches(corpus=self.corpus, prediction=self.masking, order=order, seed=0, **sizes)

    def flops(self, widths: Widths) -> float:
        batch = next(self.batches().micro_batches(1))
        return flops_of(self.plan, self.objective, batch.input_ids.shape[1], batch.positions.shape[1])(widths)


def flops_of(plan: WidthPlan, objective: Objective, length: int, predicted: int) -> Callable[[Widths], float]:
    reads = {"reads": objective.student_reads(), "teacher_reads": objective.teacher_reads()}
    return lambda widths: step_flops(plan, widths, sequence_length=length, predicted_share=predicted / length, **reads)


def embedded(losses: str, batch: int, length: int, folder: Path) -> Parts:
    """The embedded teacher and the built-in corpus."""
    source, tokenizer = load_teacher("builtin")
    plan = plan_for(source.config)
    corpus = prepare(["builtin"], tokenizer, length, 16, folder / f"corpus-{length}")
    masking = masking_for(tokenizer, plan.fixed["vocab"], 0.15)
    return parts_of(source, losses, corpus, masking, batch, folder)


def bert_base(batch: int, length: int, folder: Path) -> Parts:
    """A BERT-base of random weights and rows of random tokens."""
    config = BertConfig()
    source = BertForMaskedLM._from_config(config, attn_implementation="eager")
    rows = np.random.default_rng(0).integers(5, config.vocab_size, (64 * batch, length)).astype(np.uint16)
    corpus = Corpus(rows, rows[:batch], "", len(rows), rows.size)
    masking = Masking(mask_id=4, vocabulary_size=config.vocab_size, special_ids=tuple(range(5)), probability=0.15)
    return parts_of(source, "all", corpus, masking, batch, folder)


def parts_of(source: PreTrainedModel, losses: str, corpus: Corpus, masking: Masking, batch: int, folder: Path) -> Parts:
    plan, objective = plan_for(source.config), Objective(LOSSES[losses], with_teacher=True)
    shared = {"corpus": corpus, "masking": masking, "batch": batch, "folder": folder}
    return Parts(source=without_dropout(source), plan=plan, objective=objective, **shared)


def widths_of(text: str) -> Widths:
    """The inverse of str(Widths)."""
    hidden, ffn, heads = text.split("/")
    number, size = heads.split("x")
    return Widths(hidden=int(hidden), ffn=int(ffn), heads=int(number), head_size=int(size))


# --- steps: a cut against a masked student ---


def time_steps(facts: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Seconds [blocks, CPU and wall] and losses of each arm, and where the time of a step goes."""
    parts = embedded(facts["losses"], facts["batch"], facts["length"], folder)
    full = str(parts.plan.full)
    arms = {"full": parts.stage(parts.plan.full, zero=0)}
    arms["full"].train(1)
    for shape in facts["shapes"]:
        for name in ("masked", "cut"):
            arms[f"{name} {shape}"] = small = parts.stage(widths_of(shape), zero=0)
            small.train(1)
            small.pruner.prune(small.engine, 1)
            if name == "cut":
                small.cut(1, widths_of(shape))
    seconds: dict[str, list[list[float]]] = {name: [] for name in arms}
    totals: dict[str, list[float]] = {name: [] for name in arms}
    for step in range(2, facts["blocks"] + 3):  # the first block warms up
        for name, arm in arms.items():
            start = clock()
            totals[name].append(float(arm.train(step)[0]["total"]))
            seconds[name].append(since(start).tolist())
    shown = ("full", f"masked {THIRD}", f"cut {THIRD}")
    return {
        "seconds": {name: rows[1:] for name, rows in seconds.items()},
        "totals": totals,
        "model": {shape: parts.flops(widths_of(shape)) / parts.flops(parts.plan.full) for shape in facts["shapes"]},
        "kinds": {name: kinds_of_work(arms[name]) for name in shown},
        "full": full,
    }


def kinds_of_work(stage: Stage) -> dict[str, float]:
    """CPU seconds of one step by kind of operator; the rest is the data, Adam, DeepSpeed and Python.

    The profiler counts wall time and makes a step slower, so only its shares are taken.
    """
    start = clock()
    stage.train(100)
    step = float(since(start)[0])
    start = clock()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        stage.train(101)
        whole = float(since(start)[1])
    spent = {"matrices": 0.0, "other operators": 0.0}
    for event in profiler.key_averages():
        if event.key.startswith("aten::"):
            kind = "matrices" if event.key.startswith(MATRICES) else "other operators"
            spent[kind] += step * event.self_cpu_time_total / 1e6 / whole
    return {**spent, "rest": step - sum(spent.values())}


def ratios(over: list[list[float]], under: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Quartiles of the CPU ratio over blocks, and the median ratio of wall times."""
    pairs = np.array(over) / np.array(under)
    return np.quantile(pairs[:, 0], [0.25, 0.5, 0.75]), np.median(pairs[:, 1])


def steps_table(given: argparse.Namespace) -> None:
    for losses in LOSSES:
        facts = {"losses": losses, "batch": given.batch, "length": given.length, "blocks": given.blocks}
        found = job(given, f"steps {losses}", part="steps", shapes=list(SHAPES), **facts)
        seconds, totals = found["seconds"], found["totals"]
        print(f"\nsteps, losses: {losses}\n")
        print("| widths | CPU s masked | cut | cut / masked | quartiles | wall | cost model | off | loss gap |")
        print("|" + "---|" * 9)
        middle = {name: statistics.median(row[0] for row in rows) for name, rows in seconds.items()}
        for shape, model in found["model"].items():
            arms = f"cut {shape}", f"masked {shape}"
            (low, ratio, high), wall = ratios(*(seconds[arm] for arm in arms))
            gap = largest_gap(*(totals[arm] for arm in arms))
            cells = (f"{middle[arms[1]]:.3f}", f"{middle[arms[0]]:.3f}", f"{ratio:.3f}", f"{low:.3f}-{high:.3f}")
            print("|", " | ".join([shape, *cells, f"{wall:.3f}", f"{model:.3f}", f"{ratio / model - 1:+.0%}"]), end="")
            print(f" | {gap:.1e} |")
        print(f"\nno neuron masked: {middle['full']:.3f} s")
        for name, kinds in found["kinds"].items():
            print(f"{name}: " + ", ".join(f"{kind} {value:.3f}" for kind, value in kinds.items()))


def largest_gap(own: list[float], other: list[float]) -> float:
    """The largest relative difference of two curves."""
    return float(np.max(np.abs(np.array(own) / np.array(other) - 1)))


# --- runs: the command itself ---


def run_table(given: argparse.Namespace) -> None:
    plan, target = plan_for(AutoConfig.from_pretrained(folder_of("builtin"))), widths_of(THIRD)
    end = round(END * given.steps)
    schedule = WidthSchedule(full=plan.full, target=target, start=0, end=end, interval=5)
    predicted = round(0.15 * (given.length - 2))
    cost = flops_of(plan, Objective(LossConfig(), with_teacher=True), given.length, predicted)
    reports = {cuts: run(given, cuts, target) for cuts in CUTS}
    masked, curves = reports[0], {cuts: curve(report) for cuts, report in reports.items()}
    print(f"\nruns, {given.steps} steps to {THIRD} at {END:.0%} of them\n")
    print("| cuts | loop CPU s | / masked | wall s | / masked | cost model | largest loss gap | held-out loss |")
    print("|" + "---|" * 8)
    for cuts, report in reports.items():
        model = relative_cost(place_cuts(schedule, plan, cuts, given.steps, cost), plan.full, given.steps, cost)
        cells = []
        for name in ("loop_cpu_seconds", "loop_seconds"):
            cells += [f"{report[name]:.1f}", f"{report[name] / masked[name]:.3f}"]
        gap, loss = largest_gap(curves[cuts], curves[0]), report["student"]["heldout_loss"]
        print("|", " | ".join([str(cuts), *cells, f"{model:.3f}", f"{gap:.1e}", f"{loss:.4f}"]), "|")
    draw(given.output_dir / "live_cuts.png", curves)


def run(given: argparse.Namespace, cuts: int, target: Widths) -> dict[str, Any]:
    """The report of one run of the command, on one rank in float32, with an event after every step."""
    folder = given.output_dir / f"run-{cuts}"
    if not (folder / "report.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        values = {
            "deepspeed_config": ROOT / "ds_configs" / "zero0.json",
            "output_dir": folder,
            "steps": given.steps,
            "global_batch_size": given.batch,
            "sequence_length": given.length,
            "held_out_sequences": 16,
            "eval_interval": 0,
            "log_interval": 1,
            "learning_rate": 2e-3,
            "cuts": cuts,
            "pruning.interval": 5,
            "pruning.end": END,
            "student.hidden_size": target.hidden,
            "student.intermediate_size": target.ffn,
            "student.num_attention_heads": target.heads,
        }
        flags = [text for name, value in values.items() for text in (f"--{name}", str(value))]
        execute([sys.executable, str(TRAIN), *flags], folder.with_suffix(".log"), given.core)
        for heavy in ("checkpoints", "corpus", "tb", "student"):
            shutil.rmtree(folder / heavy)
    return json.loads((folder / "report.json").read_text())


def curve(report: dict[str, Any]) -> list[float]:
    return [row["total"] for row in report["history"] if "total" in row]


def draw(path: Path, curves: dict[int, list[float]]) -> None:
    """All loss curves on top of each other, the masked run's thick and below."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for cuts, values in curves.items():
        style = {"color": "#BBBBBB", "linewidth": 6} if cuts == 0 else {"linewidth": 1}
        axes.plot(range(1, len(values) + 1), values, label=str(cuts) if cuts else "0: masked", **style)
    axes.set(xlabel="optimizer step", ylabel="training loss (total)", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, title="cuts", ncols=2)
    figure.savefig(path, dpi=90)


# --- cut and scoring: a BERT-base of random weights ---


def time_cut(facts: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Seconds [CPU, wall] of each part of one cut on this rank, and resident memory in MiB."""
    parts = bert_base(facts["batch"], facts["length"], folder)
    target = widths_of(facts["target"])
    stage = parts.stage(target, facts["zero"])
    stage.train(1)
    stage.pruner.prune(stage.engine, 1)
    before, spent = resident(), {}
    forget_peak()
    patched = [(stage.pruner, "remove"), (loop, "dispose"), (stage, "build"), (carry, "exchange")]
    ranks.everyone(None)
    with contextlib.ExitStack() as stack:
        for owner, name in [*patched, (carry, "put"), (stage.pruner, "apply")]:
            stack.enter_context(timing(owner, name, spent))
        start = clock()
        stage.cut(1, target)
        whole = since(start)
    spent["put"] -= spent["exchange"]
    seconds = {name: value.tolist() for name, value in spent.items()}
    memory = {"before": before, "peak": peak(), "after": resident()}
    stage.train(2)
    return {"seconds": seconds, "whole": whole.tolist(), "mib": memory}


def resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / MEBI


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> float:
    """Largest resident memory since forget_peak."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


def cut_table(given: argparse.Namespace) -> None:
    names = ("remove", "dispose", "build", "exchange", "put", "apply")
    print("\ncut, BERT-base of random weights, rank 0; CPU seconds of each part\n")
    print(f"| ZeRO | ranks | to | {' | '.join(names)} | whole CPU s | wall s | MiB before | peak | after |")
    print("|" + "---|" * (len(names) + 8))
    for zero, world, target in ((z, w, t) for t, w in CUT_JOBS for z in (0, 2, 3)):
        facts = {"zero": zero, "world": world, "target": target, "batch": 2, "length": 16}
        found = job(given, f"cut {zero} {world} {target}", part="cut", **facts)
        cells = [f"{found['seconds'][name][0]:.2f}" for name in names]
        cells += [f"{value:.2f}" for value in found["whole"]] + [f"{value:,.0f}" for value in found["mib"].values()]
        print("|", " | ".join([str(zero), str(world), target, *cells]), "|")


def time_scoring(facts: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Seconds [CPU, wall] of each step, of its scores and of the event after it, with an event after each step."""
    parts = bert_base(facts["batch"], facts["length"], folder)
    steps = facts["steps"]
    stage = parts.stage(widths_of(BASE_TARGETS[0]), facts["zero"], end=2 * steps)
    rows: dict[str, list[list[float]]] = {"step": [], "score": [], "prune": [], "apply": []}
    for step in range(1, steps + 2):  # the first warms up
        spent: dict[str, np.ndarray] = {}
        with timing(stage.pruner, "score", spent), timing(stage.pruner, "apply", spent):
            for name, action in (("step", stage.train), ("prune", lambda step: stage.pruner.prune(stage.engine, step))):
                start = clock()
                action(step)
                spent[name] = since(start)
        if step > 1:
            for name, values in rows.items():
                values.append(spent[name].tolist())
    return {"seconds": rows}


def scoring_table(given: argparse.Namespace) -> None:
    print("\nscoring, BERT-base of random weights, ZeRO 2, 8 x 128 tokens a step, rank 0; CPU seconds, medians\n")
    print("| ranks | step | scores in it | share | event | of it writing zeros | share with one in 10 steps |")
    print("|" + "---|" * 7)
    for world in (1, 2):
        facts = {"zero": 2, "batch": 8, "length": 128, "steps": 3}
        found = job(given, f"scoring {world}", world=world, part="scoring", **facts)
        middle = {name: statistics.median(row[0] for row in rows) for name, rows in found["seconds"].items()}
        step, score, event, apply = (middle[name] for name in ("step", "score", "prune", "apply"))
        both = (score + event / 10) / (step + event / 10)
        cells = (f"{step:.2f}", f"{score:.3f}", f"{score / step:.2%}", f"{event:.2f}", f"{apply:.2f}", f"{both:.2%}")
        print("|", " | ".join([str(world), *cells]), "|")


WORK: dict[str, Callable[[dict[str, Any], Path], dict[str, Any]]] = {
    "steps": time_steps,
    "cut": time_cut,
    "scoring": time_scoring,
}
TABLES: dict[str, Callable[[argparse.Namespace], None]] = {
    "steps": steps_table,
    "runs": run_table,
    "cut": cut_table,
    "scoring": scoring_table,
}

if __name__ == "__main__":
    main()
    leave(0)
