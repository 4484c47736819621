"""The reason of the last end, whole or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from homodistil_ds.runtime.exit_reason import FILE_NAME, write_exit_reason


def test_the_last_reason_stands_alone_in_the_folder(tmp_path: Path) -> None:
    write_exit_reason(tmp_path, 7, "DIST-HANG", "no progress", 1, 41, "step-40")
    write_exit_reason(tmp_path, 75, "STOP-SIGNAL", "SIGTERM", 0, None, None)
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
    assert json.loads((tmp_path / FILE_NAME).read_text(encoding="utf-8")) == {
        "code": 75,
        "id": "STOP-SIGNAL",
        "what": "SIGTERM",
        "rank": 0,
        "step": None,
        "checkpoint": None,
    }


def test_what_cannot_be_written_is_passed_over_and_leaves_nothing_behind(tmp_path: Path) -> None:
    write_exit_reason(tmp_path / "missing", 7, "DIST-HANG", "what", 0, 1, None)
    (tmp_path / FILE_NAME).mkdir()
    write_exit_reason(tmp_path, 7, "DIST-HANG", "what", 0, 1, None)
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_the_last_step_is_all_but_the_tear_down_of_the_interpreter() -> None:
    code = """
import atexit, os, sys
from homodistil_ds.runtime.exit_reason import leave

class Late:
    def __del__(self, write=os.write):
        write(1, b", torn down")

late = Late()
atexit.register(print, "at exit", end="")
print("flushed", end=", ")
{end}(75)
"""
    ends = {"leave": "flushed, at exit", "sys.exit": "flushed, at exit, torn down"}
    for end, said in ends.items():
        command = [sys.executable, "-c", code.format(end=end)]
        left = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (left.returncode, sorted(left.stdout.split(", ")), left.stderr) == (75, sorted(said.split(", ")), "")


@pytest.mark.parametrize(("code", "left_with"), [(0, 120), (7, 7)])
def test_words_that_cannot_be_written_are_no_success(code: int, left_with: int) -> None:
    script = f"from homodistil_ds.runtime.exit_reason import leave; print('the plan'); leave({code})"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w", encoding="utf-8") as full:
        left = subprocess.run([sys.executable, "-c", script], stdout=full, env=buffered, check=False)
    assert left.returncode == left_with


def test_what_c_has_printed_arrives_and_a_signal_changes_nothing_any_more() -> None:
    script = """
import atexit, ctypes, os, signal, sys
from homodistil_ds.runtime.exit_reason import leave
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
ctypes.CDLL(None).printf(b"from C")
class Stream:
    def flush(self):
        os.kill(os.getpid(), signal.SIGTERM)
sys.stderr = Stream()
leave(0)
"""
    left = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert left.returncode == 0
    script = script.replace("sys.stderr = Stream()", "")
    left = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (left.returncode, left.stdout) == (0, "from C")
