"""A start and a plan count on a teacher cache only where it can be whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import BertConfig

from homodistil_ds.machine import Machine
from homodistil_ds.planning import page
from homodistil_ds.planning.cache import cache_bytes, cache_row_bytes, cache_seems_whole, taught_by
from homodistil_ds.planning.devices import GPUS
from homodistil_ds.planning.job import Job, job_of
from homodistil_ds.planning.memory import teacher_bytes
from homodistil_ds.planning.plan import plan_of
from homodistil_ds.planning.traffic import step_traffic
from homodistil_ds.presets import PRESETS


def job_with_cache(folder: Path, ranks: int = 1, placement: str = "auto") -> Job:
    BertConfig().save_pretrained(folder / "teacher")
    config = replace(
        PRESETS["plain_kd"](), teacher=str(folder / "teacher"), steps=2, global_batch_size=4, held_out_sequences=3
    )
    machine = Machine(
        ds_config={"train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": 1}}, teacher_placement=placement
    )
    return job_of(config, machine, nodes=1, ranks_per_node=ranks, device=GPUS["h100"])


def test_an_empty_or_half_written_cache_is_none(tmp_path: Path) -> None:
    job = job_with_cache(tmp_path)
    cache, rows = tmp_path / "cache", 2 * 4 + 3
    assert not cache_seems_whole("", job)
    assert not cache_seems_whole(str(cache), job), "before anyone wrote"
    cache.mkdir()
    for number, held in enumerate((rows - 1, 1)):
        assert not cache_seems_whole(str(cache), job)
        (cache / f"states-key-{number}.safetensors").write_bytes(bytes(held * cache_row_bytes(job)))
    assert cache_row_bytes(job) > 0
    assert cache_seems_whole(str(cache), job)


def test_a_whole_cache_spares_the_teachers_body_its_gathering_and_its_memory(tmp_path: Path) -> None:
    """What stays is its head: the vocabulary's matrix, and its product."""
    job = job_with_cache(tmp_path, ranks=2, placement="zero3")
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "states-key-0.safetensors").write_bytes(bytes(cache_bytes(job)))
    read, ran = taught_by(job, str(cache)), taught_by(job, "")
    matrix = 30522 * 768
    assert ran == job
    assert teacher_bytes(read) == 4 * matrix < teacher_bytes(ran)
    assert "teacher" in step_traffic(ran, ran.plan.full, scored=False)
    assert "teacher" not in step_traffic(read, read.plan.full, scored=False)
    share = read.predicted_share
    assert read.flop_parts(read.plan.full)["teacher"] == pytest.approx(2 * share * (768 * 768 + matrix))
    plans = plan_of(read), plan_of(ran)
    assert plans[0].end_peak == plans[1].end_peak, "the finished student is measured beside its teacher"
    assert plans[0].flops < plans[1].flops
    assert plans[0].seconds < plans[1].seconds
    assert {choice.placement for choice in plans[0].choices} == {"zero3"}
    assert "teacher from its cache" in page.text(plans[0])
