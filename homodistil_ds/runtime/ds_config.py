"""The DeepSpeed configuration file: read it, refuse what DeepSpeed would ignore, and fill in the batch sizes."""

from __future__ import annotations

import difflib
import itertools
import json
from pathlib import Path
from typing import Any

from homodistil_ds.errors import HomodistilError, did_you_mean

# Top-level keys that DeepSpeed 0.19 reads and this project leaves to the file. DeepSpeed itself ignores any other key.
KNOWN_KEYS = frozenset(
    {
        *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "steps_per_print"),
        *("dump_state", "disable_python_gc", "disable_allgather", "communication_data_type", "prescale_gradients"),
        *("seq_parallel_communication_data_type", "gradient_predivide_factor", "gradient_allreduce_op"),
        *("zero_optimization", "activation_checkpointing", "comms_logger", "gradient_clipping", "fp16", "bf16"),
        *("bfloat16", "torch_autocast", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"),
        *("flops_profiler", "wall_clock_breakdown", "memory_breakdown", "checkpoint", "data_types", "aio"),
        *("dataloader_drop_last", "log_level", "compile", "timers"),
    }
)
# Keys that DeepSpeed reads but that would set a second home for a fact, or that it refuses, with what to use instead.
REFUSED_KEYS = {
    "optimizer": "The optimizer is part of the run: use --learning_rate and the --optimizer flags.",
    "scheduler": "The learning rate follows --learning_rate, --optimizer.warmup and --steps.",
    "tensorboard": "Curves are written to <output_dir>/tb without this block.",
    "wandb": "Curves are written to <output_dir>/tb; this block is not used.",
    "csv_monitor": "Curves are written to <output_dir>/tb; this block is not used.",
    "comet": "Curves are written to <output_dir>/tb; this block is not used.",
    "amp": "DeepSpeed 0.19 has no amp block: use bf16 or torch_autocast.",
    "elasticity": "Not supported by DeepSpeed 0.19: the accumulation is derived from --global_batch_size instead.",
    "compression_training": "Pruning is this program's own work: use the --student and --pruning flags.",
    "sparse_gradients": "Not supported by DeepSpeed 0.19.",
    "nebula": "Not supported by DeepSpeed 0.19.",
    "eigenvalue": "Not supported by DeepSpeed 0.19.",
    "curriculum_learning": "Not supported by DeepSpeed 0.19.",
    "data_efficiency": "The data order is a pure function of --seed; this block is not used.",
}

# Nested keys that may only have the value that training counts on: (block, key) -> value, and what else would happen.
FIXED = {
    ("bf16", "check_grad_overflow"): (True, "A gradient that is not finite would reach the weights."),
    ("bf16", "immediate_grad_update"): (False, "Gradients would be scored before they are reduced."),
    ("bf16", "bf16_master_weights_and_grads"): (False, "Masters would lose the small updates they exist for."),
    ("bf16", "bf16_optimizer_states"): (False, "Checkpoints and cuts carry moments in float32."),
    ("fp16", "fp16_master_weights_and_grads"): (False, "Masters would lose the small updates they exist for."),
    ("zero_optimization", "compute_grad_norm"): (True, "A gradient that is not finite would reach the weights."),
    ("", "gradient_allreduce_op"): ("mean", "Gradients would grow with the number of ranks."),
}

OLD_OFFLOAD = {"cpu_offload": "offload_optimizer", "cpu_offload_params": "offload_param"}  # DeepSpeed still reads them
OFFLOADED_FROM = {"offload_optimizer": 1, "offload_param": 3}  # the lowest ZeRO stage of each
HALF = ("float16", "torch.float16", "fp16", "half", "torch.half")  # as torch_autocast.dtype may spell it


