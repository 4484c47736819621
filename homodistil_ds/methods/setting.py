"""What every method needs before it builds a stage: checked inputs, a claimed run directory, the corpus, the curves."""

from __future__ import annotations

import contextlib
import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from homodistil_ds.config import RunConfig
from homodistil_ds.data.batches import Batches
from homodistil_ds.data.corpus import Corpus, Order, prepare
from homodistil_ds.data.masking import masking_for
from homodistil_ds.errors import HomodistilError
from homodistil_ds.evaluation.report import versions
from homodistil_ds.models.families import plan_for, target_widths
from homodistil_ds.models.loading import load_teacher
from homodistil_ds.models.width import WidthPlan, Widths
from homodistil_ds.runtime import ds_config, engine, ranks
from homodistil_ds.runtime.monitor import Monitor


@dataclass(kw_only=True)
class Setting:
    """`source` is the loaded model: the teacher of a distillation, the model to train of a pre-training."""

    config: RunConfig
    ds_config: dict[str, Any]
    run_dir: Path
    command: str
    source: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    plan: WidthPlan
    target: Widths
    corpus: Corpus
    batches: Batches
    monitor: Monitor
    started: float

    @property
    def train_dtype(self) -> torch.dtype:
        return torch.bfloat16 if ds_config.precision(self.ds_config) == "bf16" else torch.float32


def prepare_setting(config: RunConfig, machine: dict[str, Any], command: str, head_may_be_missing: bool) -> Setting:
    """Check everything a user can get wrong, then pack the corpus into the run directory.

    All ranks call it and fail together. Raises HomodistilError.
    """
    started = time.perf_counter()
    run_dir = Path(config.output_dir)
    machine = ranks.together(lambda: ds_config.with_batch_sizes(machine, config.global_batch_size, ranks.world_size()))
    ranks.together(lambda: engine.check(machine, config.optimizer))
    ranks.together(lambda: _refuse_used(run_dir) if ranks.rank() == 0 else None)
    source, tokenizer = ranks.together(lambda: load_teacher(config.teacher, head_may_be_missing))
    plan = plan_for(source.config)
    student = config.student
    target = ranks.together(
        lambda: target_widths(plan, student.hidden_size, student.intermediate_size, student.num_attention_heads)
    )
    ranks.together(lambda: _check_length(config, plan))
    masking = ranks.together(lambda: masking_for(tokenizer, plan.fixed["vocab"], config.mask_probability))
    corpus = _read_corpus(config, tokenizer, run_dir)
    batches = Batches(
        corpus=corpus,
        masking=masking,
        order=Order(len(corpus.train), config.seed),
        seed=config.seed,
        global_batch=config.global_batch_size,
        micro_batch=machine["train_micro_batch_size_per_gpu"],
        rank=ranks.rank(),
        world_size=ranks.world_size(),
    )
    return Setting(
        config=config,
        ds_config=machine,
        run_dir=run_dir,
        command=command,
        source=source,
        tokenizer=tokenizer,
        plan=plan,
        target=target,
        corpus=corpus,
        batches=batches,
        monitor=Monitor(run_dir, config.steps, enabled=ranks.rank() == 0),
        started=started,
    )


def _read_corpus(config: RunConfig, tokenizer: PreTrainedTokenizerBase, run_dir: Path) -> Corpus:
    """Rank 0 packs the corpus into the run directory, then all ranks map it."""

    def pack() -> None:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HomodistilError(
                "CFG-OUTPUT", f"--output_dir {run_dir} cannot be made: {error.strerror}", "Choose another folder."
            ) from error
        try:
            read()
        except HomodistilError:
            with contextlib.suppress(OSError):
                run_dir.rmdir()  # only if nothing is in it
            raise

    def read() -> Corpus:
        cache = run_dir / "corpus"
        return prepare(config.corpus, tokenizer, config.sequence_length, config.held_out_sequences, cache)

    ranks.together(lambda: pack() if ranks.rank() == 0 else None)
    corpus = ranks.together(read)
    if ranks.differing({"corpus": int(corpus.fingerprint, 16) >> 1}) is not None:
        raise HomodistilError(
            "DIST-CORPUS-DIFFERS",
            f"the packed corpus in {run_dir} is not the same on all ranks",
            "Let all nodes see one --output_dir, on a shared file system.",
        )
    return corpus


def claim(setting: Setting) -> None:
    """Write what this run is, once its engine stands: from here on the folder holds a run. All ranks call it."""
    ranks.together(lambda: _write_records(setting) if ranks.rank() == 0 else None)


def _write_records(setting: Setting) -> None:
    facts = {
        "command": setting.command,
        "host": platform.node(),
        "world_size": ranks.world_size(),
        "versions": versions(),
    }
    for name, text in (
        ("run.json", json.dumps(facts, indent=2) + "\n"),
        ("ds_config.json", json.dumps(setting.ds_config, indent=2) + "\n"),
        ("run_config.json", setting.config.to_json()),
    ):
        (setting.run_dir / name).write_text(text, encoding="utf-8")


def _refuse_used(run_dir: Path) -> None:
    used = [name for name in ("run_config.json", "checkpoints", "student") if (run_dir / name).exists()]
    if used:
        raise HomodistilError(
            "CFG-USED-DIR",
            f"--output_dir {run_dir} already holds a run ({', '.join(used)})",
            "Choose another --output_dir, or move that one away.",
        )


def _check_length(config: RunConfig, plan: WidthPlan) -> None:
    longest = plan.fixed["position"]
    if config.sequence_length > longest:
        raise HomodistilError(
            "CFG-LENGTH",
            f"--sequence_length {config.sequence_length}, but the teacher knows {longest} positions",
            f"Use {longest} or less.",
        )
