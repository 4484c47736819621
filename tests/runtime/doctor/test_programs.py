"""MPI and Slurm, as programs of a PATH of the test say them."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
from programs_on_path import tool

from homodistil_ds.runtime.doctor import programs
from homodistil_ds.runtime.doctor.findings import Asked, Finding


def test_ranks_that_do_not_see_each_other_fail(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert programs.mpi(Asked()).state == "pass"
    tool(tools, "mpirun", "echo size 1; echo size 1")
    assert programs.mpi(Asked()).state == "pass", "without mpi4py nothing is asked of it"
    monkeypatch.setitem(sys.modules, "mpi4py", types.ModuleType("mpi4py"))
    sys.modules["mpi4py"].__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    assert programs.mpi(Asked()).state == "fail"
    tool(tools, "mpirun", "echo size 2; echo size 2")
    assert programs.mpi(Asked()).state == "pass"
    tool(tools, "mpirun", "exit 1")
    assert programs.mpi(Asked()).state == "warn"
    (tools / "mpirun").unlink()
    assert programs.mpi(Asked()).state == "warn"


def test_slurm_on_a_login_node(tools: Path) -> None:
    assert programs.slurm(Asked()).state == "pass"
    tool(tools, "sinfo", "exit 1")
    assert programs.slurm(Asked()).found == "no sbatch"
    tool(tools, "sbatch", "true")
    assert programs.slurm(Asked()).found == "sinfo gets no answer"
    tool(tools, "sinfo", '[ "$1" = --version ] && echo slurm 24.05 || echo "gpu* down 4"')
    assert "no partition is up" in programs.slurm(Asked()).found
    tool(tools, "sinfo", '[ "$1" = --version ] && echo slurm 24.05 || { echo "gpu* up 4"; echo "cpu down 1"; }')
    assert programs.slurm(Asked()) == Finding("pass", "slurm 24.05, partitions up: gpu*")


def test_slurm_inside_a_job(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert "no srun" in programs.slurm(Asked()).found
    tool(tools, "srun", "true")
    assert "no node list" in programs.slurm(Asked()).found
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    assert programs.slurm(Asked()) == Finding("pass", "job 7: JOB_NODELIST n[1-2], GPUS_ON_NODE 4")
