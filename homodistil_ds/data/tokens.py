"""Units of text become parts: cleaned, hashed, tokenized. What a killed preparation has finished is found again."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from homodistil_ds.data.parts import Part
from homodistil_ds.data.progress import Progress
from homodistil_ds.data.units import Group, Share, clean, digest, shares
from homodistil_ds.data.workers import Workers
from homodistil_ds.errors import HomodistilError

SHORTEST_DOCUMENT = 8  # tokens
_BATCH_CHARACTERS = 1 << 18
_PART, _END = ".part", ".end"


class Tokens:
    """The tokenizer with what packing must know of it. Raises HomodistilError DATA-NO-SPECIAL-TOKENS.

    `front` and `back` are the ids that every row begins and ends with, `end` is the one after every document: [CLS] and
    [SEP] where there are both; else the token of the end, and in front that of the beginning if texts get one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        cls, sep, eos = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.eos_token_id
        self.front: tuple[int, ...] = ()
        self.back: tuple[int, ...] = ()
        if cls is not None and sep is not None:
            self.front, self.back, self.end = (int(cls),), (int(sep),), int(sep)
        elif eos is not None:
            begins = [int(id) for id in tokenizer("")["input_ids"][:1] if id == tokenizer.bos_token_id]
            self.front, self.end = tuple(begins), int(eos)
        else:
            lacking = "the tokenizer has neither [CLS] and [SEP] nor a token for the end of a text"
            raise HomodistilError("DATA-NO-SPECIAL-TOKENS", lacking, "Use the teacher's own tokenizer.")
        self.dtype = np.dtype("<u2" if len(tokenizer) <= 1 << 16 else "<i4")
        self._tokenizer = tokenizer

    def inner(self, length: int) -> int:
        """Tokens of text in a row of this length."""
        return length - len(self.front) - len(self.back)

    def ids(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """Token ids of each text, without special tokens."""
        ends = np.cumsum([len(text) + 1 for text in texts]) // _BATCH_CHARACTERS
        for _, batch in itertools.groupby(zip(ends.tolist(), texts, strict=True), key=lambda pair: pair[0]):
            yield from self._tokenizer(
                [text for _, text in batch],
                add_special_tokens=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )["input_ids"]


@dataclass
class Finished:
    """What lies in the folder of parts, as its names tell: the units of each group, and how many it has in all."""

    units: dict[int, set[int]]
    counts: dict[int, int]

    @classmethod
    def in_folder(cls, folder: Path) -> Finished:
        finished = cls(defaultdict(set), {})
        for path in folder.iterdir():
            if _is_named(path):
                group, number = (int(word) for word in path.stem.split("-"))
                if path.suffix == _PART:
                    finished.units[group].add(number)
                else:
                    finished.counts[group] = number
        return finished


def tokenize(
    groups: Sequence[Group], tokens: Tokens, cleaned: bool, folder: Path, workers: Workers, progress: Progress
) -> tuple[list[Path], int, int]:
    """Every worker writes the parts of its share into `folder`.

    Returns all parts in the order of the source, how many were made now and how many were there before.
    """
    finished = Finished.in_folder(folder)
    counts: dict[int, int] = {}
    made = found = 0
    for group, share in zip(groups, shares([g.weight for g in groups], workers.rank, workers.size), strict=True):
        if share is not None:
            there = {unit for unit in finished.units[group.number] if share.has(unit)}
            found += len(there)
            count = finished.counts.get(group.number)
            if count is None or any(share.has(unit) and unit not in there for unit in range(count)):
                count, new = _tokenize_group(group, share, there, tokens, cleaned, folder, progress)
                made += new
            counts[group.number] = count
    everyone = workers.everyone((counts, made, found))
    counts = {group: count for one, _, _ in everyone for group, count in one.items()}
    paths = [folder / _name(group.number, unit) for group in groups for unit in range(counts[group.number])]
    return paths, sum(made for _, made, _ in everyone), sum(found for _, _, found in everyone)


def forget(groups: Collection[int], folder: Path) -> None:
    """Remove the parts of some groups, because what they are to hold has changed."""
    for path in folder.iterdir():
        if _is_named(path) and int(path.stem.split("-")[0]) in groups:
            path.unlink()


def _name(group: int, number: int, suffix: str = _PART) -> str:
    return f"{group:06d}-{number:06d}{suffix}"


def _is_named(path: Path) -> bool:
    return path.suffix in (_PART, _END) and not path.name.startswith(".")


def _tokenize_group(
    group: Group, share: Share, there: set[int], tokens: Tokens, cleaned: bool, folder: Path, progress: Progress
) -> tuple[int, int]:
    """How many units the group has, and how many were made here."""
    units = made = 0
    for number, documents in group.units(lambda unit: share.has(unit) and unit not in there):
        units = number + 1
        if documents:
            part = _part(documents, tokens, cleaned)
            part.write(folder / _name(group.number, number))
            made += 1
            progress.add(int(part.documents["bytes"].sum()), len(part.documents), group.files[-1][1].label)
    (folder / _name(group.number, units, _END)).touch()
    return units, made


def _part(documents: Sequence[tuple[int, str]], tokens: Tokens, cleaned: bool) -> Part:
    texts = [clean(text) if cleaned else text for _, text in documents]
    digests = [digest(text) for text in texts]
    first: dict[bytes, int] = {}
    for place, key in enumerate(digests):
        first.setdefault(key, place)  # copies get no tokens, they are dropped in any case
    lengths = [0] * len(texts)
    ids: list[int] = []
    for place, encoded in zip(first.values(), tokens.ids([texts[p] for p in first.values()]), strict=True):
        lengths[place] = len(encoded)
        if len(encoded) >= SHORTEST_DOCUMENT:
            ids.extend(encoded)
            ids.append(tokens.end)
    sizes = [len(text.encode("utf-8")) for _, text in documents]
    return Part.of([file for file, _ in documents], sizes, digests, lengths, np.array(ids, tokens.dtype))
