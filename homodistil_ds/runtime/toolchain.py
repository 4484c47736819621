"""What compiled ops need: their folder, a compiler, no stale locks, the right apex. Standard library only."""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OWN_LOCK, TORCH_LOCK = "build.lock", "lock"
APEX_REMEDY = (
    "The package named apex on the Python package index is an unrelated web toolkit: pip uninstall apex.\n"
    "NVIDIA apex is built from its source. Leave the option off to use DeepSpeed's FusedAdam."
)


def prepare_op_folder() -> None:
    """Keep compiled ops in this environment, and let its ninja be found even when it is not activated."""
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    scripts = str(Path(sys.executable).parent)
    if scripts not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([scripts, os.environ.get("PATH", "")])


def op_folder() -> Path:
    """Where compiled ops lie; `prepare_op_folder` first."""
    return Path(os.environ["TORCH_EXTENSIONS_DIR"])


def missing_tool(gpu: bool) -> str | None:
    """Why DeepSpeed's ops cannot be compiled here, None if they can."""
    if gpu and shutil.which("nvcc") is None:
        return "no CUDA compiler (nvcc) was found"
    if compiler() is None:
        return "no C++ compiler was found"
    if shutil.which("ninja") is None:
        return "ninja was not found"
    return None


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")


@contextmanager
def building(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold our own lock on the folder of compiled ops: no other process of this program builds there meanwhile.

    Raises BlockingIOError without `wait` if one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / OWN_LOCK).open("w") as own_lock:
        fcntl.flock(own_lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def torch_locks(folder: Path) -> list[Path]:
    """torch's own locks: left behind by a build that was killed, every later one waits for them without an end."""
    return sorted(folder.glob(f"*/{TORCH_LOCK}"))


def holder(lock: Path) -> int | None:
    """A process of this machine that has the file open, as torch does while it builds; None if none can be seen."""
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if descriptor.samefile(lock):
                return int(descriptor.parts[2])
        except OSError:
            continue  # closed by now, or another user's
    return None


def wrong_apex() -> str | None:
    """The version of an installed package `apex` that is not NVIDIA's; None if it is, or if there is none."""
    if importlib.util.find_spec("apex") is None or importlib.util.find_spec("apex.optimizers") is not None:
        return None
    return next((d.version for d in importlib.metadata.distributions(name="apex")), "unknown version")
