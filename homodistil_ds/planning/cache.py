"""What a teacher cache takes, and whether one spares a run its teacher's body."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from homodistil_ds.planning.job import Job


def cache_row_bytes(job: Job) -> int:
    """Of a row: last states at its predicted positions; 0 where losses read more of the teacher than its logits, or
    nothing."""
    if not job.objective.teacher_reads() or job.objective.teacher_reads() - {"logits", "predicted"}:
        return 0
    positions = round(job.predicted_share * job.config.sequence_length)
    return positions * job.plan.full.hidden * job.weight_bytes


def cache_bytes(job: Job) -> int:
    """Of the whole run, held-out rows too."""
    config = job.config
    return cache_row_bytes(job) * (config.steps * config.global_batch_size + config.held_out_sequences)


def cache_seems_whole(folder: str, job: Job) -> bool:
    """Whether a teacher cache is as large as all rows of the run, so that the teacher's body will not be there.

    Which rows it holds is seen when it is opened.
    """
    held = sum(path.stat().st_size for path in Path(folder).glob("states-*.safetensors")) if folder else 0
    return held > 0 and held >= cache_bytes(job)


def taught_by(job: Job, folder: str) -> Job:
    """The job as it runs with the teacher cache in `folder`, "" for none."""
    return replace(job, cached=cache_seems_whole(folder, job))
