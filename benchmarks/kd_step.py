"""The price of one distillation step on the CPU, in ratios: our step against a plain loop, and against its bare parts.

Plain PyTorch in one process, random weights, random tokens: no pruning, no cut, no data and no DeepSpeed is measured.
Arms take turns, step by step. A ratio is taken inside a block; the table has the median and the quartiles over blocks.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
import transformers
import tyro
from transformers import BertConfig, BertForMaskedLM

from homodistil_ds.config import LossConfig
from homodistil_ds.data.masking import Masking, masked_batch
from homodistil_ds.data.predicted import Batch
from homodistil_ds.distillation.losses import Inputs
from homodistil_ds.distillation.objective import Objective
from homodistil_ds.models import families, loading, norms
from homodistil_ds.models.forward import Read, Student, forward
from homodistil_ds.pruning.masks import Masks
from homodistil_ds.runtime import shards

NOISE_LIMIT = 0.05  # coefficient of variation of an arm's steps above which its block is flagged
RATIOS = (  # title, arm over arm, goal
    ("C3 plain loop / our step", "plain", "all", ">= 1.3"),
    ("C4 + kl / bare, both sdpa", "kl", "bare", "1.01-1.02"),
    ("C4 + kl + hidden / bare, both sdpa", "hidden", "bare", "1.05-1.07"),
    ("C4 all losses (eager) / bare (sdpa)", "all", "bare", "1.10"),
    ("   + kl: eager / sdpa, no map is read", "kl_eager", "kl", "-"),
    ("   all losses: half masked / unmasked", "masked", "all", "1.00"),
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Shape of teacher and student, and how long to measure; by default about four minutes on an idle core."""

    hidden: int = 384
    layers: int = 6
    heads: int = 12
    ffn: int = 1536
    vocab: int = 10083
    batch: int = 16
    length: int = 128
    blocks: int = 5
    steps: int = 2  # of every arm in a block, at least 2; one of each before the first block warms up
    dtype: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast in every arm
    threads: int = 1
    output: Path | None = None  # JSON file for every step's times


class Setup(NamedTuple):
    """A teacher, what is trained, its optimizer, and the kept heads of each layer."""

    teacher: BertForMaskedLM
    student: Student
    optimizer: torch.optim.Optimizer
    heads: list[torch.Tensor]


Loss = Callable[[Setup, Batch], torch.Tensor]
Arm = tuple[Setup, Loss, str]  # the last is the attention implementation


def new_setup(options: Options, masked: bool) -> Setup:
    """A random teacher and a student near it; if `masked`, half of its hidden, ffn and heads are zero."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=options.vocab, hidden_size=options.hidden, intermediate_size=options.ffn)
    config.num_hidden_layers, config.num_attention_heads = options.layers, options.heads
    config.max_position_embeddings = max(512, options.length)
    plan = families.plan_for(config)
    teacher = BertForMaskedLM._from_config(config, attn_implementation="eager").eval()
    student = Student(loading.twin(teacher, plan), plan.family, get_args(Read), options.hidden)
    masks = Masks(plan)
    with torch.no_grad():
        for parameter in student.parameters():  # or every distance to the teacher, and its gradient, would be zero
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
        if masked:
            half = families.target_widths(plan, options.hidden // 2, options.ffn // 2, options.heads // 2)
            masks.narrow({group: torch.rand(size) for group, size in plan.groups().items()}, half)
            masks.apply(shards.whole(student.named_parameters()))
            norms.keep(student, masks.kept["hidden"])
    return Setup(teacher, student, torch.optim.AdamW(student.parameters(), lr=1e-4, fused=True), masks.head_origins())


def ours(**weights: float) -> Loss:
    """The package's step: both models compute what the student's losses read."""
    objective = Objective(LossConfig(**weights), with_teacher=True)

    def loss(setup: Setup, batch: Batch) -> torch.Tensor:
        reads = objective.student_reads()
        with torch.no_grad():
            shown = forward(setup.teacher, setup.student.family, *batch.shown, reads=reads)
        heads: dict[str, Any] = {"student_heads": setup.heads, "head_origins": setup.heads}
        return objective(
            Inputs(student=setup.student(*batch.shown, reads=reads), teacher=shown, labels=batch.labels, **heads)
        )[0]

    return loss


def plain(setup: Setup, batch: Batch) -> torch.Tensor:
    """The loop that users of transformers write: logits everywhere, the masked positions picked afterwards."""
    labels = torch.full_like(batch.input_ids, -100).scatter_(1, batch.positions, batch.labels)
    wanted = {"labels": labels, "output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        shown = setup.teacher(batch.input_ids, **wanted)
    own = setup.student.model(batch.input_ids, **wanted)
    mine, other = (F.log_softmax(logits[labels != -100].float(), dim=-1) for logits in (own.logits, shown.logits))
    total = own.loss + F.kl_div(mine, other.exp(), reduction="batchmean")
    lift, (embedding, *hidden) = setup.student.projections, own.hidden_states
    states = [lift["embedding"](embedding), *map(lift["hidden"], hidden), *own.attentions]
    for mine, other in zip(states, [*shown.hidden_states, *shown.attentions], strict=True):
        total = total + F.mse_loss(mine.float(), other.float())
    return total


def gradient_difference(setup: Setup, batch: Batch) -> tuple[float, str]:
    """The largest relative difference, by tensor norm, of the student's gradients between both loops, and where."""
    names, parameters = zip(*setup.student.named_parameters(), strict=True)
    own, other = (torch.autograd.grad(loss(setup, batch), parameters) for loss in (ours(), plain))
    floor = 1e-5 * torch.stack([gradient.norm() for gradient in other]).norm()  # key biases have only rounding errors
    differences = [float((a - b).norm() / torch.maximum(b.norm(), floor)) for a, b in zip(own, other, strict=True)]
    return max(zip(differences, names, strict=True))


