"""Start DeepSpeed: compiled ops, the optimizer, the engine around a student. It knows no method and no model family."""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
from deepspeed.ops.op_builder import CPUAdamBuilder, FusedAdamBuilder
from deepspeed.ops.op_builder.builder import OpBuilder
from deepspeed.runtime.zero import parameter_offload, register_external_parameter
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

from homodistil_ds.config import OptimizerConfig
from homodistil_ds.errors import HomodistilError, did_you_mean
from homodistil_ds.runtime import memory, ranks, toolchain
from homodistil_ds.runtime.ds_config import offloads
from homodistil_ds.runtime.shards import loss_scale
from homodistil_ds.runtime.toolchain import prepare_op_folder as prepare_op_folder

Engine: TypeAlias = deepspeed.DeepSpeedEngine
# ZeRO options that keep copies of weights or moments outside the places that masks and cuts reach.
UNSEEN = {"zero_hpz_partition_size": 1, "zenflow": None, "super_offload": False, "mics_shard_size": -1}
Module = TypeVar("Module", bound=torch.nn.Module)
OptimizerFactory = Callable[..., torch.optim.Optimizer]


def check_zero(ds_config: dict[str, Any]) -> None:
    """The zero_optimization block, by DeepSpeed's own measure and for what pruning would not see. Raises
    HomodistilError."""
    zero = ds_config.get("zero_optimization", {})
    fields = DeepSpeedZeroConfig.model_fields
    known = {*fields, *(field.alias for field in fields.values() if field.alias)}
    for key in zero:
        if key not in known:
            remedy = did_you_mean(key, known)
            raise HomodistilError("CFG-UNKNOWN-KEY", f"zero_optimization: unknown DeepSpeed key '{key}'", remedy)
    for key, allowed in UNSEEN.items():
        if zero.get(key, allowed) != allowed:
            raise HomodistilError(
                "CFG-ZERO",
                f"zero_optimization: {key} is {zero[key]!r}",
                "It keeps weights or moments where pruning does not see them: leave it out.",
            )
    if (zero.get("offload_optimizer") or {}).get("ratio", 1.0) != 1.0:
        raise HomodistilError(
            "CFG-ZERO", "zero_optimization: offload_optimizer.ratio is not 1", "Offload all of it, or nothing."
        )
    try:
        DeepSpeedZeroConfig(**zero)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise HomodistilError(
            "CFG-ZERO", f"zero_optimization in the DeepSpeed configuration: {reason[:300]}", "Mend that value."
        ) from error


def check(ds_config: dict[str, Any], optimizer: OptimizerConfig) -> None:
    """Refuse early what initialize would refuse late: values of the ZeRO block, an optimizer that is not installed.

    Raises HomodistilError.
    """
    check_zero(ds_config)
    for name, supported in (
        ("fp16", get_accelerator().is_fp16_supported),
        ("bf16", get_accelerator().is_bf16_supported),
    ):
        if ds_config.get(name, {}).get("enabled") and not supported():
            raise HomodistilError(
                "CFG-PRECISION",
                f"{name} in the DeepSpeed configuration: this device ({get_accelerator().device_name()}) has no {name}",
                "Use a configuration with another precision.",
            )
    if optimizer.name == "apex_fused_adam":
        _apex_fused_adam()


def slower_path() -> str | None:
    """Why DeepSpeed's fused Adam cannot be compiled here, None if it can."""
    return toolchain.missing_tool(gpu=torch.cuda.is_available())


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
    offload = offloads(ds_config)
    factory, options = _optimizer_factory(optimizer.name, offload, report)
    adam = factory(
        parameter_groups(module, optimizer.weight_decay),
        lr=learning_rate,
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.eps,
        **options,
    )
    _forget_beta_powers(adam)
    # DeepSpeed would refuse any Adam but its own for offloaded masters.
    config = {"zero_force_ds_cpu_optimizer": False, **ds_config}
    engine, *_ = deepspeed.initialize(model=module, optimizer=adam, config=config)
    if engine.fp16_enabled():
        engine.optimizer.loss_scaler.raise_error_at_min_scale = False  # the loop counts and says what to do
    return engine


def read_at_once(module: Module) -> Module:
    """The same module, whose own forward pass reads all its parameters: ZeRO-3 has them whole around it, and around its
    backward pass."""
    for parameter in module.parameters():
        register_external_parameter(module, parameter)
    return module


def take_step(engine: Engine) -> bool:
    """The optimizer step. False if a gradient was not finite: then nothing was changed but the loss scale of fp16.

    DeepSpeed looks for such gradients at stages 1 to 3 only.
    """
    if engine.zero_optimization_stage() == 0 and engine.is_gradient_accumulation_boundary():
        norms = torch._foreach_norm([p.grad for p in engine.module.parameters() if p.grad is not None])
        if not bool(torch.stack(norms).isfinite().all()):
            return False
    engine.step()
    return not getattr(engine.optimizer, "overflow", False)


