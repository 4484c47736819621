"""What ranks compute on: rates and sizes of known GPUs, by data sheets and published measurements, and this machine."""

from __future__ import annotations

import difflib
import math
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import psutil
import torch

from homodistil_ds.errors import HomodistilError
from homodistil_ds.runtime import memory

GIB = 2**30
# Of the largest matrix product's rate, what good training systems reach over a whole step: DeepSpeed 73 %, llm-foundry
# 64 %, NVIDIA's BERT-large 63 %, torchtitan 55 % of the same roofline.
REACHED = 0.6
FRAMEWORK = 2 * GIB  # of a GPU: context, kernels, NCCL
NETWORK_GBITS = 400.0  # per GPU
NETWORK_SHARE = 0.81  # of the line rate that collectives reach
MEASURED_SIZE = 512  # of the matrices whose product tells a CPU's rate
MEASURED_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Device:
    """What one rank computes on. Rates in FLOP/s and bytes/s.

    `product` is the rate of the largest matrix product in half precision, `single` that in float32, `peak` the data
    sheet's in half precision, of which a model's FLOPs utilisation is a share; `bus` what a collective moves per second
    between the ranks of a node, `host_link` what a copy from or to host memory does; `framework` the bytes that a
    process takes before it has any model.
    `keeps_freed`: memory of small tensors is not given back while the process lives, so what peaks at different times
    adds up.
    """

    name: str
    peak: float
    product: float
    single: float
    bandwidth: float
    memory: int
    bus: float
    host_link: float
    framework: int = FRAMEWORK
    bf16: bool = True
    """Whether it multiplies in bf16 faster than in float32."""
    keeps_freed: bool = False
    host_memory: int = 0
    """Bytes of a node's host memory beside GPUs, 0 where it is not known."""


def _gpu(
    name: str, peak: float, product: float, single: float, bandwidth: float, gib: int, bus: float, pcie: int
) -> Device:
    return Device(
        name=name,
        peak=peak,
        product=product,
        single=0.8 * single,
        bandwidth=0.85 * bandwidth,
        memory=gib * GIB,
        bus=bus,
        host_link=HOST_LINK_SHARE * PCIE[pcie],
    )


PCIE = {3: 15.75e9, 4: 31.5e9, 5: 63e9}  # bytes/s of 16 lanes, one way, by generation
HOST_LINK_SHARE = 0.8  # of it that copies of pinned memory reach
# Sources: NVIDIA's data sheets for peaks, bandwidths and sizes (less what the driver keeps); largest measured products
# of A100, H100 and H200 from stas00/ml-engineering, elsewhere 80 % of the peak.
GPUS: Mapping[str, Device] = {
    device.name: device
    for device in (
        replace(_gpu("v100", 125e12, 100e12, 15.7e12, 0.9e12, 31, 120e9, 3), bf16=False),
        _gpu("a10", 125e12, 100e12, 31.2e12, 0.6e12, 22, 25e9, 4),
        _gpu("l4", 121e12, 97e12, 30.3e12, 0.3e12, 22, 25e9, 4),
        _gpu("l40s", 362e12, 290e12, 91.6e12, 0.864e12, 44, 25e9, 4),
        _gpu("a100-40", 312e12, 268e12, 19.5e12, 1.55e12, 39, 230e9, 4),
        _gpu("a100", 312e12, 268e12, 19.5e12, 2.0e12, 79, 230e9, 4),
        _gpu("h100", 989e12, 790e12, 67e12, 3.35e12, 79, 360e9, 5),
        _gpu("h200", 989e12, 790e12, 67e12, 4.8e12, 139, 360e9, 5),
        _gpu("b200", 2250e12, 1800e12, 80e12, 8.0e12, 178, 720e9, 5),
    )
}
HERE = "cpu"


def device_named(name: str, ranks_per_node: int = 1) -> Device:
    """A GPU of the table, or `cpu`: a rank's share of this machine. Raises HomodistilError for another name."""
    if name == HERE:
        own = this_cpu()
        share = min(1.0, (os.cpu_count() or 1) / (ranks_per_node * torch.get_num_threads()))
        rate = share * own.product
        shared = own.framework + (own.memory - own.framework) // ranks_per_node
        return replace(own, memory=shared, peak=rate, product=rate, single=rate)
    if name.lower() not in GPUS:
        near = difflib.get_close_matches(name.lower(), GPUS, n=1)
        known = f"Use {', '.join((*GPUS, HERE))}."
        raise HomodistilError(
            "CFG-GPU", f"--gpu {name} is not known", f"Did you mean {near[0]}? {known}" if near else known
        )
    return GPUS[name.lower()]


def this_device() -> Device:
    """What a rank of this machine computes on: a known GPU by its name, with its own memory, or the CPU."""
    if not torch.cuda.is_available():
        return this_cpu()
    called = torch.cuda.get_device_name()
    host = psutil.virtual_memory().total
    return replace(gpu_called(called), memory=torch.cuda.mem_get_info()[1], host_memory=host)


def gpu_called(called: str) -> Device:
    """The GPU of the table that a driver calls so; one that is not there has the rates of an A100, and says so."""
    words = re.findall("[a-z0-9]+", called.lower())
    words += [word.removesuffix("gb") for word in words]
    known = [name for name in GPUS if set(name.split("-")) <= set(words)]
    if not known:
        return replace(GPUS["a100"], name=f"{called} (not known, planned with an A100's rates)")
    return replace(GPUS[max(known, key=len)], name=called)


def this_cpu() -> Device:
    """A rank on this machine's cores: its share of the memory, the rate of a product, what the process takes so far."""
    rate = _product_rate()
    own = memory.resident_bytes()
    return Device(
        name=HERE,
        peak=rate,
        product=rate,
        single=rate,
        bandwidth=1e10,
        memory=memory.available_bytes() + own,
        bus=1e9,
        host_link=1e10,
        framework=own,
        keeps_freed=True,
    )


def _product_rate() -> float:
    """FLOP/s of float32 products on this process's threads."""
    left, right = (torch.rand(MEASURED_SIZE, MEASURED_SIZE) for _ in range(2))
    began, best = time.perf_counter(), math.inf
    while (now := time.perf_counter()) < began + MEASURED_SECONDS:
        left @ right
        best = min(best, time.perf_counter() - now)  # other processes only make it longer
    return 2 * MEASURED_SIZE**3 / best


def network_bus(ranks_per_node: int, gbits: float = NETWORK_GBITS) -> float:
    """Bytes per second of a collective over several nodes, each rank with a line of so many Gbit/s."""
    return ranks_per_node * gbits / 8 * 1e9 * NETWORK_SHARE
