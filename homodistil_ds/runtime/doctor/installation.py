"""What is installed: Python, packages, compilers, compiled ops, GPUs and what speaks to them."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

from homodistil_ds.runtime import toolchain
from homodistil_ds.runtime.doctor.findings import INSTALL, Asked, Finding, passed
from homodistil_ds.runtime.doctor.programs import said

PACKAGE = "homodistil_ds"
PROJECT = Path(__file__).resolve().parents[3] / "pyproject.toml"  # in a source tree; else what pip installed says it


def requirements() -> tuple[str, dict[str, str]]:
    """The range of Python, and package -> range of versions: pyproject.toml is their one home."""
    if PROJECT.is_file():
        project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
        python, lines = project["requires-python"], project["dependencies"]
    else:
        installed = importlib.metadata.distribution(PACKAGE)
        python, lines = installed.metadata["Requires-Python"], installed.requires or []
    plain = [line for line in lines if "extra ==" not in line]
    return python, {name: line.removeprefix(name) for line in plain for name in re.findall(r"^[\w.-]+", line)}


def is_within(version: str, wanted: str) -> bool:
    from packaging.specifiers import SpecifierSet  # noqa: PLC0415 - a check's own import

    return SpecifierSet(wanted).contains(version, prereleases=True)


def python(asked: Asked) -> Finding:
    wanted, version = requirements()[0], platform.python_version()
    if not is_within(version, wanted):
        return Finding("fail", f"{version}, wanted {wanted}", "Make the environment with another Python.")
    return passed(f"{version} ({sys.executable})")


def package(asked: Asked, name: str) -> Finding:
    wanted = requirements()[1][name]
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding("fail", f"not installed, wanted {wanted}", INSTALL)
    if not is_within(version, wanted):
        return Finding("fail", f"{version}, wanted {wanted}", INSTALL)
    return passed(f"{version} ({wanted})")


def imported(asked: Asked, name: str) -> Finding:
    """A package that must not only be there but load."""
    finding = package(asked, name)
    if finding.state == "pass":
        _load(name)
    return finding


def gpus(asked: Asked) -> Finding:
    torch = _load("torch")
    driver = said(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    if not torch.cuda.is_available():
        expected = shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists() or os.environ.get("SLURM_GPUS_ON_NODE")
        if driver is None and expected:
            return Finding(
                "fail", "there should be a GPU, but nvidia-smi does not answer", "Ask for the driver's state."
            )
        if driver is None:
            return passed("none: training goes on the CPU")
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs only"
        return Finding(
            "fail",
            f"driver {driver.splitlines()[0] if driver else '?'}, but torch, {built}, sees no GPU",
            "Install a torch for this driver's CUDA (make TORCH_INDEX=...), or set CUDA_VISIBLE_DEVICES= for the CPU.",
        )
    capabilities = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    found = (
        f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}, compute capability "
        f"{', '.join(f'{major}.{minor}' for major, minor in sorted(capabilities))}, CUDA {torch.version.cuda}, "
        f"driver {driver.splitlines()[0] if driver else '?'}, bf16 {'yes' if bf16 else 'no'}"
    )
    if len(capabilities) > 1:
        return Finding("warn", found, "GPUs of several kinds: the slowest sets the pace.")
    return passed(found) if bf16 else Finding("warn", found, "Use ds_configs/zero2_fp16.json or float32: no bf16 here.")


def compilers(asked: Asked) -> Finding:
    torch = _load("torch")
    missing = toolchain.missing_tool(gpu=torch.cuda.is_available())
    if missing:
        return Finding(
            "warn", missing, "Install it (apt install g++, pip install ninja); without, torch's AdamW is taken."
        )
    path = toolchain.compiler() or ""
    shown = said([path, "--version"])
    if shown is None:
        return Finding("warn", f"{path} does not run", "Mend it, or torch's AdamW is taken.")
    return passed(f"{shown.splitlines()[0]}, ninja")


def ops(asked: Asked) -> Finding:
    """The compiled Adams: there already, or made at the first start."""
    builders = _load("deepspeed.ops.op_builder")
    cuda = _load("torch").cuda.is_available()
    texts, missing = [], toolchain.missing_tool(gpu=cuda)
    for builder in (builders.FusedAdamBuilder, builders.CPUAdamBuilder):
        name = builder.NAME
        if (toolchain.op_folder() / name / f"{name}.so").is_file():
            texts.append(f"{name} built")
        elif missing or not builder().is_compatible(verbose=False):
            texts.append(f"{name} cannot be built")
        else:
            texts.append(f"{name} will be built at the first start")
    found = f"{', '.join(texts)} ({toolchain.op_folder()})"
    if "cannot" in found:
        return Finding("warn", found, "See the line on compilers; torch's AdamW is taken until then.")
    return passed(found)


def locks(asked: Asked) -> Finding:
    folder = toolchain.op_folder()
    found = toolchain.torch_locks(folder)
    if not found:
        return passed(f"none in {folder}")
    names = ", ".join(map(str, found))
    try:
        with toolchain.building(folder, wait=False):
            held = {lock: pid for lock in found if (pid := toolchain.holder(lock))}
            if held:
                texts = ", ".join(f"{lock} by process {pid}" for lock, pid in held.items())
                return Finding("warn", f"a build is running: {texts}", "Wait for it to end.")
            if asked.fix:
                for lock in found:
                    lock.unlink(missing_ok=True)
                return passed(f"removed {names}, which nobody held")
    except BlockingIOError:
        return Finding("warn", f"a build is running: {names}", "Wait for it to end.")
    return Finding("fail", f"left by a build that was killed: {names}", "Remove it: python tools/doctor.py --fix")


def nccl(asked: Asked) -> Finding:
    torch = _load("torch")
    if not torch.cuda.is_available():
        return passed("not needed: CPUs talk over gloo")
    return passed(".".join(map(str, torch.cuda.nccl.version())))


def apex(asked: Asked) -> Finding:
    if (version := toolchain.wrong_apex()) is not None:
        return Finding("warn", f"'apex' {version} is not NVIDIA's", toolchain.APEX_REMEDY)
    return passed("NVIDIA's" if importlib.util.find_spec("apex") else "not installed, and not needed")


def _load(name: str) -> Any:
    """Import now; DeepSpeed says on the console which accelerator it lacks, unless it is told."""
    if name.startswith("deepspeed") and not importlib.import_module("torch").cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    return importlib.import_module(name)