def read(path: Path) -> dict[str, Any]:
    """Read a DeepSpeed JSON and check its top level.

    Raises HomodistilError for a missing file, bad JSON, an unknown or refused key, a stage or a precision
    that this version does not train in.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HomodistilError(
            "CFG-NO-FILE", f"--deepspeed_config {path}: {error.strerror}", "Files to start from lie in ds_configs/."
        ) from error
    except ValueError as error:
        raise HomodistilError(
            "CFG-JSON", f"--deepspeed_config {path}: {error}", "Mend the JSON at that place."
        ) from error
    if not isinstance(values, dict):
        raise HomodistilError("CFG-JSON", f"--deepspeed_config {path}: the top level is not an object", "Use {...}.")
    for key in values:
        if key in REFUSED_KEYS:
            raise HomodistilError("CFG-REFUSED-KEY", f"{path}: key '{key}' has no place here", REFUSED_KEYS[key])
        if key not in KNOWN_KEYS:
            raise HomodistilError(
                "CFG-UNKNOWN-KEY", f"{path}: unknown DeepSpeed key '{key}'", did_you_mean(key, KNOWN_KEYS)
            )
    for key in ("zero_optimization", "bf16", "bfloat16", "fp16", "torch_autocast"):
        if not isinstance(values.get(key, {}), dict):
            raise HomodistilError(
                "CFG-TYPE", f"{path}: '{key}' is {values[key]!r}", f'Use an object, such as {{"{key}": {{...}}}}.'
            )
    zero = values.get("zero_optimization", {})
    if "stage" not in zero and (meant := difflib.get_close_matches("stage", zero, n=1)):
        what = f"{path}: unknown DeepSpeed key '{meant[0]}' in zero_optimization"
        raise HomodistilError("CFG-UNKNOWN-KEY", what, "Did you mean 'stage'?")
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise HomodistilError("CFG-STAGE", f"{path}: ZeRO stage {stage!r}", "Use stage 0, 1, 2 or 3.")
    if "data_types" in values:
        raise HomodistilError(
            "CFG-REFUSED-KEY",
            f"{path}: key 'data_types'",
            "Gradients are scored in the precision they are reduced in: leave it out.",
        )
    _check_auto(values, path)
    _check_fixed(values, path)
    _check_offload(values, path)
    if precision(values) == "autocast" and values["torch_autocast"].get("dtype") in HALF:
        raise HomodistilError(
            "CFG-PRECISION", f"{path}: torch_autocast in float16", "Use the fp16 block, or autocast in bfloat16."
        )
    if zero_stage(values) == 0 and precision(values) in ("bf16", "fp16"):
        raise HomodistilError(
            "CFG-PRECISION",
            f"{path}: {precision(values)} at ZeRO stage 0",
            "DeepSpeed 0.19 counts an optimizer step too many and does not scale the loss there: use stage 1 or "
            "higher, or float32 at stage 0.",
        )
    return values


def _check_auto(values: dict[str, Any], path: Path, within: str = "") -> None:
    """Hugging Face's Trainer fills in what is "auto"; DeepSpeed takes it for a word, or leaves the block out."""
    for key, value in values.items():
        if value == "auto":
            raise HomodistilError(
                "CFG-TYPE", f"{path}: {within}{key} is 'auto'", "Give a value, or leave the key out for the default."
            )
        if key == "enabled" and not isinstance(value, bool):
            raise HomodistilError("CFG-TYPE", f"{path}: {within}{key} is {value!r}", "Use true or false.")
        if isinstance(value, dict):
            _check_auto(value, path, f"{within}{key}.")


def _check_fixed(values: dict[str, Any], path: Path) -> None:
    for (block, key), (value, why) in FIXED.items():
        for name in (block, "bfloat16") if block == "bf16" else (block,):
            given = (values.get(name, {}) if name else values).get(key, value)
            if given != value:
                where = f"{name}.{key}" if name else key
                raise HomodistilError("CFG-REFUSED-KEY", f"{path}: {where} is {given!r}", f"{why} Leave it out.")


def _check_offload(values: dict[str, Any], path: Path) -> None:
    zero = values.get("zero_optimization", {})
    for key, now in OLD_OFFLOAD.items():
        if zero.get(key):
            raise HomodistilError(
                "CFG-REFUSED-KEY", f"{path}: zero_optimization.{key}", f'Use "{now}": {{"device": "cpu"}}.'
            )
    for key, lowest in OFFLOADED_FROM.items():
        block = zero.get(key)
        if block is None or block == {"device": "none"}:
            continue
        if not isinstance(block, dict) or block.get("device") not in ("cpu", "none"):
            raise HomodistilError(
                "CFG-OFFLOAD", f"{path}: {key} is {block!r}", f'Use "{key}": {{"device": "cpu"}}, or leave it out.'
            )
        if zero_stage(values) < lowest:
            raise HomodistilError(
                "CFG-OFFLOAD", f"{path}: {key} at ZeRO stage {zero_stage(values)}", f"Use stage {lowest} or higher."
            )


def zero_stage(values: dict[str, Any]) -> int:
    return int(values.get("zero_optimization", {}).get("stage", 0))


