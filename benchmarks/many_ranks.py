"""Does anything grow with the number of ranks that should not? Counted on a few ranks, computed for thousands.

python benchmarks/many_ranks.py --output_dir runs/many_ranks          # 2, 4 and 8 ranks here; 64 to 4096 on paper

The plan below gives messages, bytes and opened files of every phase as pure functions of the number of ranks and the
student's shape. It is compared with what real runs of a tiny student send and open, and then used where no machine is.
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tiny_run import write_corpus, write_teacher
from transformers import BertConfig, BertForMaskedLM

from homodistil_ds.config import LossConfig
from homodistil_ds.distillation.objective import Objective
from homodistil_ds.models.families import plan_for
from homodistil_ds.models.forward import Student
from homodistil_ds.runtime.checkpoint import STATE, TENSORS

NUMBER = 8  # bytes of an integer that ranks agree on
STATE_BYTES = 12  # of a parameter in a checkpoint: master weight and two moments
EXACT = ("scoring", "agreement", "stop", "log", "together", "resume")
# A digit more or less in the manifest or in a pickled list; the runs that are held before a cut depend on the masks,
# and are taken here to be those after it.
TOLERANCE = {**dict.fromkeys(EXACT, 0.0), "save": 0.01, "resume elsewhere": 0.01, "cut": 0.15}
Run = tuple[str, int, int]


@dataclass(frozen=True)
class Shape:
    """What the plan needs of a student: parameters in their order, neurons and groups that are scored."""

    parameters: tuple[tuple[str, tuple[int, ...]], ...]
    neurons: int
    groups: int

    @property
    def entries(self) -> int:
        return sum(math.prod(shape) for _, shape in self.parameters)


@dataclass(frozen=True)
class Traffic:
    """Of the rank that has most of it: collectives, bytes given to them and got from them, files opened."""

    messages: int
    sent: int
    got: int
    opens: int = 0


def flat_runs(shape: Shape, ranks: int) -> list[list[Run]]:
    """What each rank holds at ZeRO 1 and 2: matrices and vectors in a row each, padded, cut into equal parts."""
    held: list[list[Run]] = [[] for _ in range(ranks)]
    for matrices in (True, False):
        group = [(name, math.prod(sizes)) for name, sizes in shape.parameters if (len(sizes) > 1) is matrices]
        part = math.ceil(sum(count for _, count in group) / (2 * ranks)) * 2
        begin = 0
        for name, count in group:
            for rank in range(begin // part, (begin + count - 1) // part + 1):
                first, last = max(begin, rank * part), min(begin + count, (rank + 1) * part)
                held[rank].append((name, first - begin, last - first))
            begin += count
    return held


def even_runs(shape: Shape, ranks: int) -> list[list[Run]]:
    """What each rank holds at ZeRO 3: an equal part of each parameter."""
    held: list[list[Run]] = [[] for _ in range(ranks)]
    for name, sizes in shape.parameters:
        count = math.prod(sizes)
        part = math.ceil(count / ranks)
        for rank in range(math.ceil(count / part)):
            held[rank].append((name, rank * part, min(part, count - rank * part)))
    return held


RUNS: dict[int, Callable[[Shape, int], list[list[Run]]]] = {2: flat_runs, 3: even_runs}


def together(ranks: int) -> Traffic:
    """Any action that all ranks must have done, and the agreement to stop: one all-reduce of one integer."""
    return Traffic(1, NUMBER, NUMBER)


def scoring(shape: Shape, ranks: int) -> Traffic:
    return Traffic(1, 4 * shape.neurons, 4 * shape.neurons)


def agreement(shape: Shape, ranks: int) -> Traffic:
    """Largest and smallest digest of each group."""
    return Traffic(1, 16 * shape.groups, 16 * shape.groups)


def log(ranks: int) -> Traffic:
    """Three float32 figures of every rank, on every rank."""
    return Traffic(1, 12, 12 * ranks)


def told(value: Any) -> Traffic:
    """A broadcast of an object: its size, then itself."""
    size = NUMBER + len(pickle.dumps(value))
    return Traffic(2, size, size)


def save(shape: Shape, ranks: int) -> Traffic:
    """A name for the folder, four agreements, the longest entry's length, and the entries of the manifest to rank 0."""
    size = STATE_BYTES * shape.entries // ranks
    names = {f"rank-{0:05d}-of-{ranks:05d}.safetensors": size, TENSORS: 2760, STATE: 41}
    entry = len(json.dumps({name: {"bytes": count, "sha256": "0" * 64} for name, count in names.items()}))
    small = told("0" * 8).sent + 5 * NUMBER
    return Traffic(8, small + entry, small + ranks * entry)


