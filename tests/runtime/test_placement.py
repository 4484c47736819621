"""The choice of a placement and the sizes behind it; filling a plain module a run at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from homodistil_ds.errors import HomodistilError
from homodistil_ds.runtime import memory, placement

GIB = 2**30


def sizes_of(teacher: float = 1, student: float = 1, free: float = 10, **changed: Any) -> placement.Sizes:
    """Sizes in GiB, on 4 ranks with a GPU each unless changed."""
    teacher_bytes, student_bytes, available_bytes = (int(size * GIB) for size in (teacher, student, free))
    machine = {"world_size": 4, "ranks_per_node": 4, "on_gpu": True} | changed
    return placement.Sizes(
        teacher_bytes=teacher_bytes, student_bytes=student_bytes, available_bytes=available_bytes, **machine
    )


def chosen(asked: str = "auto", **sizes: Any) -> str:
    return placement.choose(asked, sizes_of(**sizes))


def test_auto_takes_the_first_placement_that_fits_comfortably() -> None:
    assert chosen(teacher=5) == "replicated"
    assert chosen(teacher=6) == "zero3"
    assert chosen(teacher=22) == "zero3"
    assert chosen(teacher=23) == "cpu_offload"
    assert chosen(teacher=1, student=6) == "zero3"
    assert chosen(teacher=6, ranks_per_node=2) == "node"
    assert chosen(teacher=12, ranks_per_node=2) == "zero3"
    assert chosen(teacher=6, ranks_per_node=1) == "zero3"


def test_where_nothing_fits_auto_takes_the_leanest() -> None:
    assert chosen(teacher=100) == "cpu_offload"
    assert chosen(teacher=100, on_gpu=False) == "zero3"
    assert chosen(teacher=100, world_size=1) == "cpu_offload"
    assert chosen(teacher=100, world_size=1, on_gpu=False) == "replicated"


@pytest.mark.parametrize("asked", ["replicated", "node", "zero3", "cpu_offload"])
def test_what_is_asked_is_done_and_an_unknown_name_refused(asked: str) -> None:
    assert chosen(asked, teacher=100) == asked
    with pytest.raises(HomodistilError, match=f"{asked}s") as caught:
        chosen(f"{asked}s")
    assert f"'{asked}'?" in caught.value.remedy


def test_the_reason_names_the_sizes_and_warns_where_they_are_tight() -> None:
    roomy = placement.explain("auto", "zero3", sizes_of(teacher=8))
    assert "zero3. A rank may use 10,240 MiB; the teacher takes 2,048 MiB of it (8,192 MiB as a whole)" in roomy
    assert "may not fit" not in roomy
    tight = placement.explain("replicated", "replicated", sizes_of(teacher=8))
    assert "replicated, as asked" in tight
    assert "may not fit" in tight
    assert "takes 4,096 MiB" in placement.explain("auto", "node", sizes_of(teacher=8, ranks_per_node=2))
    assert "takes 0 MiB" in placement.explain("auto", "cpu_offload", sizes_of(teacher=8))


@pytest.mark.parametrize(
    ("stage", "precision", "per_parameter"),
    [(0, "fp32", 16), (1, "bf16", 8), (2, "bf16", 6.5), (3, "bf16", 4.5), (1, "fp32", 12), (3, "autocast", 5)],
)
def test_bytes_of_a_student_per_rank_of_four(stage: int, precision: str, per_parameter: float) -> None:
    assert memory.student_bytes(1000, stage, 4, precision) == 1000 * per_parameter


def test_room_is_that_of_the_narrowest_control_group_without_cached_pages(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/job/step\n", encoding="utf-8")
    assert memory.cgroup_room(own, tmp_path) is None
    for folder, limit in (("job/step", "max"), ("job", str(1000))):
        group = tmp_path / folder
        group.mkdir(parents=True, exist_ok=True)
        (group / "memory.max").write_text(f"{limit}\n", encoding="utf-8")
        (group / "memory.current").write_text("700\n", encoding="utf-8")
        (group / "memory.stat").write_text("anon 600\ninactive_file 100\n", encoding="utf-8")
    assert memory.cgroup_room(own, tmp_path) == 400
    assert memory.cgroup_room(tmp_path / "absent", tmp_path) is None


def test_room_below_a_limit_of_version_1(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("5:cpu,memory:/job\n4:pids:/job\n", encoding="utf-8")
    group = tmp_path / "memory" / "job"
    group.mkdir(parents=True)
    for name, value in (("limit_in_bytes", 1000), ("usage_in_bytes", 700)):
        (group / f"memory.{name}").write_text(str(value), encoding="utf-8")
    (group / "memory.stat").write_text("total_inactive_file 50\n", encoding="utf-8")
    assert memory.cgroup_room(own, tmp_path) == 350
    (group / "memory.limit_in_bytes").write_text(str(2**63 - 4096), encoding="utf-8")
    assert memory.cgroup_room(own, tmp_path) is None


def test_a_limit_of_the_process_bounds_what_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    used = memory.psutil.Process().memory_info().data
    monkeypatch.setattr(memory.resource, "getrlimit", lambda kind: (used + 5 * 2**20, -1))
    assert memory.available_bytes() <= 6 * 2**20


def test_a_plain_module_is_filled_in_runs_with_its_saved_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "RUN", 7)
    module, source = nn.BatchNorm1d(5), nn.BatchNorm1d(5)
    module.register_buffer("unsaved", torch.ones(3), persistent=False)
    for tensor in source.state_dict().values():
        tensor.copy_(torch.arange(1, 1 + tensor.numel()).view(tensor.shape))
    read = []

    def run(name: str, start: int, count: int) -> torch.Tensor:
        read.append((name, count))
        return source.state_dict()[name].view(-1)[start : start + count].double()

    placement.fill(module, run)
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in module.state_dict().items())
    assert max(count for _, count in read) <= 7
    assert bool(module.unsaved.all())


def test_a_sharded_teacher_has_the_precision_of_training_and_leaves_torch_as_it_is() -> None:
    ds_config = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}, "gradient_clipping": 1.0}
    config = placement.teacher_config("cpu_offload", ds_config, 10)
    assert config["bf16"] == {"enabled": True}
    assert config["zero_optimization"]["offload_param"]["device"] == "cpu"
    assert config["zero_optimization"]["memory_efficient_linear"] is False
    assert "gradient_clipping" not in config
    autocast = placement.teacher_config("zero3", {"torch_autocast": {"enabled": True}}, 10)
    assert autocast["torch_autocast"]["lower_precision_safe_modules"] == []
    assert "offload_param" not in autocast["zero_optimization"]
