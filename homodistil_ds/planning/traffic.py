"""Bytes that a rank gets from collectives in one optimizer step, by what they carry: what real runs count, to the byte
(tests/integration/test_plan.py).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from homodistil_ds.models.width import WidthPlan, Widths
from homodistil_ds.planning.job import UNTIED, Job, Parameters, entries, vocabulary_matrix
from homodistil_ds.planning.memory import FP32, LIVE
from homodistil_ds.pruning.cost import speaks
from homodistil_ds.runtime import ds_config

PERSISTENT = 100_000  # entries up to which ZeRO-3 keeps a parameter whole, unless the file says so
REUSE = 1_000_000_000  # entries after which a gathered parameter that is needed again is let go
Parameter = tuple[str, tuple[int, ...]]
PER_LAYER = "projections.hidden.weight"  # lifts the states of every layer


def step_traffic(job: Job, widths: Widths, scored: bool) -> dict[str, int]:
    """At these physical widths; `scored` while neurons still leave. Nothing on one rank."""
    if job.ranks == 1:
        return {}
    trained = list(job.trained(widths))
    found = _sharded(job, trained, widths) if job.stage == 3 else _whole(job, trained)
    if job.teacher_in_pieces:
        read_again = _read_again(job, job.plan, job.plan.full, job.objective.teacher_reads())
        found["teacher"] = job.accumulation * gathered(job, [*job.taught(), *read_again], 1, job.teacher_parts)
    if scored:
        found["scores"] = FP32 * sum(_neurons(job, widths))
    return {name: size for name, size in found.items() if size}


def wire_traffic(job: Job, traffic: Mapping[str, int]) -> dict[str, int]:
    """Bytes that go over a rank's line for the `traffic` of a step, by collectives in a ring: of an all-gather and a
    reduce-scatter everything but the rank's own part, of an all-reduce twice that. DeepSpeed 0.19 reduces gradients by
    all-reduce up to stage 2."""
    whole = {"gradients": job.ranks if job.stage == 3 else 2, "scores": 2}
    parts = {"teacher": job.teacher_parts}

    def others(name: str) -> float:
        return 1 - 1 / parts.get(name, job.ranks)

    return {name: round(size * whole.get(name, 1) * others(name)) for name, size in traffic.items()}


def _whole(job: Job, trained: Sequence[Parameter]) -> dict[str, int]:
    gradients = job.weight_bytes * entries(trained) * (job.accumulation if job.stage == 2 else 1)
    return {"gradients": gradients, "weights": job.weight_bytes * flat(job, trained) if job.stage else 0}


def _sharded(job: Job, trained: Sequence[Parameter], widths: Widths) -> dict[str, int]:
    again = list(_read_again(job, job.student_plan, widths, job.objective.student_reads()))
    again += [one for one in trained if one[0] == PER_LAYER] * (job.student_plan.layers - 1)
    size = entries(trained)
    stays = size <= min(job.zero("stage3_max_live_parameters", LIVE), job.zero("stage3_max_reuse_distance", REUSE))
    weights = job.accumulation * gathered(job, trained if stays else [*trained, *again], 1 if stays else 2, job.ranks)
    small = [parameter for parameter in trained if not _is_split(job, parameter[1])]
    weights += job.weight_bytes * padded(small, job.ranks)  # once, after the step
    gradients = job.accumulation * job.weight_bytes * padded(trained, job.ranks)
    return {"gradients": gradients // job.ranks, "weights": weights}


def _read_again(job: Job, plan: WidthPlan, widths: Widths, reads: Collection[str]) -> Iterator[Parameter]:
    """What a forward pass reads at several places, once for each but the first: the vocabulary's matrix, where it is
    tied to the embedding or makes logits in parts; it stays whole from part to part where the file lets it."""
    if not speaks(reads):
        return
    matrix, times = vocabulary_matrix(plan, widths), 1
    if "predicted" in reads:  # and once more for gradients
        stays = math.prod(matrix[1]) <= job.zero("stage3_max_reuse_distance", REUSE)
        times = 2 if stays else 2 * -(-job.predicted // job.rows)
    for _ in range(times - (matrix[0] == UNTIED)):
        yield matrix


def gathered(job: Job, parameters: Parameters, times: int, parts: int) -> int:
    """Of one micro batch, at ZeRO-3, from as many ranks as a parameter has parts."""
    return times * job.weight_bytes * padded((p for p in parameters if _is_split(job, p[1])), parts)


def _is_split(job: Job, shape: tuple[int, ...]) -> bool:
    return math.prod(shape) > job.zero("stage3_param_persistence_threshold", PERSISTENT)


def padded(parameters: Parameters, ranks: int) -> int:
    """Entries, each parameter filled up to equal parts."""
    return sum(-(-math.prod(shape) // ranks) * ranks for _, shape in parameters)


def flat(job: Job, trained: Sequence[Parameter]) -> int:
    """Entries of ZeRO 1 and 2: matrices and vectors in a row each, filled up to equal parts of an even length."""
    total = 0
    for matrices in (True, False):
        count = sum(math.prod(shape) for _, shape in trained if (len(shape) > 1) is matrices)
        total += -(-count // (2 * job.ranks)) * 2 * job.ranks
    return total


def _neurons(job: Job, widths: Widths) -> Iterable[int]:
    """Of every group at physical widths."""
    plan = job.student_plan
    return (plan.size(group.partition(".")[0], widths) for group in plan.groups())


def messages(job: Job) -> int:
    """Collectives of a step that wait for the network, at least."""
    per_layer = 2 * job.student_plan.layers * job.accumulation if job.stage == 3 else 0
    return 4 + per_layer + (job.plan.layers * job.accumulation if job.teacher_in_pieces else 0)


def host_traffic(job: Job, widths: Widths) -> int:
    """Bytes of a step between a rank's GPU and host memory: a teacher that lies there, parameters, gradients on their
    way to an Adam that works there and weights on their way back."""
    if job.device.keeps_freed:
        return 0
    w, size = job.weight_bytes, entries(job.trained(widths)) // job.ranks
    found = job.accumulation * w * entries(job.taught()) // job.ranks if job.offloads_teacher else 0
    if job.offloads:
        found += (job.accumulation + 1) * w * size
    if ds_config.offloads_parameters(job.machine):
        found += 2 * job.accumulation * w * size  # for the forward pass and for the backward pass
    return found
