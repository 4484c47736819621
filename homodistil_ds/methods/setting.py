"""What every method needs before it builds a stage: checked inputs, a claimed run directory, the corpus, the curves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from homodistil_ds.config import RunConfig
from homodistil_ds.data.batches import Batches
from homodistil_ds.data.corpus import Corpus, Order
from homodistil_ds.data.masking import prediction_for
from homodistil_ds.distillation.objective import check_losses
from homodistil_ds.distillation.vocabulary import fits
from homodistil_ds.errors import HomodistilError
from homodistil_ds.machine import Machine
from homodistil_ds.methods.opening import Run, check_length, checked, claim_folder, open_logs, say, train_dtype
from homodistil_ds.methods.reading import read_corpus
from homodistil_ds.methods.start import check_same_data, where_to_start
from homodistil_ds.models.depth import layer_map, outline_of, shallower
from homodistil_ds.models.families import target_widths
from homodistil_ds.models.loading import load_outline, load_teacher, read_plan
from homodistil_ds.models.pieces import Read
from homodistil_ds.models.width import WidthPlan, Widths, count
from homodistil_ds.pruning.family import Member, members_of, scale_of
from homodistil_ds.pruning.schedule import WidthSchedule
from homodistil_ds.runtime import ds_config, memory, placement, ranks
from homodistil_ds.runtime.engine import Engine


@dataclass(kw_only=True)
class Setting(Run):
    """`source` is the teacher of a distillation or the model to train of a pre-training.

    With `read` it is an outline on the meta device, and `read` gives its weights a run at a time; else it is whole.
    `members` are the students that the run leaves behind, the last of them at its `target`; `schedule` passes them.
    `student_plan` and `student_like` are the table and the form of a student that has the layers of `layer_map` alone;
    nobody trains `student_like` itself. `placement` is where the teacher goes.
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

    @property
    def parted(self) -> int:
        """The vocabulary's size where the logits of a micro batch are too many to be there at once; else 0."""
        length = self.config.sequence_length
        positions = self.batches.micro_batch * round(self.batches.prediction.share(length) * length)
        vocabulary = self.plan.fixed["vocab"]
        return 0 if fits(positions, vocabulary) else vocabulary

    def engine_around(self, student: torch.nn.Module, widths: Widths) -> Engine:
        return self.engine_of(student, self.ds_config_for(widths))

    def ds_config_for(self, widths: Widths) -> dict[str, Any]:
        """The configuration after cuts as soon as it takes no more memory per rank than the run began with."""
        later = self.ds_config_after_cuts
        if later is None or widths == self.plan.full or self.config.student.init == "random":
            return self.ds_config
        began, needed = (
            student_bytes(machine, parameters(self.student_plan, shape))
            for machine, shape in ((self.ds_config, self.plan.full), (later, widths))
        )
        return later if needed <= began else self.ds_config


def student_bytes(machine: dict[str, Any], size: int) -> int:
    """Memory per rank to train `size` parameters under a DeepSpeed configuration."""
    stage, precision = ds_config.zero_stage(machine), ds_config.precision(machine)
    offload = torch.cuda.is_available() and ds_config.offloads(machine)
    return memory.student_bytes(size, stage, ranks.world_size(), precision, offload)


def parameters(plan: WidthPlan, widths: Widths) -> int:
    return count(plan, widths).with_head


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
    plan = ranks.together(lambda: read_plan(config.teacher))
    student = config.student
    members = ranks.together(lambda: family_of(config, plan))
    target = members[-1].widths
    schedule = ranks.together(lambda: schedule_of(config, plan, members))
    ranks.together(lambda: check_length(config, plan))
    layers = ranks.together(lambda: layer_map(plan.layers, student.num_hidden_layers, student.layers))
    student_plan = ranks.together(lambda: shallower(plan, layers))
    ranks.together(lambda: check_stages(plan, first, later))
    pruned = student.init == "teacher" and target != plan.full
    ranks.together(lambda: check_losses(config.loss, target, plan.full, pruned, plan.family))
    placed, reason = _choose_placement(config, machine.teacher_placement, first, plan, student_plan, target)
    source, tokenizer, read = ranks.together(lambda: _load(config.teacher, head_may_be_missing, placed == "replicated"))
    kind, vocabulary = plan.family.language_model, plan.fixed["vocab"]
    prediction = ranks.together(lambda: prediction_for(kind, tokenizer, vocabulary, config.mask_probability))
    corpus = read_corpus(config, tokenizer, within or run_dir)
    if within is not None:
        ranks.on_first(lambda: claim_folder(run_dir))
    if found is not None:
        ranks.together(lambda: check_same_data(found, corpus.fingerprint, vars(plan.full)))
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
        target=target,
        members=members,
        schedule=schedule,
        layer_map=layers,
        student_plan=student_plan,
        student_like=source if student_plan.layers == plan.layers else outline_of(source, plan, layers),
        corpus=corpus,
        batches=batches,
        monitor=monitor,
        checkpoint=found,
        started=started,
        within=within,
    )


