"""GLUE tasks made up here that a tiny model can learn in seconds, in the files of SST-2 and STS-B."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tiny_run import WORDS

TRAIN, DEV, TEST = 200, 80, 30
MARK, OTHERS = WORDS[0], WORDS[1:40]


def write_tasks(folder: Path) -> Path:
    """A folder with a folder for each task."""
    generator = np.random.default_rng(0)
    for task, header, test_header, row in (
        ("SST-2", "sentence\tlabel", "index\tsentence", _marked),
        (
            "STS-B",
            "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
            "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2",
            _alike,
        ),
    ):
        (folder / task).mkdir(parents=True)
        for split, count in (("train", TRAIN), ("dev", DEV), ("test", TEST)):
            is_test = split == "test"
            rows = [row(generator, place, is_test) for place in range(count)]
            lines = [test_header if is_test else header, *rows]
            (folder / task / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _words(generator: np.random.Generator) -> list[str]:
    return list(generator.choice(OTHERS, generator.integers(4, 10)))


def _marked(generator: np.random.Generator, place: int, is_test: bool) -> str:
    """Positive where one word occurs, in a little less than half of the rows."""
    words, label = _words(generator), int(generator.random() < 0.45)
    if label:
        words[generator.integers(len(words))] = MARK
    text = " ".join(words)
    return f"{place}\t{text}" if is_test else f"{text}\t{label}"


def _alike(generator: np.random.Generator, place: int, is_test: bool) -> str:
    """The score is the share of the second text's words that are the mark."""
    second, share = _words(generator), generator.random()
    second = [MARK if generator.random() < share else word for word in second]
    score = 5 * second.count(MARK) / len(second)
    texts = f"{' '.join(_words(generator))}\t{' '.join(second)}"
    front = f"{place}\tnews\twire\t2015\t0001\tnone\tnone\t{texts}"
    return front if is_test else f"{front}\t{score:.3f}"
