"""Checkpoints that survive a crash at any instant, and are checked before they are believed: what they are, and finding
and reading them.

A folder `step-<n>` holds one safetensors file per rank, `pruner.safetensors`, `state.json` and, written last,
`manifest.json` with the size and SHA-256 of each of them. It is made under another name and renamed. There are no
pickles, and every piece says where it belongs, so any number of ranks at any ZeRO stage can go on from it. `latest`
names the newest for people and scripts; nothing here believes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from homodistil_ds.errors import HomodistilError
from homodistil_ds.runtime import ranks
from homodistil_ds.runtime.carry import Run, overlaps
from homodistil_ds.runtime.late_files import appears

FORMAT = 1
UNFINISHED, ASIDE = ".saving-", "aside-"
MANIFEST, STATE, TENSORS = "manifest.json", "state.json", "pruner.safetensors"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint; `state` is what its writer said of the run, and is read before any tensor."""

    folder: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])

    def tensors(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / TENSORS)

    def read(self, wanted: list[Run]) -> list[torch.Tensor]:
        """Values [3, count] of each wanted run, whoever wrote them; all ranks call it together.

        On as many ranks at the stage it was written at, everything is in a rank's own file. Otherwise each rank looks
        which runs a share of the files hold, and only files that hold something wanted are opened again.
        Raises HomodistilError on all ranks if an entry is missing on one.
        """
        files = self._rank_files()
        me, count = ranks.rank(), ranks.world_size()
        values, lacking = ranks.together(lambda: _values(files[me : me + 1] if len(files) == count else [], wanted))
        if ranks.lowest(lacking) is None:
            return values
        held = ranks.together(lambda: {path.name: _runs_in(path) for path in files[me::count]})
        index = {name: runs for part in ranks.everyone(held) for name, runs in part.items()}

        def find() -> list[torch.Tensor]:
            values, lacking = _values([path for path in files if overlaps(index[path.name], wanted)], wanted)
            if lacking is None:
                return values
            raise HomodistilError(
                "CKPT-SHAPE", f"{self.folder} holds {lacking}", "It belongs to a student of another shape."
            )

        return ranks.together(find)

    def _rank_files(self) -> list[Path]:
        """Of the manifest; a file that it does not list is none of the checkpoint's."""
        listed = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return [self.folder / name for name in sorted(listed) if name.startswith("rank-")]


def _values(files: Sequence[Path], wanted: Sequence[Run]) -> tuple[list[torch.Tensor], str | None]:
    """Values of the wanted runs as far as these files hold them, and what is lacking first, if anything is."""
    results = [torch.empty(3, count) for _, _, count in wanted]
    found = [0] * len(wanted)
    for path in files:
        with safe_open(path, framework="pt") as tensors:
            parts = [(key, tensors.get_slice(key)) for key in tensors.keys()]  # noqa: SIM118 - safe_open is no mapping
            held = [_run_of(key, part.get_shape()[1]) for key, part in parts]
            for index, start, count, place, at in overlaps(held, wanted):
                results[place][:, at : at + count] = parts[index][1][:, start : start + count]
                found[place] += count
    for (name, _, count), have in zip(wanted, found, strict=True):
        if have != count:
            return results, f"{have} of {count} wanted entries of {name}"
    return results, None


def _runs_in(path: Path) -> list[Run]:
    with safe_open(path, framework="pt") as tensors:
        return [_run_of(key, tensors.get_slice(key).get_shape()[1]) for key in tensors.keys()]  # noqa: SIM118


