"""A start counts on a teacher cache only where it can be whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from transformers import BertConfig

from homodistil_ds.machine import Machine
from homodistil_ds.methods.setting import cache_seems_whole
from homodistil_ds.planning.devices import GPUS
from homodistil_ds.planning.job import job_of
from homodistil_ds.planning.memory import cache_row_bytes
from homodistil_ds.presets import PRESETS


def test_an_empty_or_half_written_cache_is_none(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path / "teacher")
    config = replace(
        PRESETS["plain_kd"](), teacher=str(tmp_path / "teacher"), steps=2, global_batch_size=4, held_out_sequences=3
    )
    machine = Machine(ds_config={"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": 1}})
    job = job_of(config, machine, nodes=1, ranks_per_node=1, device=GPUS["h100"])
    cache, rows = tmp_path / "cache", 2 * 4 + 3
    assert not cache_seems_whole("", job)
    assert not cache_seems_whole(str(cache), job), "before anyone wrote"
    cache.mkdir()
    for number, held in enumerate((rows - 1, 1)):
        assert not cache_seems_whole(str(cache), job)
        (cache / f"states-key-{number}.safetensors").write_bytes(bytes(held * cache_row_bytes(job)))
    assert cache_row_bytes(job) > 0
    assert cache_seems_whole(str(cache), job)