def precision(values: dict[str, Any]) -> str:
    """fp32, bf16, fp16 or autocast."""
    if values.get("bf16", values.get("bfloat16", {})).get("enabled"):
        return "bf16"
    if values.get("fp16", {}).get("enabled"):
        return "fp16"
    return "autocast" if values.get("torch_autocast", {}).get("enabled") else "fp32"


def largest_micro_batch(first: dict[str, Any], later: dict[str, Any] | None) -> int:
    """Of the configurations that a run has before cuts and after them."""
    return max(micro_batch(values) for values in (first, later) if values is not None)


def micro_batch(values: dict[str, Any]) -> int:
    """Sequences of one rank at a time; the batch sizes are filled in."""
    return int(values["train_micro_batch_size_per_gpu"])


def check_one_precision(first: dict[str, Any], later: dict[str, Any] | None) -> None:
    """The teacher keeps its number format while the student is cut. Raises HomodistilError."""
    if later is not None and precision(first) != precision(later):
        raise HomodistilError(
            "CFG-PRECISION",
            f"--deepspeed_config_after_cuts is in {precision(later)}, the run begins in {precision(first)}",
            "Use one precision for the whole run.",
        )


def offloads(values: dict[str, Any]) -> bool:
    """Whether Adam works in host memory."""
    block = values.get("zero_optimization", {}).get("offload_optimizer")
    return block is not None and block.get("device") == "cpu"


def offloads_parameters(values: dict[str, Any]) -> bool:
    """Whether weights lie in host memory and come when they are needed."""
    block = values.get("zero_optimization", {}).get("offload_param")
    return block is not None and block.get("device") == "cpu"


def recomputes(values: dict[str, Any]) -> bool:
    """Whether layers are run once more in the backward pass, so that only their inputs are kept: the file has the block
    activation_checkpointing, which DeepSpeed itself leaves to the model."""
    return "activation_checkpointing" in values


def with_batch_sizes(values: dict[str, Any], global_batch: int, world_size: int) -> dict[str, Any]:
    """The configuration with train_batch_size and accumulation derived from the run's global batch, in sequences.

    A micro batch larger than a rank's share is lowered to it; otherwise the share must be a whole number of micro
    batches. Raises HomodistilError with the nearest global batches that fit.
    """
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    for key in sizes:
        if key in values and (type(values[key]) is not int or values[key] < 1):
            raise HomodistilError(
                "CFG-BATCH",
                f"{key} in the DeepSpeed configuration is {values[key]!r}",
                "Use a whole number, or leave it out.",
            )
    asked_micro = values.get("train_micro_batch_size_per_gpu")
    split = _split(global_batch, world_size, asked_micro)
    if split is None:
        nearest = ", ".join(map(str, _nearest(global_batch, world_size, asked_micro)))
        raise HomodistilError(
            "CFG-BATCH",
            f"--global_batch_size {global_batch} does not divide into {world_size} ranks x whole micro batches of "
            f"{asked_micro or 1} (or of a rank's share, if that is smaller)",
            f"Nearest that fit: {nearest}; or change train_micro_batch_size_per_gpu.",
        )
    derived = dict(zip(sizes, (global_batch, *split), strict=True))
    for key in ("train_batch_size", "gradient_accumulation_steps"):
        if values.get(key, derived[key]) != derived[key]:
            raise HomodistilError(
                "CFG-BATCH",
                f"{key} {values[key]} in the DeepSpeed configuration, but --global_batch_size {global_batch} over "
                f"{world_size} ranks with micro batch {split[0]} makes it {derived[key]}",
                f"Leave {key} out of the file: it is derived.",
            )
    return {"steps_per_print": 10**9, **values, **derived}


def _split(global_batch: int, world_size: int, micro: int | None) -> tuple[int, int] | None:
    """Micro batch per rank and accumulation steps of a global batch; None if it does not divide."""
    share, left_over = divmod(global_batch, world_size)
    micro = min(micro or share, share)
    return None if left_over or share == 0 or share % micro else (micro, share // micro)


def _nearest(global_batch: int, world_size: int, micro: int | None) -> list[int]:
    """The one or two global batches nearest to the given one that divide."""
    for distance in itertools.count(1):
        around = (global_batch - distance, global_batch + distance)
        fitting = [size for size in around if size > 0 and _split(size, world_size, micro)]
        if fitting:
            return fitting
    raise AssertionError("every multiple of ranks x micro batch divides")
