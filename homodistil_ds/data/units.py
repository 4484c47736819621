"""Documents cleaned, hashed and cut into units of work, and whose work each unit is. Knows no tokens, writes nothing.

A unit is a function of the files alone: consecutive small files form a group, a large file is one by itself, and the
text of a group is cut every UNIT_CHARACTERS. How many workers there are decides only who does a unit.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from homodistil_ds.data.text import File, documents

UNIT_CHARACTERS = 2 << 20
DIGEST_BYTES = 16
_OF_UNKNOWN_SIZE = 64 << 20  # a piece of a hub data set
_EXPANSION = {".xz": 4, ".gz": 3, ".zst": 3, ".parquet": 2}  # bytes of text per byte on disk, roughly
_GOLDEN = 0.6180339887498949
# Control characters go; those that part words or lines become a blank.
_CONTROLS = {c: " " if chr(c).isspace() else None for c in (*range(0x20), *range(0x7F, 0xA0)) if chr(c) not in "\n\t"}
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def clean(text: str) -> str:
    """Unicode NFC, line ends as \\n, no control characters but \\n and \\t, no blanks at the end of a line, no blank
    lines at either end. Nothing else is touched."""
    text = unicodedata.normalize("NFC", text)
    if _CONTROL.search(text):
        text = text.replace("\r\n", "\n").replace("\r", "\n").translate(_CONTROLS)
    return "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")


def digest(text: str) -> bytes:
    """Equal for equal documents only: what finds copies and chooses the held-out documents."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=DIGEST_BYTES).digest()


@dataclass(frozen=True)
class Group:
    """Files read one after the other, as one stream of documents."""

    number: int
    files: tuple[tuple[int, File], ...]
    """With their numbers among all files."""
    weight: int
    """Its text in bytes, as far as sizes on disk tell."""

    def units(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[tuple[int, str]]]]:
        """Every unit in order: its number and its documents, each with the number of its file; none if not wanted."""
        number = characters = 0
        taken: list[tuple[int, str]] = []
        takes = wanted(0)
        for place, file in self.files:
            for text in documents(file):
                if takes:
                    taken.append((place, text))
                characters += len(text) + 1
                if characters >= UNIT_CHARACTERS:
                    yield number, taken
                    number, characters, taken = number + 1, 0, []
                    takes = wanted(number)
        if characters:
            yield number, taken


def groups_of(files: Sequence[File], bad: Collection[int] = ()) -> list[Group]:
    """All files in their order, without the bad ones, which change no other group."""
    members: list[list[int]] = []
    weights: list[int] = []
    for place, file in enumerate(files):
        own = text_bytes(file)
        if not members or weights[-1] + own > UNIT_CHARACTERS:
            members.append([])
            weights.append(0)
        members[-1].append(place)
        weights[-1] += own
    return [
        Group(number, tuple((place, files[place]) for place in places if place not in bad), weight)
        for number, (places, weight) in enumerate(zip(members, weights, strict=True))
    ]


def text_bytes(file: File) -> int:
    if not file.path:
        return _OF_UNKNOWN_SIZE if file.pieces > 1 else UNIT_CHARACTERS
    return 1 + file.size * _EXPANSION.get(Path(file.path).suffix, 1)


@dataclass(frozen=True)
class Share:
    """What part of a group is a worker's: the units whose place in a low-discrepancy sequence lies in [begin, end)."""

    begin: float
    end: float

    def has(self, unit: int) -> bool:
        return self.begin <= unit * _GOLDEN % 1.0 < self.end


def shares(weights: Sequence[int], rank: int, size: int) -> list[Share | None]:
    """This worker's share of each group; those of all workers add up to everything, without overlap.

    Groups are laid end to end and the line is cut into `size` equal pieces, so that few groups are read by two.
    """
    total, begin = sum(weights), 0
    edges = total * rank / size, total * (rank + 1) / size
    found: list[Share | None] = []
    for weight in weights:
        low, high = (min(max((edge - begin) / weight, 0.0), 1.0) for edge in edges)
        found.append(Share(low, high) if low < high else None)
        begin += weight
    return found