def engine_curves(engine: Engine) -> dict[str, float]:
    """What is drawn of an engine after a step: norm of the gradient, loss scale, memory in MiB."""
    found = {"mem/host_rss_mib": memory.resident_bytes() / 2**20}
    norm = engine.get_global_grad_norm()
    if norm is not None:  # DeepSpeed keeps none at stage 0
        found["optim/grad_norm"] = float(norm)
    if engine.fp16_enabled():
        found |= {"optim/loss_scale": loss_scale(engine), "optim/skipped_steps": engine.skipped_steps}
    if torch.cuda.is_available():
        found["mem/allocated_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return found


def dispose(engine: Engine) -> None:
    """Free everything the engine holds; the caller then drops its reference.

    DeepSpeed keeps the modules and coordinators of ZeRO-3 engines in two places of its own.
    """
    module = engine.module
    engine.destroy()
    engine.__dict__.clear()
    parameter_offload.FWD_MODULE_STACK[:] = [m for m in parameter_offload.FWD_MODULE_STACK if m is not module]
    del module
    # A decorator hides the lru_cache that refers to coordinators in its closure.
    hidden = PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release
    hidden.__closure__[0].cell_contents.cache_clear()
    gc.collect()


def parameter_groups(module: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices with weight decay; biases and norm gains without."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    matrices = [p for p in parameters if p.dim() > 1]
    vectors = [p for p in parameters if p.dim() <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def set_learning_rate(engine: Engine, learning_rate: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate


def _optimizer_factory(
    name: str, offload: bool, report: Callable[[str], None]
) -> tuple[OptimizerFactory, dict[str, Any]]:
    if name == "apex_fused_adam":
        return _apex_fused_adam(), {"adam_w_mode": True}
    if name == "fused_adam":
        adam, mode = (DeepSpeedCPUAdam, "adamw_mode") if offload else (FusedAdam, "adam_w_mode")
        own = slower_path() or _build(CPUAdamBuilder if offload else FusedAdamBuilder)
        # All ranks take the same Adam, or replicas would drift apart.
        if (slower := ranks.lowest(own)) is None:
            return adam, {mode: True}
        report(
            f"{slower[1]}: taking torch's AdamW instead of DeepSpeed's {adam.__name__} (same mathematics, slower step)"
        )
    return torch.optim.AdamW, {"fused": True}


def _forget_beta_powers(adam: torch.optim.Optimizer) -> None:
    """Make every step of DeepSpeed's C++ Adams a function of the step number alone.

    They multiply up the powers of beta1 and beta2 while steps follow each other and compute them afresh after a jump,
    which differs in the last bit. A step number 0 on a scratch entry before each step is such a jump, so a resumed run
    is bitwise the one that never stopped.
    """
    scratch = [torch.zeros(1) for _ in range(4)]
    beta1, beta2 = adam.defaults["betas"]
    if isinstance(adam, DeepSpeedCPUAdam):
        update, arguments = adam.ds_opt_adam.adam_update, (adam.opt_id, 0, 0.0, beta1, beta2, 1.0, 0.0, False, *scratch)
    elif isinstance(adam, FusedAdam) and not torch.cuda.is_available():
        lists = [[tensor] for tensor in scratch]
        update = adam.multi_tensor_adam
        arguments = (65536, torch.zeros(1), lists, 0.0, beta1, beta2, 1.0, 0, adam.adam_w_mode, False, 0.0)
    else:
        return

    def jump(*_: object) -> None:
        update(*arguments)

    adam.register_step_pre_hook(jump)


def _build(builder: type[OpBuilder]) -> str | None:
    """Compile an op of DeepSpeed, or load it from the folder of compiled ops; the reason if that fails.

    A build that was killed leaves a file `lock` for which torch waits for ever. Our own lock goes with its process, so
    whoever holds it knows that no build is running and that the file is stale.
    """
    folder = toolchain.op_folder()
    try:
        with toolchain.building(folder):
            (folder / builder.NAME / toolchain.TORCH_LOCK).unlink(missing_ok=True)
            builder().load(verbose=False)
    except Exception as error:  # compilers, toolkits and file systems fail in many ways; torch's Adam works in all
        return f"DeepSpeed's {builder.NAME} could not be built ({type(error).__name__}: {str(error).strip()[:200]})"
    return None


def _apex_fused_adam() -> OptimizerFactory:
    if importlib.util.find_spec("apex") is None:
        raise HomodistilError(
            "ENV-APEX",
            "--optimizer.name apex_fused_adam: NVIDIA apex is not installed",
            "Build it from its source, or leave the option off: DeepSpeed's FusedAdam is the default.",
        )
    if (version := toolchain.wrong_apex()) is not None:
        raise HomodistilError(
            "ENV-APEX",
            f"--optimizer.name apex_fused_adam: the installed package 'apex' ({version}) is not NVIDIA's",
            toolchain.APEX_REMEDY,
        )
    from apex.optimizers import FusedAdam as ApexFusedAdam  # noqa: PLC0415 - optional package

    return ApexFusedAdam
