"""What Slurm does to a job, done to real ones: each ends with the student of the undisturbed run, or with a reason.

Jobs that leave the nodes alone are disturbed side by side, because most of their time is spent waiting.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.slurm.cluster import OVER, Cluster
from tests.slurm.conftest import PROJECT, Bench, Job, largest_difference, same_bits

CLOSE = 1e-4  # what another number of ranks may change
LAUNCHERS = ("torchrun", "deepspeed", "mpirun")


def near_its_limit(bench: Bench) -> Job:
    """Slurm itself signals, when it looks, which is every half minute; until then the ranks are held.

    Mostly that is a minute or two after the start; the next start has an hour.
    """
    job = bench.submit("limit", "--time=10", "--signal=B:USR1@530")
    job.wait_for_saves()
    with job.held():
        job.wait_to_be_told()
    bench.cluster.wait_until(lambda: "requeue: time limit" in job.text(), "the requeue", shown=job.text)
    bench.cluster.do("scontrol", "update", f"JobId={job.number}", "TimeLimit=60")
    job.succeeded()
    return job


def told_by(launcher: str) -> Callable[[Bench], Job]:
    def disturb(bench: Bench) -> Job:
        job = bench.submit(launcher, LAUNCHER=launcher)
        job.wait_for_saves()
        with job.held():
            job.tell("scancel", "--batch", "--signal=USR1")  # what --signal=B:USR1@... does
            job.wait_to_be_told()
        job.succeeded()
        return job

    return disturb


def requeued(bench: Bench) -> Job:
    job = bench.submit("requeued")
    for start in (1, 2, 3):
        job.wait_for_saves(start=start)
        job.tell("scontrol", "requeue")
    job.succeeded()
    return job


def cancelled(bench: Bench) -> Job:
    job = bench.submit("cancelled")
    job.wait_for_saves()
    job.tell("scancel")
    assert job.end()["state"] == "CANCELLED"
    assert job.reason()["id"] == "STOP-SIGNAL"
    return job


def out_of_room(bench: Bench) -> Job:
    job = bench.submit("disk", run_dir=bench.small_disk / "run")
    job.wait_for_saves()
    with (bench.small_disk / "ballast").open("wb", buffering=0) as ballast:

        def full() -> bool:
            with contextlib.suppress(OSError):
                while True:
                    ballast.write(b"0" * 4096)
            return bench.cluster.state(job.number) in OVER

        # Again and again: a save that drops an old checkpoint makes room.
        bench.cluster.wait_until(full, "the save that fails", shown=job.text)
    assert job.end() == {"state": "FAILED", "code": "5", "restarts": "0"}, job.text()
    return job


Disturbed = dict[str, "Future[Job]"]


@pytest.fixture(scope="module")
def disturbed(bench: Bench, undisturbed: Path) -> Iterator[Disturbed]:
    events = {"limit": near_its_limit, "requeued": requeued, "cancelled": cancelled, "disk": out_of_room}
    events |= {launcher: told_by(launcher) for launcher in LAUNCHERS}
    with ThreadPoolExecutor(4) as pool:
        jobs = {name: pool.submit(event, bench) for name, event in events.items()}
        yield jobs


def test_the_time_limit(disturbed: Disturbed, undisturbed: Path) -> None:
    job = disturbed["limit"].result()
    assert "requeue: time limit" in job.text()
    assert same_bits(job.run_dir, undisturbed)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_launcher_saves_in_time_and_goes_on(disturbed: Disturbed, undisturbed: Path, launcher: str) -> None:
    job = disturbed[launcher].result()
    assert "requeue: time limit" in job.text()
    assert job.starts() == 2
    assert same_bits(job.run_dir, undisturbed)


def test_three_requeues_in_a_row(disturbed: Disturbed, undisturbed: Path) -> None:
    job = disturbed["requeued"].result()
    assert job.starts() == 4
    assert "requeue: " not in job.text(), "Slurm requeued; the job must not do so as well"
    assert same_bits(job.run_dir, undisturbed)


def test_cancelled_means_cancelled_and_another_job_goes_on(
    bench: Bench, disturbed: Disturbed, undisturbed: Path
) -> None:
    job = disturbed["cancelled"].result()
    assert job.starts() == 1
    after = bench.submit("after", script="distill_single_node.sh", run_dir=job.run_dir)  # on half the nodes
    after.succeeded()
    assert largest_difference(job.run_dir, undisturbed) < CLOSE


def test_a_full_disk_ends_the_job_and_room_lets_it_go_on(bench: Bench, disturbed: Disturbed, undisturbed: Path) -> None:
    job = disturbed["disk"].result()
    assert "CKPT-SAVE" in job.text()
    (bench.small_disk / "ballast").unlink()
    after = bench.submit("disk-after", run_dir=job.run_dir)
    after.succeeded()
    assert same_bits(job.run_dir, undisturbed)


def test_preemption(bench: Bench, slurm: Cluster, undisturbed: Path) -> None:
    job = bench.submit("preempted")
    job.wait_for_saves()
    urgent = slurm.do(
        *("sbatch", "--parsable", "--partition=urgent", f"--nodes={slurm.nodes}", "--exclusive", "--output=/dev/null"),
        *("--wrap", "sleep 2"),
    ).strip()
    slurm.wait_for_end(urgent)
    assert job.succeeded()["restarts"] == "1"
    assert "requeue: preempted" in job.text()
    assert same_bits(job.run_dir, undisturbed)


def node_fails(bench: Bench) -> Job:
    job = bench.submit("node", "--exclude=node3")
    job.wait_for_saves()
    bench.cluster.switch_off("node2")
    try:
        job.succeeded()
    finally:
        bench.cluster.switch_on("node2")
    return job


def cut_off(bench: Bench) -> Job:
    """On one node, so that what is cut off can train on by itself; it sleeps until the job has started elsewhere."""
    slurm = bench.cluster
    job = bench.submit("cut", "--exclude=node1,node2", script="distill_single_node.sh")
    job.wait_for_saves()
    slurm.on("node3", "pkill", "-STOP", "-f", "homodistil_ds/train.py")
    slurm.cut("node3")
    try:
        job.wait_for_saves(start=2)
        saved = job.checkpoints()[0]
        slurm.on("node3", "pkill", "-CONT", "-f", "homodistil_ds/train.py")
        slurm.wait_until(lambda: "DIST-SUPERSEDED" in job.text(), "what was cut off to notice")
        job.succeeded()
        assert job.checkpoints()[0] >= saved
    finally:
        slurm.heal("node3")
    return job


def twice(bench: Bench) -> Job:
    elsewhere = "--exclude=node[1-3]"
    first = bench.submit("first", elsewhere, script="distill_single_node.sh")
    first.wait_for_saves()
    with first.held():
        second = bench.submit("second", elsewhere, script="distill_single_node.sh", run_dir=first.run_dir)
        # The ranks of both match; those of the second start later and are not held.
        assert second.end() == {"state": "FAILED", "code": "2", "restarts": "0"}
    assert "CFG-RUNNING" in second.text()
    first.succeeded()
    return first


@pytest.fixture(scope="module")
def broken(bench: Bench, undisturbed: Path) -> Iterator[Disturbed]:
    events = {"twice": twice, "cut": cut_off, "node": node_fails}
    with ThreadPoolExecutor(len(events)) as pool:
        yield {name: pool.submit(event, bench) for name, event in events.items()}


def test_a_node_fails(broken: Disturbed, undisturbed: Path) -> None:
    job = broken["node"].result()
    assert [names == "node[1-2]" for names in job.nodes()] == [True, False]
    assert same_bits(job.run_dir, undisturbed)


def test_the_network_fails_and_the_ranks_that_were_cut_off_write_no_more(broken: Disturbed, undisturbed: Path) -> None:
    job = broken["cut"].result()
    assert [names == "node3" for names in job.nodes()] == [True, False]
    assert largest_difference(job.run_dir, undisturbed) < CLOSE


def test_a_bad_node_is_named_before_any_rank_starts(bench: Bench, slurm: Cluster) -> None:
    hidden = str(PROJECT / "homodistil_ds")
    assert slurm.on("node2", "mount", "-t", "tmpfs", "tmpfs", hidden).returncode == 0
    try:
        job = bench.submit("bad-node")
        assert job.end() == {"state": "FAILED", "code": "3", "restarts": "0"}
    finally:
        slurm.on("node2", "umount", hidden)
    assert "node node2: " in job.text()
    assert not job.run_dir.exists()


def test_a_mistake_is_not_requeued(bench: Bench) -> None:
    job = bench.submit("mistake", flags=[*bench.flags, "--student.hidden_size", "15"])
    assert job.end() == {"state": "FAILED", "code": "2", "restarts": "0"}
    assert "error[CFG-" in job.text()


def test_two_jobs_do_not_share_a_run(broken: Disturbed) -> None:
    first = broken["twice"].result()
    assert first.starts() == 1


def test_a_complete_run_is_left_alone(bench: Bench, undisturbed: Path) -> None:
    before = (undisturbed / "report.json").stat().st_mtime_ns
    again = bench.submit("again", run_dir=undisturbed)
    assert again.end()["state"] == "COMPLETED"
    assert "DONE already" in again.text()
    assert (undisturbed / "report.json").stat().st_mtime_ns == before