def resume(ranks: int, path_bytes: int) -> Traffic:
    """As many ranks, the same stage: which checkpoint, then four agreements.

    A rank opens the manifest twice, the state, the pruner's tensors, its own file and its share of all, to hash them.
    """
    sent = NUMBER + path_bytes + 4 * NUMBER
    return Traffic(6, sent, sent, 5 + math.ceil((ranks + 2) / ranks))


def resume_elsewhere(shape: Shape, stage: int, before: int, ranks: int, path_bytes: int) -> Traffic:
    """What `before` ranks wrote: each rank looks into a share of the files, and all learn which runs they hold."""
    written, wanted = RUNS[stage](shape, before), RUNS[stage](shape, ranks)
    names = [f"rank-{rank:05d}-of-{before:05d}.safetensors" for rank in range(before)]
    lists = [
        len(pickle.dumps({names[k]: fresh(written[k]) for k in range(rank, before, ranks)}))
        for rank in range(min(ranks, before))
    ]
    lacking = told(f"0 of {wanted[0][0][2]} wanted entries of {wanted[0][0][0]}").sent
    small = NUMBER + path_bytes + 6 * NUMBER + lacking
    most = most_met(written, wanted)
    opens = 4 + math.ceil((before + 2) / ranks) + math.ceil(before / ranks) + most
    return Traffic(12, small + NUMBER + max(lists), small + ranks * (NUMBER + max(lists)), opens)


def most_met(written: list[list[Run]], wanted: list[list[Run]]) -> int:
    """The most files of which runs meet those that one rank wants; those of a parameter ascend with the files."""
    begins: dict[str, list[int]] = {}
    ends: dict[str, list[int]] = {}
    files: dict[str, list[int]] = {}
    for file, runs in enumerate(written):
        for name, first, count in runs:
            begins.setdefault(name, []).append(first)
            ends.setdefault(name, []).append(first + count)
            files.setdefault(name, []).append(file)
    most = 0
    for runs in wanted:
        met: set[int] = set()
        for name, first, count in runs:
            met.update(files[name][bisect_right(ends[name], first) : bisect_left(begins[name], first + count)])
        most = max(most, len(met))
    return most


def cut(shape: Shape, stage: int, ranks: int) -> Traffic:
    """Every rank learns which runs all others hold and want; then an entry travels once at most."""
    lists = max(len(pickle.dumps((fresh(runs), fresh(runs)))) for runs in RUNS[stage](shape, ranks))
    return Traffic(3, NUMBER + lists, ranks * (NUMBER + lists))


def fresh(runs: Sequence[Run]) -> list[Run]:
    """The same with names that are not the same objects, which pickle would write once."""
    return [("".join(list(name)), first, count) for name, first, count in runs]


def plan(shape: Shape, stage: int, ranks: int, before: int | None = None, path_bytes: int = 120) -> dict[str, Traffic]:
    phases = {
        "scoring": scoring(shape, ranks),
        "agreement": agreement(shape, ranks),
        "stop": together(ranks),
        "together": together(ranks),
        "log": log(ranks),
        "cut": cut(shape, stage, ranks),
        "save": save(shape, ranks),
        "resume": resume(ranks, path_bytes),
    }
    if before:
        phases["resume elsewhere"] = resume_elsewhere(shape, stage, before, ranks, path_bytes)
    return phases


def measured(found: dict[str, Any]) -> dict[str, Traffic]:
    """The same from what the worker counted; of a cut the values that travel are left out."""
    most = {}
    for phase in found["ranks"][0]:
        rows = [rank[phase] for rank in found["ranks"]]
        sent, got = ("sent", "got") if phase != "cut" else ("lists_sent", "lists")
        most[phase] = Traffic(
            max(row["messages"] for row in rows),
            max(row[sent] for row in rows),
            max(row[got] for row in rows),
            max(row["opens"] for row in rows) if phase.startswith("resume") else 0,
        )
    return most


def shape_of(found: dict[str, Any]) -> Shape:
    parameters = tuple((name, tuple(sizes)) for name, sizes in found["shapes"])
    return Shape(parameters, found["neurons"], found["groups"])


def bert_base() -> Shape:
    config = BertConfig()
    full = plan_for(config)
    reads = Objective(LossConfig(), with_teacher=True).student_reads()
    with torch.device("meta"):
        student = Student(BertForMaskedLM(config), full.family, reads, teacher_hidden=full.full.hidden)
    parameters = tuple((name, tuple(parameter.shape)) for name, parameter in student.named_parameters())
    return Shape(parameters, sum(full.groups().values()), len(full.groups()))


