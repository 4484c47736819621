"""A plan as people read it: a table of its phases, a table of the other choices, and a picture."""

from __future__ import annotations

import json
import os
from pathlib import Path

from matplotlib.figure import Figure

from homodistil_ds.config import RunConfig
from homodistil_ds.evaluation.figures import COLOURS, blank, tidy
from homodistil_ds.evaluation.report import duration_text
from homodistil_ds.machine import Machine
from homodistil_ds.planning.cache import taught_by
from homodistil_ds.planning.choices import ROOM, Choice
from homodistil_ds.planning.devices import GIB, this_device
from homodistil_ds.planning.job import job_of
from homodistil_ds.planning.phases import Phase
from homodistil_ds.planning.plan import Plan, as_json, plan_of
from homodistil_ds.pruning.cost import body_flops
from homodistil_ds.runtime import console, launch


def show(config: RunConfig, machine: Machine) -> bool:
    """On rank 0: the plan of exactly this run, on the ranks that were started; whether it fits. Raises
    HomodistilError."""
    launch.complete_environment()
    if not launch.is_first_rank():
        return True
    here = launch.ranks_here()
    nodes = max(1, int(os.environ["WORLD_SIZE"]) // here)
    job = job_of(config, machine, nodes=nodes, ranks_per_node=here, device=this_device())
    plan = plan_of(taught_by(job, machine.teacher_cache))
    console.say(text(plan))
    return plan.fits


def write(plan: Plan, folder: Path) -> None:
    """plan.md, plan.json and plan.png in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.md").write_text(text(plan) + "\n", encoding="utf-8")
    (folder / "plan.json").write_text(json.dumps(as_json(plan), indent=2) + "\n", encoding="utf-8")
    picture(plan).savefig(folder / "plan.png")


def text(plan: Plan) -> str:
    """Markdown, readable on a console."""
    job = plan.job
    devices = f"{job.ranks} x {job.device.name}" + (f" on {job.nodes} nodes" if job.nodes > 1 else "")
    placed = "from its cache" if job.cached else job.placement
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    lines = [
        f"# Plan: {job.config.teacher}, {job.config.steps:,} steps on {devices}",
        "",
        f"ZeRO {job.stage}, teacher {placed}, micro batch {job.micro_batch} x {job.config.sequence_length} "
        f"tokens, accumulation {job.accumulation}.",
        f"Peak {gib(plan.peak)} of {gib(job.device.memory)} per rank, {gib(plan.start_peak)} at the start, "
        f"{gib(plan.end_peak)} while the finished student is measured: {verdict}.",
        *([f"Host memory of a node: up to {gib(plan.host_peak)}."] if plan.host_peak else []),
        f"{plan.tokens:,} tokens, {plan.flops:.3g} FLOPs, {duration_text(plan.seconds)}, "
        f"{plan.device_hours:,.2f} device hours (estimate).",
        f"A checkpoint takes at most {gib(plan.checkpoint_bytes)}; {job.config.save_total_limit} are kept.",
        *_cache(plan),
        "",
        "| steps | widths | ZeRO | parameters | peak | teacher | student | optimizer | gradients | activations, losses "
        "| logits | got per step | on the wire | step | of it collectives | tokens/s | MFU |",
        "|:--|:--|" + "--:|" * 15,
        *(_row(phase) for phase in plan.phases),
        "",
        "| ZeRO | teacher | micro batch | layers run twice | Adam | peak | host memory of a node | fits | hours |",
        "|--:|:--|--:|:--|:--|--:|--:|:--|--:|",
        *(_choice(choice) for choice in plan.choices),
    ]
    lines += ["", *(f"- {warning}" for warning in plan.warnings)] if plan.warnings else []
    return "\n".join(lines)


def _cache(plan: Plan) -> list[str]:
    if not plan.cache_bytes:
        return []
    job = plan.job
    if job.cached:
        return [
            "The teacher cache is as large as all rows together, and if they are those of this run the teacher's body "
            "runs at the end alone, to measure."
        ]
    per_token = plan.cache_row_bytes / job.config.sequence_length
    body = body_flops(job.plan, job.plan.full, job.config.sequence_length, job.predicted_share)
    return [
        f"A teacher cache would take {gib(plan.cache_bytes)}, {per_token:,.1f} bytes per token; "
        f"runs that read it spare the teacher's body, {body * plan.tokens / plan.flops:.0%} of the work."
    ]


def _row(phase: Phase) -> str:
    items = phase.footprint.items
    passing = items["activations"] + items["losses"]
    own = [items[name] for name in ("teacher", "student", "optimizer", "gradients")]
    sizes = " | ".join(gib(size) for size in (phase.footprint.peak, *own, passing, items["logits"]))
    got, wire, pace = sum(phase.traffic.values()), sum(phase.wire.values()), phase.pace
    return (
        f"| {phase.first:,}-{phase.last:,} | {phase.widths} | {phase.stage} | {phase.parameters:,} | {sizes} "
        f"| {gib(got)} | {gib(wire)} | {seconds(pace.seconds)} | {seconds(pace.communication)} "
        f"| {pace.tokens_per_second:,.0f} | {pace.utilisation:.0%} |"
    )


def _choice(choice: Choice) -> str:
    twice, fits = ("yes" if it else "no" for it in (choice.recomputes, choice.fits))
    adam = "host" if choice.offloads else "device"
    return (
        f"| {choice.stage} | {choice.placement} | {choice.micro_batch} | {twice} | {adam} | {gib(choice.peak)} "
        f"| {gib(choice.host)} | {fits} | {choice.hours:,.2f} |"
    )


def gib(size: float) -> str:
    return f"{size / GIB:,.2f} GiB"


def seconds(duration: float) -> str:
    return f"{duration:.2f} s" if duration >= 1 else f"{duration * 1000:.1f} ms"


def picture(plan: Plan) -> Figure:
    """Memory per rank and seconds of a step over the steps of the run."""
    figure = blank()
    ends = [phase.first - 1 for phase in plan.phases] + [plan.phases[-1].last]
    for place, (title, values, unit) in enumerate(
        (
            ("memory per rank", [phase.footprint.peak / GIB for phase in plan.phases], "GiB"),
            ("an optimizer step", [phase.pace.seconds for phase in plan.phases], "seconds"),
        )
    ):
        axes = figure.add_subplot(2, 1, place + 1)
        tidy(axes)
        axes.stairs(values, ends, baseline=None, color=COLOURS[0], linewidth=2)
        room = ROOM * plan.job.device.memory / GIB
        if place == 0 and room < 2 * max(values):
            axes.axhline(room, color=COLOURS[1], linestyle=":", linewidth=2)
        axes.set_ylim(0, 1.1 * max([*values, room if place == 0 and room < 2 * max(values) else 0]))
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_ylabel(unit)
    axes.set_xlabel("optimizer step")
    figure.suptitle("What the run is planned to take", fontsize=12)
    return figure
