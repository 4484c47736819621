"""How fast a corpus is prepared by 1 and 2 worker processes: text, documents and tokens per second.

    python benchmarks/prepare_corpus.py --corpus my_texts.txt.xz --output_dir runs/prepare_corpus

Whole runs of tools/prepare_corpus.py, in turns, because a machine's speed drifts. Seconds are those the tool counts,
from its loaded tokenizer to the written index; the folders must be equal byte for byte.
`by CPU time` compares the CPU seconds of the busiest worker, which other jobs on the machine change less.
At the end a run is started from the prepared folder and one from the text itself, up to the end of their first step.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from homodistil_ds.data.corpus import read_index

ROOT = Path(__file__).resolve().parent.parent
TOOL, TRAIN = ROOT / "tools" / "prepare_corpus.py", ROOT / "homodistil_ds" / "train.py"


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--corpus", nargs="+", default=["builtin"])
    flags.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    flags.add_argument("--repeats", type=int, default=3)
    flags.add_argument("--output_dir", type=Path, default=Path("runs/prepare_corpus"))
    given = flags.parse_args()
    given.output_dir.mkdir(parents=True, exist_ok=True)
    taken: dict[int, list[tuple[float, float]]] = {workers: [] for workers in given.workers}
    contents = set()
    for _ in range(given.repeats):
        for workers in given.workers:
            folder = given.output_dir / "prepared"
            shutil.rmtree(folder, ignore_errors=True)
            taken[workers].append(prepare(given.corpus, workers, folder))
            contents.add(tuple(path.read_bytes() for path in sorted(folder.iterdir())))
    assert len(contents) == 1, "the folders differ"
    counts = read_index(folder)["counts"]
    rows = [row(workers, times, counts) for workers, times in taken.items()]
    for one in rows:
        linear = rows[0]["workers"] / one["workers"]
        one["of_linear"] = rows[0]["seconds"] / one["seconds"] * linear
        one["of_linear_cpu"] = rows[0]["cpu_seconds"] / one["cpu_seconds"] * linear
    show(rows)
    sources = {"the prepared folder": [str(folder)], "the text": given.corpus}
    starts = {name: first_step(source, given.output_dir / "run") for name, source in sources.items()}
    print("\nseconds from launch to the end of the first step:")
    print("\n".join(f"  from {name}: {seconds:.1f}" for name, seconds in starts.items()))
    result = {"cores": len(os.sched_getaffinity(0)), "load": os.getloadavg(), "counts": counts, "rows": rows}
    result["first_step_seconds"] = starts
    (given.output_dir / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def prepare(corpus: list[str], workers: int, folder: Path) -> tuple[float, float]:
    """Seconds that the tool reports, and CPU seconds of its busiest worker."""
    command = [sys.executable, str(TOOL), "--corpus", *corpus, "--workers", str(workers), "--output_dir", str(folder)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = re.search(r"([\d.]+) s on \d+ workers, the busiest took ([\d.]+) s", out)
    assert found is not None, out
    return float(found.group(1)), float(found.group(2))


def first_step(corpus: list[str], run_dir: Path) -> float:
    """Seconds from the start of a one-process run to the line of its first step; then it is ended."""
    shutil.rmtree(run_dir, ignore_errors=True)
    command = [
        sys.executable,
        str(TRAIN),
        "--corpus",
        *corpus,
        "--output_dir",
        str(run_dir),
        "--global_batch_size",
        "4",
    ]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = any(re.match(r"step +1/", line) for line in process.stdout)
        seconds = time.perf_counter() - began
        process.kill()
    assert found, f"{' '.join(command)} ended before its first step"
    return seconds


def row(workers: int, taken: list[tuple[float, float]], counts: dict[str, int]) -> dict[str, float]:
    seconds = [wall for wall, _ in taken]
    median = statistics.median(seconds)
    return {
        "workers": workers,
        "seconds": median,
        "fastest": min(seconds),
        "slowest": max(seconds),
        "cpu_seconds": statistics.median(cpu for _, cpu in taken),
        "mb_s": counts["bytes"] / 1e6 / median,
        "documents_s": counts["documents"] / median,
        "tokens_s": counts["tokens"] / median,
    }


def show(rows: list[dict[str, float]]) -> None:
    names = ("workers", "s (fastest to slowest)", "MB of text/s", "documents/s", "tokens/s", "of linear", "by CPU time")
    print(f"| {' | '.join(names)} |\n{'|---' * len(names)}|")
    for one in rows:
        spread = f"{one['seconds']:.1f} ({one['fastest']:.1f} to {one['slowest']:.1f})"
        rates = f"{one['mb_s']:.2f} | {one['documents_s']:,.0f} | {one['tokens_s']:,.0f}"
        print(f"| {one['workers']} | {spread} | {rates} | {one['of_linear']:.2f} | {one['of_linear_cpu']:.2f} |")


if __name__ == "__main__":
    main()
