"""What every method needs before it builds a stage: checked inputs, a claimed run directory, the corpus, the curves."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from homodistil_ds.config import RunConfig
from homodistil_ds.data.batches import Batches
from homodistil_ds.data.corpus import Corpus, Order
from homodistil_ds.data.masking import prediction_for
from homodistil_ds.machine import Machine
from homodistil_ds.methods.opening import Run, checked, claim_folder, open_logs, say
from homodistil_ds.methods.reading import read_corpus
from homodistil_ds.methods.start import check_same_data, where_to_start
from homodistil_ds.models.depth import outline_of
from homodistil_ds.models.forward import Student
from homodistil_ds.models.loading import load_outline, load_teacher
from homodistil_ds.models.pieces import Read
from homodistil_ds.models.width import WidthPlan, Widths, count
from homodistil_ds.planning.around import check_room
from homodistil_ds.planning.cache import taught_by
from homodistil_ds.planning.descent import Descent, descent_of
from homodistil_ds.planning.devices import this_device
from homodistil_ds.planning.job import Job, job_along, placement_of
from homodistil_ds.planning.memory import job_at
from homodistil_ds.pruning.family import Member
from homodistil_ds.pruning.schedule import WidthSchedule
from homodistil_ds.runtime import launch, memory, ranks
from homodistil_ds.runtime.checkpoint import Checkpoint
from homodistil_ds.runtime.engine import Engine


@dataclass(kw_only=True)
class Setting(Run):
    """`source` is the teacher of a distillation or the model to train of a pre-training.

    With `read` it is an outline on the meta device, and `read` gives its weights a run at a time; else it is whole.
    `members` are the students that the run leaves behind, the last of them at its `target`; `schedule` passes them.
    `student_plan` and `student_like` are the table and the form of a student that has the layers of `layer_map` alone;
    nobody trains `student_like` itself. `placement` is where the teacher goes; `job` is what the planner knows of all
    this.
    """

    source: PreTrainedModel
    read: Read | None
    tokenizer: PreTrainedTokenizerBase
    plan: WidthPlan
    target: Widths
    members: tuple[Member, ...]
    schedule: WidthSchedule
    layer_map: tuple[int, ...]
    student_plan: WidthPlan
    student_like: PreTrainedModel
    corpus: Corpus
    batches: Batches
    job: Job

    def engine_around(self, student: Student, widths: Widths) -> Engine:
        return self.engine_of(student, self.ds_config_for(widths))

    def ds_config_for(self, widths: Widths) -> dict[str, Any]:
        """Of the two configurations the one that the run has at these physical widths. All ranks call it."""
        if self.ds_config_after_cuts is None or self.config.student.init == "random":
            return self.ds_config
        return job_at(self.job, widths).machine


def prepare_setting(
    config: RunConfig, machine: Machine, command: str, head_may_be_missing: bool, within: Path | None = None
) -> Setting:
    """Check everything a user can get wrong, then pack the corpus into the run directory, of a part into `within`.

    All ranks call it and fail together. Raises HomodistilError.
    """
    started = time.perf_counter()
    run_dir = Path(config.output_dir)
    first, later = checked(config, machine)
    found = where_to_start(config, machine.resume, say)
    way = ranks.together(lambda: descent_of(config, first, later))
    plan, student_plan = way.plan, way.student_plan
    job, reason = _planned(config, machine, first, later, way, found)
    placed = job.placement
    source, tokenizer, read = ranks.together(lambda: _load(config.teacher, head_may_be_missing, placed == "replicated"))
    given = plan.family.language_model, tokenizer, source.config, config.mask_probability, config.sequence_length
    prediction = ranks.together(lambda: prediction_for(*given))
    corpus = read_corpus(config, tokenizer, within or run_dir)
    if within is not None:
        ranks.on_first(lambda: claim_folder(run_dir))
    if found is not None:
        ranks.together(lambda: check_same_data(found, corpus.fingerprint, vars(plan.full), "--corpus"))
    batches = Batches(
        corpus=corpus,
        prediction=prediction,
        order=Order(len(corpus.train), config.seed),
        seed=config.seed,
        global_batch=config.global_batch_size,
        micro_batch=first["train_micro_batch_size_per_gpu"],
        rank=ranks.rank(),
        world_size=ranks.world_size(),
    )
    monitor = open_logs(config, found)
    if reason:
        monitor.line(reason)
    return Setting(
        config=config,
        ds_config=first,
        ds_config_after_cuts=later,
        run_dir=run_dir,
        command=command,
        source=source,
        read=read,
        placement=placed,
        fingerprint=corpus.fingerprint,
        tokenizer=tokenizer,
        plan=plan,
        target=way.target,
        members=way.members,
        schedule=way.schedule,
        layer_map=way.layer_map,
        student_plan=student_plan,
        student_like=source if student_plan.layers == plan.layers else outline_of(source, plan, way.layer_map),
        corpus=corpus,
        batches=batches,
        job=job,
        monitor=monitor,
        checkpoint=found,
        started=started,
        within=within,
    )


def _planned(
    config: RunConfig,
    machine: Machine,
    first: dict[str, Any],
    later: dict[str, Any] | None,
    way: Descent,
    found: Checkpoint | None,
) -> tuple[Job, str]:
    """The run and where its teacher goes, the same on all ranks, with the reason; there is room for it from the state
    `found` on. All ranks call it."""
    plan, trained = way.plan, count(way.student_plan, way.first_widths).with_head
    free, on_gpu = ranks.smallest(memory.available_bytes()), torch.cuda.is_available()
    world, here = ranks.world_size(), ranks.smallest(launch.ranks_here())
    asked = machine.teacher_placement
    placed, reason = ranks.together(
        lambda: placement_of(config.method, asked, plan, first, trained, free, world, here, on_gpu)
    )
    places: dict[str, Any] = {"nodes": world // here, "ranks_per_node": here, "device": this_device()}
    job = job_along(config, way, first, later, placement=placed, **places)
    begun = way.first_widths if found is None else Widths(**found.state["physical"])
    here_on = replace(taught_by(job_at(job, begun), machine.teacher_cache), first_widths=begun, later=None)
    ranks.on_first(lambda: check_room(here_on, free))
    return job, reason


def _load(
    teacher: str, head_may_be_missing: bool, whole: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Read | None]:
    if whole:
        return *load_teacher(teacher, head_may_be_missing), None
    return load_outline(teacher, head_may_be_missing)
