"""What a run survives: real runs on two ranks, disturbed in every way below, against the same run left alone.

    python benchmarks/faults.py --output_dir runs/faults         # every fault, 60 kills: an hour on two busy cores
    python benchmarks/faults.py --output_dir runs/faults --short

Faults are chained: a run is disturbed, resumed, disturbed again ... and finished. A fault is survived if the job ended
as it should and no process stayed, if the resumed run lost no step beyond the save interval, and if the student and the
masks at the end of its chain equal those of the undisturbed run bit for bit. torchrun and deepspeed take turns.
Prints a table and writes faults.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from tiny_run import TRAIN, Job, Outcome, write_corpus, write_teacher

from homodistil_ds.errors import EXIT_CODES, HomodistilError
from homodistil_ds.runtime import checkpoint

CRASH_POINTS = Path(__file__).with_name("crash_points.py")
LAUNCHERS = ("torchrun", "deepspeed")
STEPS, SAVE_INTERVAL, CUTS, KEPT = 40, 2, 3, 3
STEP_TIMEOUT = 10.0
COMPLETE = "saving the student"
KINDS = ("rank-00000-of-00002.safetensors", "rank-00001-of-00002.safetensors", checkpoint.TENSORS, checkpoint.STATE)
FILES = (*KINDS, checkpoint.MANIFEST)
WAYS = ("0 bytes", "4 bytes", "half", "one byte less", "one bit flipped", "missing")


@dataclass
class Result:
    """One fault; `lost` steps had to be done again, `to_end` and `to_resume` are seconds, None where not measured."""

    fault: str
    problem: str = ""
    lost: int | None = None
    to_end: float | None = None
    to_resume: float | None = None
    most_lost: int = SAVE_INTERVAL


@dataclass(frozen=True)
class Fault:
    """`act` disturbs a running job until it ends; `error` is the id that it must end with, if it can still say so."""

    name: str
    act: Callable[[Chain, Job], None]
    error: str | None = None
    code: int | None = None  # of deepspeed; torchrun has one for all
    flags: tuple[str, ...] = ()
    script: tuple[str, ...] = (str(TRAIN),)
    before: Callable[[Chain], None] = lambda chain: None
    after: Callable[[Chain], None] = lambda chain: None
    most_lost: int = SAVE_INTERVAL
    launcher: str | None = None
    at_once: bool = True  # the job ends because of `act` as soon as it returns or waits


@dataclass
class Bench:
    root: Path
    teacher: Path
    seed: int
    whole: Outcome | None = None
    span: float = 10.0  # seconds of the undisturbed loop
    results: list[Result] = field(default_factory=list)

    def flags(self, corpus: Path) -> list[str]:
        machine = self.root / "zero2.json"
        return [
            *("--deepspeed_config", str(machine), "--teacher", str(self.teacher), "--corpus", str(corpus)),
            *("--steps", str(STEPS), "--save_interval", str(SAVE_INTERVAL), "--save_total_limit", str(KEPT)),
            *("--cuts", str(CUTS), "--log_interval", "1", "--eval_interval", "0", "--pruning.interval", "2"),
            *("--global_batch_size", "8", "--sequence_length", "32", "--held_out_sequences", "16"),
            *("--student.hidden_size", "16", "--student.intermediate_size", "24"),
            *("--student.num_attention_heads", "2", "--student.dtype", "float32", "--pruning.end", "0.7"),
        ]


class Chain:
    """One run directory and the faults it goes through."""

    def __init__(self, bench: Bench, name: str, folder: Path | None = None) -> None:
        self.bench = bench
        self.folder = folder or bench.root / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.run_dir = self.folder / "run"
        self.logs = bench.root / "logs" / name
        self.corpus = write_corpus(self.folder / "words.txt")
        self.random = random.Random(f"{bench.seed} {name}")
        self.results: list[Result] = []
        self.waiting: list[Result] = []  # not resumed yet
        self.reached: int = 0  # last step that a log showed
        self.resumed: int = 0
        self.current = Result("none")
        self.starts = 0

    @property
    def checkpoints(self) -> Path:
        return self.run_dir / "checkpoints"

    def start(self, fault: Fault | None = None) -> Job:
        resume = "auto" if checkpoint.newest_first(self.checkpoints) else "never"
        script = fault.script if fault else (str(TRAIN),)
        flags = [*self.bench.flags(self.corpus), "--output_dir", str(self.run_dir), *(fault.flags if fault else ())]
        self.starts += 1
        launched_by = (fault and fault.launcher) or LAUNCHERS[self.starts % 2]
        return Job.start(launched_by, [*script, *flags, "--resume", resume], self.logs / f"{self.starts}.txt")

    def wait_for_start(self, job: Job) -> None:
        """Until it trains; then it is known what the faults before it have cost."""
        job.wait_until(lambda: "going on after step" in job.text() or job.last_step(), "it trains")
        seconds = time.monotonic() - job.started
        text = job.text()
        self.resumed = int(text.split("going on after step ")[1].split(",")[0]) if "going on after" in text else 0
        self.settle(self.resumed)
        for result in self.waiting:
            result.to_resume = seconds
        self.waiting = []

    def settle(self, from_step: int) -> None:
        """What the faults before cost, if the run goes on from `from_step`."""
        for result in self.waiting:
            if result.lost is None:
                result.lost = max(0, self.reached - from_step)

    def disturb(self, fault: Fault) -> bool:
        """One start and one fault; false if the run was complete before the fault came."""
        result = self.current = Result(fault.name, most_lost=fault.most_lost)
        job = None
        try:
            fault.before(self)
            job = self.start(fault)
            fault.act(self, job)
            job.wait_for_end()
            result.to_end = job.seconds_to_end if fault.at_once else None
            self.check_end(fault, job)
        except (AssertionError, TimeoutError, OSError, psutil.Error) as error:
            result.problem = f"{type(error).__name__}: {error}"
        finally:
            if job is not None:
                job.clear()
                self.reached = max(job.last_step() or 0, self.resumed)
            fault.after(self)
        if job is not None and job.process.returncode == 0 and not result.problem:
            return False
        self.results.append(result)
        self.waiting.append(result)
        return True

    def check_end(self, fault: Fault, job: Job) -> None:
        if fault.error is None:
            return
        text = job.text()
        assert f"error[{fault.error}]" in text, f"no {fault.error} in\n{text[-4000:]}"
        code = EXIT_CODES[fault.error.split("-")[0]]
        if fault.code is not None and job.process.args[0].endswith("deepspeed"):  # type: ignore[index, union-attr]
            assert job.process.returncode == fault.code, f"exit code {job.process.returncode}"
        with suppress(FileNotFoundError):
            reason = json.loads((self.run_dir / "exit_reason.json").read_text(encoding="utf-8"))
            assert fault.error == "CKPT-SAVE" or (reason["code"], reason["id"]) == (code, fault.error), reason

    def go_through(self, faults: deque[Fault], most: int) -> None:
        """Faults off the queue until it is empty, `most` have come or the run is complete; then finish."""
        for _ in range(most):
            if self.reached > STEPS - 4:  # the rest is the end, which has its own faults
                break
            try:
                fault = faults.popleft()
            except IndexError:
                break
            if not self.disturb(fault):
                faults.append(fault)
                break
        try:
            self.finish()
            same = Outcome.of(self.run_dir) == self.bench.whole or self.bench.whole is None
            problem = "" if same else "the student is another one"
        except (TimeoutError, OSError, AssertionError) as error:
            problem = f"cannot be finished: {error}"
        for result in self.results:
            result.problem = result.problem or problem
        if not any(result.problem for result in self.results):
            shutil.rmtree(self.run_dir, ignore_errors=True)
        self.bench.results += self.results

    def finish(self) -> None:
        if (self.run_dir / "report.json").exists():
            return
        job = self.start()
        try:
            self.wait_for_start(job)
            job.wait_for_end()
            assert job.process.returncode == 0, job.text()[-4000:]
        finally:
            job.clear()


def kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()


def at_random(chain: Chain, job: Job) -> None:
    """Until an instant drawn uniformly over the next quarter of the loop: a chain's faults sweep over all of it."""
    chain.wait_for_start(job)
    time.sleep(chain.random.uniform(0, chain.bench.span * min(STEPS - chain.resumed, STEPS // 4) / STEPS))


def in_a_save(chain: Chain, job: Job) -> None:
    """Until an unfinished checkpoint stands, up to a tenth of a second after it began."""
    chain.wait_for_start(job)

    def saves() -> bool:
        with suppress(OSError):
            return COMPLETE in job.text() or any(chain.checkpoints.glob(f"{checkpoint.UNFINISHED}*"))
        return False

    for _ in range(chain.random.randint(1, 2)):
        job.wait_until(saves, "a save", tick=0.0005)
        time.sleep(chain.random.uniform(0, 0.05))


def in_a_cut(chain: Chain, job: Job) -> None:
    """Until a moment after an event at which the undisturbed run was cut, or any instant where none is left."""
    chain.wait_for_start(job)
    left = [step for step in CUT_STEPS if step > chain.resumed]
    if not left:
        return at_random(chain, job)
    job.wait_until(lambda: f"pruned at step {left[0]}:" in job.text(), "a cut", tick=0.002)
    time.sleep(chain.random.uniform(0, 2))
    return None


CUT_STEPS: list[int] = []


def kill_a_rank(wait: Callable[[Chain, Job], None], chain: Chain, job: Job) -> None:
    wait(chain, job)
    ranks = job.ranks()
    if ranks:
        kill(ranks[chain.random.choice(list(ranks))])


def kill_all(chain: Chain, job: Job) -> None:
    at_random(chain, job)
    for member in job.members():
        kill(member)


def kill_while_starting(chain: Chain, job: Job) -> None:
    job.wait_until(lambda: len(job.ranks()) == 2, "two ranks")
    time.sleep(chain.random.uniform(0, 8))
    kill_a_rank(lambda *_: None, chain, job)


def at_the_end(chain: Chain, job: Job) -> None:
    """Until a moment after the last step."""
    chain.wait_for_start(job)
    job.wait_until(lambda: COMPLETE in job.text(), "the end")
    time.sleep(chain.random.uniform(0, 1))


def stop_at_the_end(chain: Chain, job: Job) -> None:
    """While no loop looks for signals any more."""
    at_the_end(chain, job)
    for process in job.ranks().values():
        with suppress(psutil.NoSuchProcess):
            process.terminate()


def kills(count: int, seed: int) -> list[Fault]:
    waits = {
        "kill -9 a rank, any instant": at_random,
        "kill -9 a rank during a save": in_a_save,
        "kill -9 a rank during a cut": in_a_cut,
    }
    turns = [name for name, share in zip(waits, (3, 2, 1), strict=True) for _ in range(share)]
    names = [turns[place % len(turns)] for place in range(count)]
    random.Random(seed).shuffle(names)
    return [Fault(name, partial(kill_a_rank, waits[name])) for name in names]


def crash(point: str, rank: int, times: int) -> Fault:
    def act(chain: Chain, job: Job) -> None:
        chain.wait_for_start(job)

    name = f"kill -9 by itself: {point}" + (f", rank {rank}" if rank else "")
    return Fault(name, act, script=(str(CRASH_POINTS), point, str(rank), str(times)), at_once=False)


def send(number: signal.Signals, target: str) -> Fault:
    """A signal to a rank or to the launcher, a little into the run."""

    def act(chain: Chain, job: Job) -> None:
        chain.wait_for_start(job)
        job.wait_until(lambda: (job.last_step() or 0) > chain.resumed, "a step")
        time.sleep(chain.random.uniform(0, 0.3))
        os.kill(job.process.pid if target == "launcher" else job.ranks()[int(target[-1])].pid, number)

    code = EXIT_CODES["STOP"] if target != "launcher" else None
    return Fault(f"{number.name} to {target}", act, error="STOP-SIGNAL", code=code, most_lost=0)


def suspend(rank: int) -> Fault:
    def act(chain: Chain, job: Job) -> None:
        chain.wait_for_start(job)
        job.wait_until(lambda: (job.last_step() or 0) > chain.resumed, "a step")
        process = job.ranks()[rank]
        process.suspend()
        seconds = job.wait_for_end()
        assert seconds < STEP_TIMEOUT + 15, f"ended only after {seconds:.0f} s"
        assert "most recent call first" in job.text(), "no stacks"

    return Fault("SIGSTOP of a rank", act, error="DIST-HANG", flags=("--step_timeout", str(STEP_TIMEOUT)))


def with_two_checkpoints(chain: Chain) -> None:
    """Of a start that was killed after them, unless the chain has them already."""
    if len(checkpoint.newest_first(chain.checkpoints)) >= 2:
        return
    job = chain.start()
    try:
        chain.wait_for_start(job)
        job.wait_until(lambda: job.text().count("saved ") >= 2, "two saves")
    finally:
        job.clear()
    chain.reached = max(job.last_step() or 0, chain.resumed)


def damage(path: Path, way: str) -> None:
    content = path.read_bytes()
    if way == "missing":
        path.unlink()
    elif way == "one bit flipped":
        place = len(content) // 2
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
    else:
        sizes = {"0 bytes": 0, "4 bytes": 4, "half": len(content) // 2, "one byte less": len(content) - 1}
        path.write_bytes(content[: sizes[way]])


def damaged(name: str, way: str) -> Fault:
    """The newest checkpoint is damaged between two starts; the next one must say so and take the one before."""

    def before(chain: Chain) -> None:
        with_two_checkpoints(chain)
        chain.settle(int(checkpoint.newest_first(chain.checkpoints)[0].name[5:]))
        damage(checkpoint.newest_first(chain.checkpoints)[0] / name, way)

    def act(chain: Chain, job: Job) -> None:
        newest, older, *_ = checkpoint.newest_first(chain.checkpoints)
        chain.wait_for_start(job)
        warning = f"warning: {newest}: {name}"
        assert warning in job.text(), f"no {warning!r} in\n{job.text()[-4000:]}"
        chain.current.lost = max(0, chain.reached - chain.resumed)
        assert older.name == f"step-{chain.resumed}", chain.resumed
        # Set aside just after that line.
        job.wait_until((chain.checkpoints / f"aside-{newest.name}").is_dir, "the damaged one, set aside")
        job.wait_until(lambda: job.text().count("saved ") >= 2, "two saves")
        kill_a_rank(lambda *_: None, chain, job)

    what = f"newest checkpoint, {name.partition('-0')[0]}: {way}"
    return Fault(what, act, before=before, most_lost=2 * SAVE_INTERVAL, at_once=False)


def latest_says(text: str | None) -> Fault:
    def before(chain: Chain) -> None:
        with_two_checkpoints(chain)
        path = chain.checkpoints / "latest"
        path.unlink()
        if text is not None:
            path.write_text(text, encoding="utf-8")

    def act(chain: Chain, job: Job) -> None:
        newest = checkpoint.newest_first(chain.checkpoints)[0]
        chain.wait_for_start(job)
        assert newest.name == f"step-{chain.resumed}", chain.resumed
        job.wait_until(lambda: "saved " in job.text(), "a save")
        kill_a_rank(lambda *_: None, chain, job)

    return Fault(f"latest is {text!r}", act, before=before, at_once=False)


def write_limit(rank: int) -> Fault:
    """Files of one rank may not grow beyond a kilobyte, as on a full quota."""

    def act(chain: Chain, job: Job) -> None:
        chain.wait_for_start(job)
        job.wait_until(lambda: "saved " in job.text(), "a save")
        process = job.ranks()[rank]
        psutil.Process(process.pid).rlimit(psutil.RLIMIT_FSIZE, (1024, 1024))
        job.wait_for_end()
        nothing_unfinished(chain)

    return Fault("a rank may write no more", act, error="CKPT-SAVE", code=EXIT_CODES["CKPT"], launcher="deepspeed")


def nothing_unfinished(chain: Chain) -> None:
    left = [path.name for path in chain.checkpoints.glob(f"{checkpoint.UNFINISHED}*")]
    assert not left, f"left behind: {left}"
    problems = [checkpoint.problem_of(path) for path in checkpoint.newest_first(chain.checkpoints)]
    assert problems, "no checkpoint is left"
    assert not any(problems), problems


def full_disk(all_of_it: bool) -> Fault:
    """The file system of the run directory fills up: nothing is left, or less than the next checkpoint takes."""

    def act(chain: Chain, job: Job) -> None:
        chain.wait_for_start(job)
        job.wait_until(lambda: "saved " in job.text(), "a save")
        newest = checkpoint.newest_first(chain.checkpoints)[0]
        spare = 0 if all_of_it else sum(path.stat().st_size for path in newest.iterdir()) - 12 * 1024
        with (chain.folder / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while free := max(0, shutil.disk_usage(chain.folder).free - spare):
                filler.write(b"\0" * min(free, 1 << 16))
        job.wait_for_end()
        nothing_unfinished(chain)

    def after(chain: Chain) -> None:
        (chain.folder / "filler").unlink(missing_ok=True)

    name = "disk full" if all_of_it else "disk nearly full"
    code = EXIT_CODES["CKPT"]
    return Fault(name, act, error="CKPT-SAVE", code=code, after=after, launcher="deepspeed")


def read_only() -> Fault:
    def act(chain: Chain, job: Job) -> None:
        chain.wait_for_start(job)
        job.wait_until(lambda: "saved " in job.text(), "a save")
        mount("--bind", chain.run_dir, chain.run_dir)
        mount("-o", "remount,bind,ro", chain.run_dir)

    def after(chain: Chain) -> None:
        subprocess.run(["umount", str(chain.run_dir)], check=False, capture_output=True)

    code = EXIT_CODES["CKPT"]
    return Fault("output directory turns read-only", act, error="CKPT-SAVE", code=code, after=after)


def vanished() -> Fault:
    def act(chain: Chain, job: Job) -> None:
        chain.wait_for_start(job)
        job.wait_until(lambda: "saved " in job.text(), "a save")
        chain.run_dir.rename(chain.folder / "away")
        job.wait_for_end()
        assert not chain.run_dir.exists(), "it was made again"

    def after(chain: Chain) -> None:
        if not chain.run_dir.exists():
            (chain.folder / "away").rename(chain.run_dir)

    code = EXIT_CODES["CKPT"]
    return Fault("output directory vanishes", act, error="CKPT-SAVE", code=code, after=after)


def second_job(resume: str) -> Fault:
    """While the first is suspended, so that it cannot end before; then it goes on, and is asked to stop."""

    def act(chain: Chain, job: Job) -> None:
        chain.wait_for_start(job)
        job.wait_until(lambda: (job.last_step() or 0) > chain.resumed, "a step")
        ranks = job.ranks()
        for process in ranks.values():
            process.suspend()
        try:
            refused(chain, "CFG-RUNNING", "--output_dir", str(chain.run_dir), "--resume", resume)
        finally:
            for process in ranks.values():
                process.resume()
        shown = job.last_step() or 0
        job.wait_until(lambda: (job.last_step() or 0) > shown, "the first goes on")
        ranks[0].terminate()

    return Fault(f"second job in the folder, --resume {resume}", act, error="STOP-SIGNAL", most_lost=0)


def refused(chain: Chain, error: str, *flags: str) -> None:
    log = chain.logs / f"refused-{time.monotonic_ns()}.txt"
    job = Job.start("python", [str(TRAIN), *chain.bench.flags(chain.corpus), *flags], log)
    try:
        job.wait_for_end()
    finally:
        job.clear()
    assert f"error[{error}]" in job.text(), f"no {error} in\n{job.text()[-4000:]}"
    assert job.process.returncode == EXIT_CODES[error.split("-")[0]], job.process.returncode


def refusals(chain: Chain, short: bool) -> list[Result]:
    """Resumes that must not happen, of a run that has checkpoints."""
    here = ("--output_dir", str(chain.run_dir))
    newest = checkpoint.newest_first(chain.checkpoints)[0]
    empty = chain.folder / "empty"
    empty.mkdir()

    def edited() -> None:
        before, stat = chain.corpus.read_bytes(), chain.corpus.stat()
        chain.corpus.write_bytes(before.replace(b"a", b"e", 1))
        try:
            refused(chain, "DATA-CACHE", *here, "--resume", "auto")
        finally:
            chain.corpus.write_bytes(before)
            os.utime(chain.corpus, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    def unreadable() -> None:
        copied = shutil.copytree(newest, chain.folder / "copied" / newest.name)
        damage(copied / checkpoint.STATE, "one bit flipped")
        refused(chain, "CKPT-DAMAGED", "--output_dir", str(chain.folder / "other"), "--resume", str(copied))

    elsewhere = chain.folder / "other"
    cases: dict[str, Callable[[], None]] = {
        "changed flag": lambda: refused(chain, "CFG-RESUME", *here, "--resume", "auto", "--learning_rate", "5e-4"),
        "changed corpus": edited,
        "--resume auto, folder empty": lambda: refused(
            chain, "CKPT-NONE", "--output_dir", str(empty), "--resume", "auto"
        ),
        "--resume auto, no folder": lambda: refused(
            chain, "CKPT-NONE", "--output_dir", str(elsewhere), "--resume", "auto"
        ),
        "--resume PATH, damaged": unreadable,
        "used folder, --resume never": lambda: refused(chain, "CFG-USED-DIR", *here, "--resume", "never"),
    }
    results = []
    for name, case in list(cases.items())[: 1 if short else None]:
        result = Result(f"refused: {name}")
        try:
            case()
        except (AssertionError, TimeoutError, OSError) as error:
            result.problem = str(error)
        results.append(result)
    return results


def damages(folder: Path, scratch: Path) -> Iterable[Result]:
    """Every file kind, damaged in every way, found by the function that a start calls first: here, without a start."""
    for name in FILES:
        for way in WAYS:
            copied = shutil.copytree(folder, scratch / "checkpoints")
            newest, older, *_ = checkpoint.newest_first(copied)
            damage(newest / name, way)
            kept = sorted(copied.iterdir())
            lines: list[str] = []
            result = Result(f"found before it is read: {name.partition('-0')[0]}, damaged in 6 ways")
            taken = checkpoint.find("auto", copied, lines.append).folder
            try:
                checkpoint.find(str(newest), copied, lines.append)
                result.problem = f"{way}: --resume PATH takes it"
            except HomodistilError as error:
                told = name in error.what and str(older) in error.remedy and error.error_id == "CKPT-DAMAGED"
                result.problem = "" if told else f"{way}: {error}"
            if taken != older or name not in "".join(lines) or sorted(copied.iterdir()) != kept:
                result.problem = f"{way}: took {taken}, said {lines}"
            shutil.rmtree(copied)
            yield result
    for text in (None, "", "step-99", "step-36", "../x"):
        copied = shutil.copytree(folder, scratch / "checkpoints")
        (copied / "latest").unlink()
        if text is not None:
            (copied / "latest").write_text(text, encoding="utf-8")
        taken = checkpoint.find("auto", copied, print).folder
        right = taken == checkpoint.newest_first(copied)[0]
        yield Result("latest missing, empty, wrong or a path: newest taken", "" if right else f"{text!r}: took {taken}")
        shutil.rmtree(copied)


def mount(*arguments: object) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True)


def can_mount(scratch: Path) -> bool:
    scratch.mkdir()
    try:
        mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", scratch)
    except (OSError, subprocess.CalledProcessError):
        return False
    subprocess.run(["umount", str(scratch)], check=True)
    return True


def commit_points(times: int) -> list[Fault]:
    return [
        crash("cut: old engine gone", 1, 1),
        crash("cut: done, not yet saved", 0, 1),
        crash("staging folder made", 0, times),
        crash("own file written", 0, times),
        crash("own file written", 1, times),
        crash("manifest not yet written", 0, times),
        crash("manifest written, not yet on disk", 0, times),
        crash("not yet renamed", 0, times),
        crash("renamed, latest not yet moved", 0, 2 * times - 1),
        crash("latest written, not yet moved", 0, times),
        crash("older ones not yet removed", 0, times),
        crash("older one half removed", 0, 1),
    ]


def signals() -> list[Fault]:
    names = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    plain = [send(number, target) for number in names for target in ("rank 1", "launcher")]
    both = [dataclasses.replace(fault, launcher=launcher) for fault in plain for launcher in LAUNCHERS]
    return both + [dataclasses.replace(send(signal.SIGKILL, "launcher"), launcher=name) for name in LAUNCHERS]


def undisturbed(bench: Bench) -> Chain:
    """The run that all others are compared with; its span and its cuts say where to aim."""
    chain = Chain(bench, "undisturbed")
    job = chain.start()
    try:
        job.wait_until(lambda: (job.last_step() or 0) >= 1, "the first step")
        began = time.monotonic()
        job.wait_until(lambda: COMPLETE in job.text(), "the last step")
        bench.span = time.monotonic() - began
        job.wait_for_end()
        assert job.process.returncode == 0, job.text()
    finally:
        job.clear()
    CUT_STEPS[:] = [int(line.split()[3].rstrip(":")) for line in job.text().splitlines() if line.startswith("cut at")]
    bench.whole = Outcome.of(chain.run_dir)
    bench.results += damages(chain.checkpoints, chain.folder / "damaged")
    return chain


def queues(short: bool, tries: int, seed: int, may_mount: bool) -> dict[str, tuple[list[Fault], int]]:
    """Chains by name: their faults, and how many of them one run directory goes through."""
    rank = KINDS[1]
    if short:
        return {
            "short-a": (
                [
                    crash("cut: old engine gone", 1, 1),
                    Fault("kill -9 a rank during a save", partial(kill_a_rank, in_a_save)),
                    crash("not yet renamed", 0, 2),
                    send(signal.SIGTERM, "rank 1"),
                    damaged(rank, "one bit flipped"),
                ],
                9,
            ),
            "short-b": (
                [
                    write_limit(1),
                    vanished(),
                    suspend(1),
                    send(signal.SIGKILL, "launcher"),
                    Fault("kill -9 a rank, any instant", partial(kill_a_rank, at_random)),
                ],
                9,
            ),
        }
    disk = [full_disk(True), full_disk(False), full_disk(False), write_limit(1), vanished()]
    worn = [
        damaged(rank, "one bit flipped"),
        damaged(checkpoint.MANIFEST, "half"),
        damaged(checkpoint.STATE, "missing"),
    ]
    worn += [damaged(checkpoint.TENSORS, "one byte less"), latest_says("../x")]
    rest = [suspend(0), suspend(1), second_job("never"), second_job("auto")]
    rest += [Fault("kill -9 while it starts", kill_while_starting)] * 2
    rest += [Fault("kill -9 all ranks and the launcher", kill_all)] * 2
    instants = kills(tries, seed)
    return {
        "kills": (instants[: 2 * tries // 3], 12),
        "disk": (disk + ([read_only()] if may_mount else []), 9),
        "signals": (signals(), 10),
        "points": (commit_points(2), 12),
        "damage": (worn, 9),
        "rest": (rest, 6),
        "end": (
            [
                Fault("kill -9 a rank while the student is saved", partial(kill_a_rank, at_the_end)),
                Fault("SIGTERM while the student is saved", stop_at_the_end, error="STOP-SIGNAL", most_lost=0),
            ]
            * 2,
            4,
        ),
        "more-kills": (instants[2 * tries // 3 :], 12),
    }


def run_all(bench: Bench, whole: Chain, given: argparse.Namespace) -> None:
    """Two chains at a time; a queue that outlasts its chain gets another one."""
    may_mount = os.geteuid() == 0 and can_mount(bench.root / "mounted")

    def one(name: str, faults: list[Fault], most: int) -> None:
        left, turn = deque(faults), 0
        while left:
            turn += 1
            with ExitStack() as stack:
                folder = None
                if name == "disk" and may_mount:
                    folder = bench.root / "mounted"
                    mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", folder)
                    stack.callback(subprocess.run, ["umount", "-l", str(folder)], check=False)
                chain = Chain(bench, f"{name}-{turn}", folder)
                chain.go_through(left, most)
            good = sum(not result.problem for result in chain.results)
            print(f"{name}-{turn}: {good} of {len(chain.results)} survived, {len(left)} left", flush=True)
            write(bench)

    def refuse() -> None:
        bench.results += refusals(whole, given.short)

    wanted = queues(given.short, given.tries, given.seed, may_mount)
    if given.only:
        wanted = {name: wanted[name] for name in given.only}
    if not may_mount and not given.short:
        print("no mounts here (not root): the full and the read-only file system are left out")
        faults, most = wanted["disk"]
        wanted["disk"] = ([fault for fault in faults if not fault.name.startswith("disk full")], most)
    with ThreadPoolExecutor(given.jobs) as pool:
        tasks = [pool.submit(one, name, *queue) for name, queue in wanted.items()]
        for done in [*tasks, pool.submit(refuse)]:
            done.result()


def row(name: str, results: list[Result]) -> list[str]:
    def middle(values: list[Any]) -> str:
        found = [value for value in values if value is not None]
        return f"{statistics.median(found):.0f} / {max(found):.0f}" if found else "-"

    survived = sum(not result.problem for result in results)
    columns = ([getattr(result, name) for result in results] for name in ("lost", "to_end", "to_resume"))
    return [name, str(len(results)), str(survived), *map(middle, columns)]


def table(results: list[Result]) -> str:
    """Median / maximum of the steps lost, of the seconds to the end of all processes and from a start to its first
    step."""
    head = ["fault", "tries", "survived", "steps lost", "s to end", "s to resume"]
    names = dict.fromkeys(result.fault for result in results)
    rows = [head, ["---"] * len(head)]
    rows += [row(name, [result for result in results if result.fault == name]) for name in names]
    rows.append(row("all", results))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def write(bench: Bench) -> None:
    content = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "steps": STEPS,
        "save_interval": SAVE_INTERVAL,
        "cuts": CUT_STEPS,
        "seconds of the undisturbed loop": round(bench.span, 1),
        "results": [dataclasses.asdict(result) for result in bench.results],
    }
    (bench.root / "faults.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--output_dir", type=Path, required=True, help="must not exist yet")
    flags.add_argument("--tries", type=int, default=60, help="kills of a rank at random instants")
    flags.add_argument("--short", action="store_true", help="ten faults in two chains")
    flags.add_argument("--only", nargs="+", help="kills disk signals points damage rest end more-kills")
    flags.add_argument("--jobs", type=int, default=2, help="chains at a time, two processes each")
    flags.add_argument("--seed", type=int, default=0)
    given = flags.parse_args()
    # A shell ignores it for what it starts in the background, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    root = given.output_dir.resolve()
    root.mkdir(parents=True)
    machine = {"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": 2}, "gradient_clipping": 1.0}
    (root / "zero2.json").write_text(json.dumps(machine), encoding="utf-8")
    bench = Bench(root, write_teacher(root / "teacher"), given.seed)
    whole = undisturbed(bench)
    print(f"undisturbed: {bench.span:.1f} s in the loop, cuts at {CUT_STEPS}", flush=True)
    run_all(bench, whole, given)
    for result in bench.results:
        too_many = result.lost is not None and result.lost > result.most_lost
        result.problem = result.problem or (f"lost {result.lost} steps" if too_many else "")
    write(bench)
    print(table(bench.results))
    for result in bench.results:
        if result.problem:
            print(f"\n{result.fault}: {result.problem}")
    return int(any(result.problem for result in bench.results))


if __name__ == "__main__":
    sys.exit(main())
