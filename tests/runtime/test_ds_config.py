"""The DeepSpeed file: refused with a remedy where DeepSpeed would ignore or trip, and batch sizes that multiply up."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from homodistil_ds.errors import HomodistilError
from homodistil_ds.runtime import ds_config
from homodistil_ds.runtime.ds_config import KNOWN_KEYS, REFUSED_KEYS, precision, read, with_batch_sizes, zero_stage

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "ds_configs").glob("*.json"))


def refused(tmp_path: Path, text: str) -> HomodistilError:
    path = tmp_path / "ds.json"
    path.write_text(text)
    with pytest.raises(HomodistilError) as caught:
        read(path)
    assert str(path) in caught.value.what
    return caught.value


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_file_is_accepted_unchanged(path: Path) -> None:
    assert read(path) == json.loads(path.read_text())


def test_an_unknown_key_is_refused_with_the_nearest_known_one(tmp_path: Path) -> None:
    error = refused(tmp_path, '{"zero_optimisation": {"stage": 2}}')
    assert error.error_id == "CFG-UNKNOWN-KEY"
    assert "zero_optimisation" in error.what
    assert "Did you mean 'zero_optimization'?" in error.remedy


@pytest.mark.parametrize("key", sorted(REFUSED_KEYS))
def test_a_key_with_another_home_is_refused_with_that_home(tmp_path: Path, key: str) -> None:
    error = refused(tmp_path, json.dumps({key: {}}))
    assert (error.error_id, error.remedy) == ("CFG-REFUSED-KEY", REFUSED_KEYS[key])
    assert key not in KNOWN_KEYS


@pytest.mark.parametrize(
    ("text", "error_id"),
    [
        ("{", "CFG-JSON"),
        ("[1]", "CFG-JSON"),
        ('{"zero_optimization": {"stage": 4}}', "CFG-STAGE"),
        ('{"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}', "CFG-OFFLOAD"),
        ('{"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}}', "CFG-OFFLOAD"),
        ('{"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}}', "CFG-OFFLOAD"),
        ('{"zero_optimization": {"stage": 3, "offload_optimizer": true}}', "CFG-OFFLOAD"),
        ('{"zero_optimization": {"stage": 1}, "data_types": {"grad_accum_dtype": "fp32"}}', "CFG-REFUSED-KEY"),
        ('{"zero_optimization": {"stage": 2, "compute_grad_norm": false}}', "CFG-REFUSED-KEY"),
        ('{"zero_optimization": {"stage": 2, "cpu_offload": true}}', "CFG-REFUSED-KEY"),
        ('{"gradient_allreduce_op": "sum"}', "CFG-REFUSED-KEY"),
        ('{"gradient_clipping": "auto"}', "CFG-TYPE"),
        ('{"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}}', "CFG-TYPE"),
        ('{"zero_optimization": {"stage": 2}, "bf16": {"enabled": "auto"}}', "CFG-TYPE"),
        ('{"zero_optimization": {"stage": 2}, "bf16": {"enabled": 1}}', "CFG-TYPE"),
        ('{"zero_optimization": {"stagee": 2}, "bf16": {"enabled": true}}', "CFG-UNKNOWN-KEY"),
        (
            '{"zero_optimization": {"stage": 2}, "bf16": {"enabled": true, "check_grad_overflow": false}}',
            "CFG-REFUSED-KEY",
        ),
        ('{"zero_optimization": {"stage": 2}, "bfloat16": {"bf16_optimizer_states": true}}', "CFG-REFUSED-KEY"),
        ('{"bf16": {"enabled": true}}', "CFG-PRECISION"),
        ('{"bfloat16": {"enabled": true}, "zero_optimization": {"stage": 0}}', "CFG-PRECISION"),
        ('{"fp16": {"enabled": true}}', "CFG-PRECISION"),
        ('{"torch_autocast": {"enabled": true, "dtype": "torch.float16"}}', "CFG-PRECISION"),
    ],
)
def test_what_this_version_cannot_run_is_refused(tmp_path: Path, text: str, error_id: str) -> None:
    assert refused(tmp_path, text).error_id == error_id


def test_an_offload_that_is_null_is_none(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text('{"zero_optimization": {"stage": 2, "offload_optimizer": null}}', encoding="utf-8")
    assert not ds_config.offloads(ds_config.read(path))


@pytest.mark.parametrize("text", ['{"zero_optimization": true}', '{"bf16": true}'])
def test_a_block_that_is_no_object_is_refused_and_not_a_traceback(tmp_path: Path, text: str) -> None:
    assert refused(tmp_path, text).exit_code == 2


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(HomodistilError, match=re.escape(str(tmp_path / "none.json"))):
        read(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("values", "stage", "name"),
    [
        ({}, 0, "fp32"),
        ({"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}, 2, "bf16"),
        ({"zero_optimization": {"stage": 1}, "fp16": {"enabled": True}}, 1, "fp16"),
        ({"torch_autocast": {"enabled": True}}, 0, "autocast"),
        ({"torch_autocast": {"enabled": True, "dtype": "bf16"}}, 0, "autocast"),
        ({"bf16": {"enabled": False}, "fp16": {"enabled": False}}, 0, "fp32"),
    ],
)
def test_stage_and_precision_are_read(tmp_path: Path, values: dict[str, Any], stage: int, name: str) -> None:
    (tmp_path / "ds.json").write_text(json.dumps(values))
    assert read(tmp_path / "ds.json") == values
    assert (zero_stage(values), precision(values)) == (stage, name)


def fits(values: dict[str, Any], global_batch: int, world_size: int) -> bool:
    try:
        with_batch_sizes(values, global_batch, world_size)
    except HomodistilError as error:
        if error.error_id != "CFG-BATCH":
            raise
        return False
    return True


GRID = list(itertools.product(range(1, 41), (1, 2, 3, 4), (None, 1, 3, 4, 32)))


def machine(micro: int | None) -> dict[str, Any]:
    return {} if micro is None else {"train_micro_batch_size_per_gpu": micro}


def test_micro_batch_ranks_and_accumulation_multiply_to_the_global_batch() -> None:
    accepted = [case for case in GRID if fits(machine(case[2]), case[0], case[1])]
    for global_batch, world_size, micro in accepted:
        values = machine(micro)
        result = with_batch_sizes(values, global_batch, world_size)
        own, steps = result["train_micro_batch_size_per_gpu"], result["gradient_accumulation_steps"]
        assert own * steps * world_size == result["train_batch_size"] == global_batch
        assert own <= (micro or global_batch)
        assert values == machine(micro)
    assert {world for _, world, _ in accepted} == {1, 2, 3, 4}
    assert len(accepted) < len(GRID)


def test_a_global_batch_that_does_not_fit_names_others_that_do() -> None:
    for global_batch, world_size, micro in GRID:
        if not fits(machine(micro), global_batch, world_size):
            for value in named(global_batch, world_size, micro):
                assert fits(machine(micro), value, world_size), (global_batch, world_size, micro, value)


def test_the_named_global_batches_are_the_nearest_that_fit() -> None:
    for global_batch, world_size, micro in GRID:
        if not fits(machine(micro), global_batch, world_size):
            distance = min(abs(value - global_batch) for value in named(global_batch, world_size, micro))
            nearer = range(max(1, global_batch - distance + 1), global_batch + distance)
            assert not any(fits(machine(micro), value, world_size) for value in nearer), (
                f"global batch {global_batch}, {world_size} ranks, micro batch {micro}"
            )


def named(global_batch: int, world_size: int, micro: int | None) -> list[int]:
    with pytest.raises(HomodistilError) as caught:
        with_batch_sizes(machine(micro), global_batch, world_size)
    numbers = re.search(r"Nearest that fit: ([\d, ]+);", caught.value.remedy)
    assert numbers is not None
    return [int(number) for number in numbers[1].split(",")]


@pytest.mark.parametrize("extra", [{"train_batch_size": 16}, {"gradient_accumulation_steps": 3}])
def test_a_second_home_for_a_batch_size_may_agree_but_not_differ(extra: dict[str, int]) -> None:
    agreeing = {"train_batch_size": 32, "gradient_accumulation_steps": 4}
    assert fits({"train_micro_batch_size_per_gpu": 4, **agreeing}, 32, 2)
    assert not fits({"train_micro_batch_size_per_gpu": 4, **agreeing, **extra}, 32, 2)


@pytest.mark.parametrize("key", ["train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"])
def test_the_value_auto_of_other_launchers_is_refused_and_not_a_traceback(key: str) -> None:
    assert not fits({key: "auto"}, 32, 2)
