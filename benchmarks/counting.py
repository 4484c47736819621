"""Counts what a process sends and opens: collectives with their bytes, by this program or by DeepSpeed, and files."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import deepspeed.comm
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

COLLECTIVES = ("all_reduce", "all_gather", "all_gather_into_tensor", "reduce", "reduce_scatter", "broadcast", "gather")
COLLECTIVES += ("reduce_scatter_tensor", "scatter", "all_to_all", "all_to_all_single", "barrier")
# DeepSpeed looks these up once, when it starts: attribute of its backend -> name of the collective.
KEPT = {"all_gather_function": "all_gather_into_tensor", "reduce_scatter_function": "reduce_scatter_tensor"}
# Arguments that hold what comes in; all others are what goes out, and these two are both.
INCOMING = ("tensor_list", "output_tensor", "gather_list", "output", "output_tensor_list")
BOTH = {"all_reduce", "broadcast"}


@dataclass
class Counting:
    """Collectives inside the with block as (name, bytes given to it, bytes got from it), those of objects included.

    Objects travel as two collectives, their sizes and then their bytes, and are counted as such.
    """

    seen: list[tuple[str, int, int]] = field(default_factory=list)

    def __enter__(self) -> Counting:
        self.originals = {name: getattr(dist, name) for name in COLLECTIVES}
        self.backend = deepspeed.comm.comm.cdb
        noted = {name: self.noting(name, original) for name, original in self.originals.items()}
        for name, function in noted.items():
            self.put(name, function)
        self.keep(noted)
        return self

    def noting(self, name: str, original: Any) -> Any:
        signature = inspect.signature(original)

        def noted(*arguments: Any, **options: Any) -> Any:
            given = signature.bind(*arguments, **options).arguments
            sizes = {argument: size_of(value) for argument, value in given.items()}
            incoming = sum(size for argument, size in sizes.items() if argument in INCOMING)
            outgoing = sum(size for argument, size in sizes.items() if argument not in INCOMING)
            self.seen.append((name, outgoing, outgoing if name in BOTH else incoming))
            return original(*arguments, **options)

        return noted

    def put(self, name: str, function: Any) -> None:
        """Both where callers look it up and where torch's own functions on objects do."""
        setattr(dist, name, function)
        setattr(distributed_c10d, name, function)

    def keep(self, functions: dict[str, Any]) -> None:
        for attribute, name in KEPT.items():
            if self.backend is not None:
                setattr(self.backend, attribute, functions[name])

    def __exit__(self, *_: object) -> None:
        for name, original in self.originals.items():
            self.put(name, original)
        self.keep(self.originals)

    @property
    def figures(self) -> dict[str, int]:
        sent, got = (sum(entry[place] for entry in self.seen) for place in (1, 2))
        return {"messages": len(self.seen), "sent": sent, "got": got}


def size_of(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    return sum(map(size_of, value)) if isinstance(value, list | tuple) else 0


_watched: list[tuple[str, list[str]]] = []


@contextmanager
def opened(part: str) -> Iterator[list[str]]:
    """Names of the files with `part` in their path that Python opens inside the block, in order, each time anew."""
    if not _hooked:
        sys.addaudithook(_note)
        _hooked.append(True)
    names: list[str] = []
    _watched.append((part, names))
    try:
        yield names
    finally:
        _watched[:] = [entry for entry in _watched if entry[1] is not names]


_hooked: list[bool] = []  # a hook stays for good


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str):
        for part, names in _watched:
            if part in arguments[0]:
                names.append(Path(arguments[0]).name)