def find(asked: str, folder: Path, report: Callable[[str], None]) -> Checkpoint:
    """The checkpoint to go on from; all ranks call it and get the same one.

    `auto` takes the newest whose files are whole; the path of a checkpoint takes that one only, the path of a run its
    newest. `report` gets a line for each that is passed over. Raises HomodistilError if
    there is none, naming what is wrong.
    """
    explicit = None if asked == "auto" else Path(asked)
    if asked != "auto" and Path(asked, "checkpoints").is_dir():
        explicit, folder = None, Path(asked, "checkpoints")
    candidates = ranks.told_by(0, [explicit] if explicit else newest_first(folder))
    problems = []
    for path in candidates:
        problem = ranks.lowest(problem_of(path, ranks.rank(), ranks.world_size()))
        if problem is None:
            return Checkpoint(folder=path, state=_read_state(path))
        seen = f" (as rank {problem[0]} sees it)" if ranks.world_size() > 1 else ""
        problems.append(f"{path}: {problem[1]}{seen}")
        if not explicit:
            report(f"homodistil_ds: warning: {problems[-1]}; taking an older checkpoint")
    raise _none_found(asked, folder, explicit, problems)


def _read_state(path: Path) -> dict[str, Any]:
    appears(path / STATE)  # only the ranks that hashed it have seen it already
    return dict(json.loads((path / STATE).read_text(encoding="utf-8")))


def _none_found(asked: str, folder: Path, explicit: Path | None, problems: list[str]) -> HomodistilError:
    if explicit is None:
        what = "; ".join(problems) if problems else f"no checkpoint in {folder}"
        remedy = "Without --resume the same command starts a new run" + (
            " in another --output_dir." if problems else "."
        )
        return HomodistilError("CKPT-NONE", f"--resume {asked}: {what}", remedy)
    if not explicit.is_dir():
        there = ", ".join(path.name for path in newest_first(explicit.parent)) or "none"
        return HomodistilError(
            "CKPT-NONE", f"{explicit}: there is no such checkpoint", f"Checkpoints in {explicit.parent}: {there}."
        )
    good = next((path for path in newest_first(explicit.parent) if problem_of(path) is None), None)
    remedy = f"The newest whole one beside it is {good}." if good else "Name a folder step-<n> of a run's checkpoints."
    return HomodistilError("CKPT-DAMAGED", f"--resume {'; '.join(problems)}", remedy)


def newest_first(folder: Path) -> list[Path]:
    numbered = [path for path in folder.glob("step-*") if path.name[5:].isdecimal() and path.is_dir()]
    return sorted(numbered, key=lambda path: -int(path.name[5:]))


def newest_name(folder: Path) -> str | None:
    """The name of the newest checkpoint, whole or not; None if there is none."""
    return next((path.name for path in newest_first(folder)), None)


def problem_of(path: Path, share: int = 0, shares: int = 1) -> str | None:
    """What is wrong with a checkpoint, None if its files are those its manifest lists, byte for byte.

    A rank looks at every `shares`-th file, from number `share` on.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        if manifest["format"] != FORMAT or manifest["sha256"] != digest_of(files):
            return f"{MANIFEST} is damaged"
        for name, facts in sorted(files.items())[share::shares]:
            if "/" in name or not (path / name).is_file():
                return f"{name} is missing"
            if (path / name).stat().st_size != facts["bytes"]:
                return f"{name} has {(path / name).stat().st_size} bytes, not {facts['bytes']}"
        for name, facts in sorted(files.items())[share::shares]:
            if sha256_of(path / name) != facts["sha256"]:
                return f"{name} was changed after it was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} is damaged"
    return None


def set_aside_later(folder: Path, step: int) -> list[str]:
    """Rename the checkpoints after `step`: the run goes on from there without them. Nothing is deleted."""
    later = [path for path in newest_first(folder) if int(path.name[5:]) > step]
    return [path.rename(free_name(path)).name for path in later]


def free_name(path: Path) -> Path:
    names = (path.with_name(f"{ASIDE}{path.name}{suffix}") for suffix in ["", *(f".{n}" for n in range(1, 10_000))])
    return next(name for name in names if not name.exists())


def _run_of(key: str, count: int) -> Run:
    offset, _, name = key.partition(":")
    return name, int(offset), count


def digest_of(files: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
