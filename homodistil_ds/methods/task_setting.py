"""What the methods on a task need before they build a stage: examples, the model that learns, batches."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from homodistil_ds.config import RunConfig
from homodistil_ds.data.corpus import Order
from homodistil_ds.data.glue import Task, task_named
from homodistil_ds.data.glue_files import NO_SPLIT, read_split
from homodistil_ds.data.task_batches import Encoded, TaskBatches, encode
from homodistil_ds.errors import HomodistilError, require
from homodistil_ds.machine import Machine
from homodistil_ds.methods.opening import Run, checked, claim_folder, open_logs, say
from homodistil_ds.methods.start import check_same_data, refuse_used, where_to_start
from homodistil_ds.models.families import plan_for
from homodistil_ds.models.tasks import load_classifier
from homodistil_ds.models.width import WidthPlan
from homodistil_ds.planning.descent import check_length
from homodistil_ds.runtime import ranks

HELD_OUT = "held_out"  # the split that --task.held_out makes
HELD_OUT_KEY = 0x48454C44


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """A task's examples as token ids: those to train on, and by split those to evaluate and to predict."""

    task: Task
    train: Encoded
    evaluation: dict[str, Encoded]
    tests: dict[str, Encoded]

    @property
    def fingerprint(self) -> str:
        """16 hex digits over what is trained on."""
        digest = hashlib.sha256(np.concatenate(self.train.ids).tobytes())
        digest.update(self.train.labels.tobytes() if self.train.labels is not None else b"")
        return digest.hexdigest()[:16]


@dataclass(kw_only=True)
class TaskSetting(Run):
    """`model` is what learns, with a head for the task."""

    data: TaskData
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    plan: WidthPlan
    batches: TaskBatches


def prepare_task(config: RunConfig, machine: Machine, command: str, within: Path | None = None) -> TaskSetting:
    """Check everything a user can get wrong, read the task, claim the run directory. All ranks call it.

    A run of 0 steps gets those of its epochs. Raises HomodistilError.
    """
    started = time.perf_counter()
    first, later = checked(config, machine)
    if machine.resume == "never":
        ranks.on_first(lambda: refuse_used(Path(config.output_dir)))
    task = ranks.together(lambda: task_named(config.task.name))
    # A new head is the seed's, on every rank, whatever this process has trained before.
    torch.manual_seed(config.seed)
    model, tokenizer = ranks.together(lambda: load_classifier(config.model, task.classes))
    plan = plan_for(model.config)
    ranks.together(lambda: check_length(config, plan))
    data = ranks.together(lambda: read_task(config, task, tokenizer))
    config = replace(config, steps=config.steps or steps_of(config, len(data.train)))
    found = where_to_start(config, machine.resume, say)
    if found is not None:
        ranks.together(lambda: check_same_data(found, data.fingerprint, vars(plan.full), "--task.data"))
    ranks.on_first(lambda: claim_folder(Path(config.output_dir)))
    return TaskSetting(
        config=config,
        ds_config=first,
        ds_config_after_cuts=later,
        run_dir=Path(config.output_dir),
        command=command,
        placement="replicated",
        fingerprint=data.fingerprint,
        monitor=open_logs(config, found),
        checkpoint=found,
        started=started,
        within=within,
        data=data,
        model=model,
        tokenizer=tokenizer,
        plan=plan,
        batches=_batches(config, data, tokenizer, first["train_micro_batch_size_per_gpu"]),
    )


def steps_of(config: RunConfig, examples: int) -> int:
    return max(1, math.ceil(config.task.epochs * examples / config.global_batch_size))


def read_task(config: RunConfig, task: Task, tokenizer: PreTrainedTokenizerBase) -> TaskData:
    """The splits that are there; a missing test split is no error, but one that is evaluated on is."""
    wanted = config.task
    examples = read_split(wanted.data, task, "train")
    if examples.skipped:
        say(f"{task.name}: {examples.skipped} short rows of train are skipped")
    length = config.sequence_length
    train = encode(examples, tokenizer, length)
    used, held_out = used_and_held_out(len(train), wanted.fraction, wanted.held_out, config.seed)
    if wanted.held_out:
        evaluation = {HELD_OUT: train.take(held_out)}
    else:
        evaluation = {
            split: encode(read_split(wanted.data, task, split), tokenizer, length) for split in task.evaluation
        }
    return TaskData(
        task=task,
        train=train.take(used),
        evaluation=evaluation,
        tests={} if wanted.held_out else _tests(config, task, tokenizer),
    )


def used_and_held_out(examples: int, fraction: float, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the examples to train on and of those held out of them, ascending.

    The seed draws the `fraction` that is used. Which of all examples are held out no seed decides, so that a teacher
    that learnt with the same share held out has seen none of them, whatever seed it had.

    Raises HomodistilError CFG-RANGE where one side would be empty.
    """
    order = np.random.Generator(np.random.Philox(key=seed % 2**64)).permutation(examples)
    used = np.sort(order[: max(1, round(fraction * examples))])
    apart = np.random.Generator(np.random.Philox(key=HELD_OUT_KEY)).permutation(examples)[: round(held_out * examples)]
    chosen = np.isin(used, apart)
    both = not held_out or 0 < chosen.sum() < len(used)
    require("task.held_out", held_out, both, f"Use another share: {len(used)} examples are used, one side gets none.")
    return used[~chosen], used[chosen]


def _tests(config: RunConfig, task: Task, tokenizer: PreTrainedTokenizerBase) -> dict[str, Encoded]:
    found = {}
    for split in task.submissions if config.task.predict else ():
        try:
            found[split] = encode(read_split(config.task.data, task, split), tokenizer, config.sequence_length)
        except HomodistilError as error:
            if error.error_id != NO_SPLIT:
                raise
            say(f"no predictions for {task.name} {split}: {error.what}")
    return found


def _batches(config: RunConfig, data: TaskData, tokenizer: PreTrainedTokenizerBase, micro_batch: int) -> TaskBatches:
    loss = config.task_loss
    mixes = config.mixup.ratio > 0 and loss.mixes(with_teacher=config.method == "mixkd")
    return TaskBatches(
        examples=data.train,
        order=Order(len(data.train), config.seed),
        seed=config.seed,
        global_batch=config.global_batch_size,
        micro_batch=micro_batch,
        rank=ranks.rank(),
        world_size=ranks.world_size(),
        pad_id=int(tokenizer.pad_token_id or 0),
        mixing=config.mixup if mixes else None,
        teacher_reads_plain=loss.kd + loss.patience > 0,
    )
