"""Where a run would work: disks, shared memory, open files, the network, the hub's cache, the clock."""

from __future__ import annotations

import datetime
import os
import resource
import shutil
import socket
import tempfile
import time
from pathlib import Path

from homodistil_ds.runtime import toolchain
from homodistil_ds.runtime.doctor.findings import Asked, Finding, passed

LEAST_DISK, LITTLE_DISK = 1 << 30, 10 << 30
LITTLE_SHM, FEW_FILES = 1 << 30, 1024
CLOCK_SECONDS = 5.0
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


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
    offline = any(os.environ.get(name, "0").lower() in ("1", "true", "yes", "on") for name in OFFLINE)
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
