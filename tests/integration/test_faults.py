"""What a run survives, in short: benchmarks/faults.py with ten faults in two chains, two processes each."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from integration.processes import Finished, run

FAULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "faults.py"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, Path]:
    folder = tmp_path_factory.mktemp("faults") / "short"
    return run([sys.executable, str(FAULTS), "--short", "--output_dir", str(folder)]), folder


def test_every_fault_is_survived(finished: tuple[Finished, Path]) -> None:
    done, folder = finished
    assert done.code == 0, done.shown
    results = json.loads((folder / "faults.json").read_text(encoding="utf-8"))["results"]
    assert [result["problem"] for result in results if result["problem"]] == []


def test_every_kind_of_fault_came(finished: tuple[Finished, Path]) -> None:
    """A benchmark that tried nothing would find nothing."""
    done, folder = finished
    results = json.loads((folder / "faults.json").read_text(encoding="utf-8"))["results"]
    kinds = Counter(result["fault"].split(":")[0] for result in results)
    assert kinds["found before it is read"] == 30, done.shown
    assert sum(result["to_resume"] is not None for result in results) >= 8, done.shown
    assert kinds["refused"] == 1
