"""The phases of a planned run: the steps between two cuts, what they take of each rank, and for how long."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from homodistil_ds.models.width import Widths, count
from homodistil_ds.planning.around import host_bytes_of_node
from homodistil_ds.planning.job import Job
from homodistil_ds.planning.memory import Footprint, footprint, job_at
from homodistil_ds.planning.speed import Pace, pace
from homodistil_ds.planning.traffic import step_traffic, wire_traffic
from homodistil_ds.pruning.milestones import Milestone
from homodistil_ds.runtime import ds_config


@dataclass(frozen=True, kw_only=True)
class Phase:
    """The steps `first` to `last` at one physical shape."""

    first: int
    last: int
    widths: Widths
    stage: int
    recomputes: bool
    parameters: int
    """Of the student, without projections."""
    footprint: Footprint
    traffic: Mapping[str, int]
    """Bytes that a rank gets in one optimizer step, while neurons still leave."""
    wire: Mapping[str, int]
    """Bytes that go over its line for that."""
    pace: Pace

    @property
    def steps(self) -> int:
        return self.last - self.first + 1

    @property
    def seconds(self) -> float:
        return self.steps * self.pace.seconds


def phases_of(job: Job) -> Iterator[Phase]:
    cuts = (Milestone(step=0, widths=job.first_widths), *job.milestones)
    ends = [cut.step for cut in job.milestones] + [job.config.steps]
    nexts = [cut.widths for cut in job.milestones] + [None]
    for cut, last, after in zip(cuts, ends, nexts, strict=True):
        own, scored = job_at(job, cut.widths), job.prunes and job.schedule.is_scored(cut.step + 1)
        traffic = step_traffic(own, cut.widths, scored)
        wire = wire_traffic(own, traffic)
        yield Phase(
            first=cut.step + 1,
            last=last,
            widths=cut.widths,
            stage=own.stage,
            recomputes=ds_config.recomputes(own.machine),
            parameters=count(job.student_plan, cut.widths).with_head,
            footprint=footprint(own, cut.widths, after),
            traffic=traffic,
            wire=wire,
            pace=pace(own, cut.widths, wire),
        )


def host_peak(job: Job, phases: Sequence[Phase]) -> int:
    """Bytes of a node's host memory, beside GPUs."""
    return host_bytes_of_node(job, [phase.footprint for phase in phases])
