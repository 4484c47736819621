"""Start DeepSpeed: compiled ops, the optimizer, the engine around a student. It knows no method and no model family."""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import deepspeed
import torch
from deepspeed.ops.adam import FusedAdam
from deepspeed.ops.op_builder import FusedAdamBuilder
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from homodistil_ds.config import OptimizerConfig
from homodistil_ds.errors import HomodistilError, did_you_mean

Engine: TypeAlias = deepspeed.DeepSpeedEngine
OptimizerFactory = Callable[..., torch.optim.Optimizer]


def check(ds_config: dict[str, Any], optimizer: OptimizerConfig) -> None:
    """Refuse early what initialize would refuse late: values of the ZeRO block, an optimizer that is not installed.

    Raises HomodistilError.
    """
    zero = ds_config.get("zero_optimization", {})
    for key in zero:
        if key not in DeepSpeedZeroConfig.model_fields:
            remedy = did_you_mean(key, DeepSpeedZeroConfig.model_fields)
            raise HomodistilError("CFG-UNKNOWN-KEY", f"zero_optimization: unknown DeepSpeed key '{key}'", remedy)
    try:
        DeepSpeedZeroConfig(**zero)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise HomodistilError(
            "CFG-ZERO", f"zero_optimization in the DeepSpeed configuration: {reason[:300]}", "Mend that value."
        ) from error
    if optimizer.name == "apex_fused_adam":
        _apex_fused_adam()


def prepare_op_folder() -> None:
    """Keep compiled ops in this environment, and let its ninja be found even when it is not activated."""
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    scripts = str(Path(sys.executable).parent)
    if scripts not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([scripts, os.environ.get("PATH", "")])


def slower_path() -> str | None:
    """Why DeepSpeed's fused Adam cannot be compiled here, None if it can."""
    if torch.cuda.is_available() and shutil.which("nvcc") is None:
        return "no CUDA compiler (nvcc) was found"
    if shutil.which(os.environ.get("CXX", "c++")) is None and shutil.which("g++") is None:
        return "no C++ compiler was found"
    if shutil.which("ninja") is None:
        return "ninja was not found"
    return None


def initialize(
    module: torch.nn.Module,
    optimizer: OptimizerConfig,
    learning_rate: float,
    ds_config: dict[str, Any],
    report: Callable[[str], None],
) -> Engine:
    """A DeepSpeed engine that trains `module`. `report` gets a line when a slower path is taken.

    Raises HomodistilError if apex's FusedAdam was asked for and NVIDIA apex is not installed.
    """
    factory, options = _optimizer_factory(optimizer.name, report)
    adam = factory(
        parameter_groups(module, optimizer.weight_decay),
        lr=learning_rate,
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.eps,
        **options,
    )
    engine, *_ = deepspeed.initialize(model=module, optimizer=adam, config=ds_config)
    return engine


def parameter_groups(module: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices with weight decay; biases and norm gains without."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    matrices = [p for p in parameters if p.dim() > 1]
    vectors = [p for p in parameters if p.dim() <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def set_learning_rate(engine: Engine, learning_rate: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate


def _optimizer_factory(name: str, report: Callable[[str], None]) -> tuple[OptimizerFactory, dict[str, Any]]:
    if name == "apex_fused_adam":
        return _apex_fused_adam(), {"adam_w_mode": True}
    if name == "fused_adam":
        reason = slower_path() or _build_fused_adam()
        if reason is None:
            return FusedAdam, {"adam_w_mode": True}
        report(f"{reason}: taking torch's AdamW instead of DeepSpeed's FusedAdam (same mathematics, slower step)")
    return torch.optim.AdamW, {"fused": True}


def _build_fused_adam() -> str | None:
    """Compile DeepSpeed's fused Adam, or load it from the folder of compiled ops; the reason if that fails.

    A build that was killed leaves a file `lock` for which torch waits for ever. Our own lock goes with its process, so
    whoever holds it knows that no build is running and that the file is stale.
    """
    folder = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "build.lock").open("w") as own_lock:
            fcntl.flock(own_lock, fcntl.LOCK_EX)
            (folder / FusedAdamBuilder.NAME / "lock").unlink(missing_ok=True)
            FusedAdamBuilder().load(verbose=False)
    except Exception as error:  # compilers, toolkits and file systems fail in many ways; torch's Adam works in all
        return f"DeepSpeed's fused Adam could not be built ({type(error).__name__}: {str(error).strip()[:200]})"
    return None


def _apex_fused_adam() -> OptimizerFactory:
    if importlib.util.find_spec("apex") is None:
        raise HomodistilError(
            "ENV-APEX",
            "--optimizer.name apex_fused_adam: NVIDIA apex is not installed",
            "Build it from its source, or leave the option off: DeepSpeed's FusedAdam is the default.",
        )
    if importlib.util.find_spec("apex.optimizers") is None:
        version = next((d.version for d in importlib.metadata.distributions(name="apex")), "unknown version")
        raise HomodistilError(
            "ENV-APEX",
            f"--optimizer.name apex_fused_adam: the installed package 'apex' ({version}) is not NVIDIA's",
            "The package named apex on the Python package index is an unrelated web toolkit: pip uninstall apex.\n"
            "NVIDIA apex is built from its source. Leave the option off to use DeepSpeed's FusedAdam.",
        )
    from apex.optimizers import FusedAdam as ApexFusedAdam  # noqa: PLC0415 - optional package

    return ApexFusedAdam