def check_stages(plan: WidthPlan, *machines: dict[str, Any] | None) -> None:
    """Raises HomodistilError for ZeRO-3 with matrices that have to be taken apart while they are whole."""
    stages = [ds_config.zero_stage(machine) for machine in machines if machine is not None]
    if plan.family.fused and 3 in stages:
        raise HomodistilError(
            "CFG-STAGE",
            f"ZeRO stage 3 with a {plan.family.model_type}, whose fused matrices are taken apart while they are whole",
            "Use stage 0, 1 or 2.",
        )


def family_of(config: RunConfig, plan: WidthPlan) -> tuple[Member, ...]:
    """The students of a run, the largest first; one without --family. Raises HomodistilError."""
    student = config.student
    sizes = (student.hidden_size, student.intermediate_size, student.num_attention_heads)
    target = target_widths(plan, *sizes)
    scale = scale_of(plan, target)
    if not config.family:
        return (Member(scale=scale, kept=scale, widths=target),)
    reference = read_plan(config.scales_of, flag="--scales_of") if config.scales_of else plan
    members = members_of(reference, config.family, within=plan.full)
    if any(size is not None for size in sizes) and members[-1].widths != target:
        side = "above" if members[-1].scale > scale else "below"
        raise HomodistilError(
            "CFG-SCALE",
            f"--family ends at {members[-1].name}, {members[-1].widths}, {side} the target of the --student flags, "
            f"{target}, scale {scale:.3g}",
            "Leave the --student sizes out: the last scale sets them.",
        )
    return members


def schedule_of(config: RunConfig, plan: WidthPlan, members: Sequence[Member]) -> WidthSchedule:
    """The way down through all members, in steps; it never ends before the first one. Raises HomodistilError."""
    return WidthSchedule(
        full=plan.full,
        target=members[-1].widths,
        start=round(config.pruning.start * config.steps),
        end=max(1, round(config.pruning.end * config.steps)),
        interval=config.pruning.interval,
        stops=tuple(member.widths for member in members[:-1]),
        rest=round(config.pruning.rest * config.steps),
    )


def _choose_placement(
    config: RunConfig, asked: str, machine: dict[str, Any], plan: WidthPlan, student_plan: WidthPlan, target: Widths
) -> tuple[str, str]:
    """Where the teacher goes, the same on all ranks, and the reason. A model to train goes where its stage says."""
    if plan.family.fused and asked == "auto":
        return "replicated", ""
    if config.method == "pretrain":
        return ("zero3" if ds_config.zero_stage(machine) == 3 else "replicated"), ""
    student = parameters(student_plan, target if config.student.init == "random" else plan.full)
    sizes = {
        "teacher_bytes": parameters(plan, plan.full) * train_dtype(machine).itemsize,
        "student_bytes": student_bytes(machine, student),
        "available_bytes": ranks.smallest(memory.available_bytes()),
        "world_size": ranks.world_size(),
    }
    on_gpu = torch.cuda.is_available()
    placed = ranks.together(lambda: placement.choose(asked, **sizes, on_gpu=on_gpu))
    return placed, placement.explain(asked, placed, **sizes, on_gpu=on_gpu)


def _load(
    teacher: str, head_may_be_missing: bool, whole: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Read | None]:
    if whole:
        return *load_teacher(teacher, head_may_be_missing), None
    return load_outline(teacher, head_may_be_missing)