def step(setup: Setup, loss: Loss, attention: str, batch: Batch, dtype: str) -> tuple[float, float]:
    """Wall and process CPU seconds of one optimizer step."""
    for model in (setup.teacher, setup.student.model):
        model.set_attn_implementation(attention)
    wall, cpu = time.perf_counter(), time.process_time()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bf16"):
        total = loss(setup, batch)
    total.backward()
    setup.optimizer.step()
    setup.optimizer.zero_grad()
    return time.perf_counter() - wall, time.process_time() - cpu


def show(seconds: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Print the table and return it; `seconds` holds [blocks, steps, wall and CPU] of each arm."""
    print(f"{'':40} ratio    quartiles    CPU  goal       blocks with CV > {NOISE_LIMIT:.0%}")
    rows = []
    for title, over, under, goal in RATIOS:
        wall, cpu = (np.median(seconds[over], axis=1) / np.median(seconds[under], axis=1)).T
        low, ratio, high = np.quantile(wall, [0.25, 0.5, 0.75]).tolist()
        pair = np.stack([seconds[over], seconds[under]])[..., 0]
        noisy = (pair.std(-1, ddof=1) > NOISE_LIMIT * pair.mean(-1)).any(0).tolist()
        row = {"ratio": ratio, "quartiles": [low, high], "cpu_ratio": float(np.median(cpu)), "noisy": noisy}
        rows.append({"title": title, "goal": goal, **row})
        print(f"{title:40} {ratio:.3f}  {low:.3f}-{high:.3f}  {np.median(cpu):.3f}  {goal:9}  {sum(noisy)}/{len(wall)}")
    times = {name: float(np.median(own[..., 1])) for name, own in seconds.items()}
    print("CPU seconds of a step: " + ", ".join(f"{name} {value:.3f}" for name, value in times.items()))
    maps, eager = times["all"] - times["hidden"], times["kl_eager"] - times["kl"]
    print(f"Maps and embedding add {maps:.3f} s to kl + hidden; {eager:.3f} s of it is eager attention by itself.")
    return rows


def main(options: Options) -> None:
    """Check that both loops have the same gradients, time the arms, print, write."""
    torch.set_num_threads(options.threads)
    masking = Masking(mask_id=4, vocabulary_size=options.vocab, special_ids=tuple(range(5)), probability=0.15)
    tokens = np.random.default_rng(0).integers(5, options.vocab, (options.steps, options.batch, options.length))
    batches = [masked_batch(rows, np.arange(options.batch), masking, seed=0) for rows in tokens]
    full, half = new_setup(options, masked=False), new_setup(options, masked=True)
    difference, where = gradient_difference(full, batches[0])
    print(f"Gradients of both loops in fp32: largest relative difference {difference:.1e} ({where}).", flush=True)
    if not difference < 1e-4:
        raise SystemExit(1)
    arms: dict[str, Arm] = {
        "plain": (full, plain, "eager"),
        "all": (full, ours(), "eager"),
        "bare": (full, ours(kl=0, hidden=0, attention=0, embedding=0), "sdpa"),
        "kl": (full, ours(hidden=0, attention=0, embedding=0), "sdpa"),
        "kl_eager": (full, ours(hidden=0, attention=0, embedding=0), "eager"),
        "hidden": (full, ours(attention=0, embedding=0), "sdpa"),
        "masked": (half, ours(), "eager"),
    }
    seconds = {name: np.empty((options.blocks, options.steps, 2)) for name in arms}
    for block, turn in [(0, 0), *np.ndindex(options.blocks, options.steps)]:  # the first warms up: overwritten
        for name, arm in arms.items():
            seconds[name][block, turn] = step(*arm, batches[turn], options.dtype)
    rows = show(seconds)
    if options.output:
        versions = {module.__name__: module.__version__ for module in (torch, transformers, np)}
        versions |= {"python": platform.python_version(), "platform": platform.platform()}
        record = {"options": asdict(options), "versions": versions, "gradient_difference": difference, "ratios": rows}
        record["seconds"] = {name: own.tolist() for name, own in seconds.items()}
        options.output.write_text(json.dumps(record, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Options))
