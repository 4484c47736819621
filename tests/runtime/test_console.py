"""A reader that has gone costs the output, never the run or its exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from homodistil_ds.runtime import console

AFTER_THE_READER = """
import sys
from pathlib import Path
from homodistil_ds.runtime import console
sys.stdin.readline()
for _ in range(3):
    console.say("lost", sys.stdout)
    console.say("lost", sys.stderr)
sys.exit(75)
"""


def test_a_line_arrives(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("one")
    console.say("two", sys.stderr)
    assert capsys.readouterr() == ("one\n", "two\n")


def test_lines_that_nobody_reads_leave_the_exit_code_alone() -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", AFTER_THE_READER], **pipes) as process:  # type: ignore[call-overload]
        process.stdout.close()
        process.stderr.close()
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.wait(60) == 75


def test_a_closed_stream_is_passed_over() -> None:
    stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    stream.close()
    console.say("lost", stream)


def test_a_full_disk_costs_lines_but_the_file_stays() -> None:
    with open("/dev/full", "w", encoding="utf-8") as stream:
        target = os.readlink(f"/proc/self/fd/{stream.fileno()}")
        console.say("lost", stream)
        assert os.readlink(f"/proc/self/fd/{stream.fileno()}") == target
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # closing writes the rest


SPEAKS = """
import os, subprocess, sys, warnings
from pathlib import Path
from homodistil_ds.runtime import console
folder, rank, last = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
print("before")
problem = console.keep_log(folder, rank, "after step 3")
if problem:
    console.call_out(problem)
console.say("a line")
warnings.warn("a warning")
os.write(1, b"from C\\n")
subprocess.run(["echo", "from a child"])
sys.stderr.write("\\rbar 10%")
console.note("noted")
console.call_out("called out")
if last == "raise":
    from homodistil_ds.command import to_the_end
    def run():
        raise KeyError("missing")
    sys.exit(to_the_end(run, debug=False))
if last == "crash":
    import ctypes
    ctypes.string_at(0)
sys.exit(75)
"""


def spoken(folder: Path, rank: int, last: str = "") -> tuple[int, str, str]:
    """Exit code, the console and the log of a rank that says a line of every kind."""
    command = [sys.executable, "-c", SPEAKS, str(folder), str(rank), last]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=60)
    log = folder / f"rank{rank}.log"
    return done.returncode, done.stdout, log.read_text(encoding="utf-8") if log.is_file() else ""


def test_rank_0_shows_on_the_console_and_its_python_lines_are_kept(tmp_path: Path) -> None:
    code, shown, log = spoken(tmp_path / "logs", 0)
    assert code == 75
    for line in ("before", "a line", "a warning", "from C", "from a child", "bar 10%", "called out"):
        assert shown.count(line) >= 1, line
    for line in ("rank 0 ", "after step 3", "a line", "a warning", "noted", "called out"):
        assert line in log
    assert "bar" not in log
    assert "noted" not in shown


def test_another_rank_has_everything_in_its_log_and_only_calls_on_the_console(tmp_path: Path) -> None:
    code, shown, log = spoken(tmp_path / "logs", 3)
    assert code == 75
    assert shown.splitlines() == ["before", "called out"]
    for line in ("rank 3 ", "a line", "a warning", "from C", "from a child", "bar 10%", "noted", "called out"):
        assert log.count(line) >= 1, line
    assert log.count("called out\n") == 1


def test_a_restart_appends(tmp_path: Path) -> None:
    _, _, once = spoken(tmp_path / "logs", 1)
    _, _, twice = spoken(tmp_path / "logs", 1)
    assert (once.count("===="), twice.count("====")) == (2, 4)
    assert twice.startswith(once)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_traceback_reaches_the_log_and_the_console(tmp_path: Path, rank: int) -> None:
    code, shown, log = spoken(tmp_path / "logs", rank, "raise")
    assert code == 1
    assert shown.count("KeyError: 'missing'") == log.count("KeyError: 'missing'") == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_crash_leaves_its_stack_in_the_log(tmp_path: Path, rank: int) -> None:
    code, _, log = spoken(tmp_path / "logs", rank, "crash")
    assert code < 0
    assert "Fatal Python error: Segmentation fault" in log


@pytest.mark.parametrize("rank", [0, 1])
def test_a_log_that_cannot_be_made_costs_one_warning(tmp_path: Path, rank: int) -> None:
    (tmp_path / "logs").write_text("in the way")
    code, shown, _ = spoken(tmp_path / "logs", rank)
    assert code == 75
    assert shown.count(f"warning: no log of rank {rank}") == 1
    assert "from a child" in shown


@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_costs_the_log_only(tmp_path: Path, rank: int) -> None:
    (tmp_path / f"rank{rank}.log").symlink_to("/dev/full")
    code, shown, _ = spoken(tmp_path, rank)
    assert code == 75
    assert "called out" in shown


def test_the_log_can_be_closed_and_changed(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from homodistil_ds.runtime import console
for name in ("a", "b"):
    console.keep_log(Path({str(tmp_path)!r}) / name, 1, "")
    print("in", name)
console.close_log()
print("outside")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "outside\n"
    assert [(tmp_path / name / "rank1.log").read_text().splitlines()[1:] for name in "ab"] == [["in a"], ["in b"]]