def off_by(counted: Traffic, planned: Traffic) -> float:
    """The largest relative difference of bytes; other messages or more opened files than planned are infinitely far."""
    if counted.messages != planned.messages or counted.opens > planned.opens:
        return math.inf
    pairs = ((counted.sent, planned.sent), (counted.got, planned.got))
    return max(abs(own - other) / other for own, other in pairs)


def count_here(folder: Path, worlds: Sequence[int], stages: Sequence[int]) -> dict[int, dict[str, Any]]:
    """World size -> what the worker found; each world but the first reads the checkpoint of the one before too."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from integration.processes import work  # noqa: PLC0415 - the tests' own launcher and worker

    folder.mkdir(parents=True, exist_ok=True)
    teacher, corpus = write_teacher(folder / "teacher"), write_corpus(folder / "words.txt")
    found: dict[int, dict[str, Any]] = {}
    others: dict[str, str] = {}
    for ranks in worlds:
        found[ranks] = work(
            ranks, "traffic", folder / f"{ranks}", teacher=teacher, corpus=corpus, stages=stages, others=others
        )
        others = {case: values["saved"] for case, values in found[ranks].items()}
    return found


def comparison(found: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per world, stage and phase: counted, planned, and how far they are apart."""
    rows, before = [], None
    for ranks, cases in found.items():
        for case, values in cases.items():
            planned = plan(shape_of(values), int(case[4:]), ranks, before, values["path_bytes"])
            for phase, counted in measured(values).items():
                far = off_by(counted, planned[phase])
                rows.append({"ranks": ranks, "case": case, "phase": phase, "counted": asdict(counted)})
                rows[-1] |= {"planned": asdict(planned[phase]), "off_by": far, "within": far <= TOLERANCE[phase]}
        before = ranks
    return rows


def text(count: float) -> str:
    for unit in ("", " K", " M", " G", " T"):
        if count < 1000:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g} P"


def cell(phase: str, traffic: Traffic, ranks: int) -> str:
    opens = f", {traffic.opens} files" if traffic.opens else ""
    in_all = ranks * min(traffic.sent, traffic.got) if phase == "save" else ranks * traffic.got  # to rank 0 alone
    return f"{traffic.messages}, {text(traffic.got)}B{opens} / {text(in_all)}B"


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--output_dir", type=Path, required=True)
    flags.add_argument("--counted", type=int, nargs="*", default=[2, 4, 8])
    flags.add_argument("--planned", type=int, nargs="*", default=[64, 512, 4096])
    given = flags.parse_args()
    given.output_dir.mkdir(parents=True, exist_ok=True)
    rows = comparison(count_here(given.output_dir / "runs", given.counted, (2, 3))) if given.counted else []
    print(
        "| ranks | stage | phase | messages | bytes sent | got: counted | got: planned | off by | opens |\n|"
        + "---|" * 9
    )
    for row in rows:
        counted, planned = row["counted"], row["planned"]
        print(
            f"| {row['ranks']} | {row['case'][4:]} | {row['phase']} | {counted['messages']} | {counted['sent']} | "
            f"{counted['got']} | {planned['got']} | {row['off_by']:.1%} | {counted['opens']} of {planned['opens']} |"
        )
    shape, tables = bert_base(), {}
    print(f"\nBERT-base, {shape.entries / 1e6:.1f} M parameters, on the rank that has most: messages, bytes got, files")
    print("opened / bytes got by all ranks together\n")
    print("| stage | phase | " + " | ".join(map(str, given.planned)) + " |\n|" + "---|" * (2 + len(given.planned)))
    for stage in RUNS:
        columns = {ranks: plan(shape, stage, ranks, ranks // 2) for ranks in given.planned}
        tables[f"zero{stage}"] = {ranks: {p: asdict(t) for p, t in column.items()} for ranks, column in columns.items()}
        for phase in next(iter(columns.values())):
            cells = [cell(phase, column[phase], ranks) for ranks, column in columns.items()]
            print(f"| {stage} | {phase} | {' | '.join(cells)} |")
    written = STATE_BYTES * shape.entries
    print(f"| | files of a checkpoint | {' | '.join(str(ranks + 3) for ranks in given.planned)} |")
    cells = [f"{text(written / ranks)}B / {text(written)}B" for ranks in given.planned]
    print(f"| | tensors of a checkpoint | {' | '.join(cells)} |")
    (given.output_dir / "many_ranks.json").write_text(
        json.dumps({"counted": rows, "planned": tables}, indent=2), encoding="utf-8"
    )
    wrong = [f"{row['ranks']} ranks, {row['case']}: {row['phase']}" for row in rows if not row["within"]]
    if wrong:
        sys.exit(f"further from the plan than stated: {'; '.join(wrong)}")


if __name__ == "__main__":
    main()
