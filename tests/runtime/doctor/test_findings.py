"""No check ends the table: whatever one raises is a line of it. And the real command."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from homodistil_ds.errors import EXIT_CODES
from homodistil_ds.runtime.doctor.findings import INSTALL, Asked, Finding, examine, passed

TOOL = Path(__file__).resolve().parents[3] / "tools" / "doctor.py"


def test_a_check_that_raises_is_a_failed_line_and_the_others_go_on() -> None:
    def broken(asked: Asked) -> Finding:
        raise RuntimeError("driver/library\nversion mismatch")

    def missing(asked: Asked) -> Finding:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    found = examine(Asked(), [("a", broken), ("b", missing), ("c", lambda asked: passed("well"))])
    assert found["a"] == Finding("fail", "RuntimeError: driver/library version mismatch", "Mend what this names.")
    assert found["b"] == Finding("fail", "no module torch", INSTALL)
    assert found["c"].state == "pass"


def test_a_real_call(tmp_path: Path, op_folder: Path) -> None:
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(TOOL), "--json", "--output_dir", str(tmp_path / "run")], capture_output=True, check=False
    )
    found = json.loads(done.stdout)
    assert {"python", "torch", "deepspeed", "compile locks", "output folder"} <= set(found)
    failed = [name for name, finding in found.items() if finding["state"] == "fail"]
    assert done.returncode == (EXIT_CODES["ENV"] if failed else 0), found
    assert all(finding["remedy"] for finding in found.values() if finding["state"] != "pass")
    assert not (tmp_path / "run").exists()
    assert time.monotonic() - begin < 60


def test_without_any_package_there_is_still_a_table(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-S", str(TOOL)], capture_output=True, text=True, check=False)
    assert done.returncode == EXIT_CODES["ENV"], done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("fail  torch ")]
    assert len(lines) == 1
    assert "open files" in done.stdout
