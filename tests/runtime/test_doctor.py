"""Each check of the machine with a fault put in its way: the state of its line, and that no check ends the table."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from homodistil_ds.errors import EXIT_CODES
from homodistil_ds.runtime import doctor, toolchain
from homodistil_ds.runtime.doctor import Asked, Finding, examine

TOOL = Path(__file__).resolve().parents[2] / "tools" / "doctor.py"


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is all of PATH; `tool` puts programs into it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    return folder


def tool(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


@pytest.fixture
def op_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "ops"
    (folder / "fused_adam").mkdir(parents=True)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(folder))
    return folder


def wanted(monkeypatch: pytest.MonkeyPatch, python: str = ">=3.11", **packages: str) -> None:
    monkeypatch.setattr(doctor, "requirements", lambda: (python, packages))


def test_a_check_that_raises_is_a_failed_line_and_the_others_go_on() -> None:
    def broken(asked: Asked) -> Finding:
        raise RuntimeError("driver/library\nversion mismatch")

    def missing(asked: Asked) -> Finding:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    found = examine(Asked(), [("a", broken), ("b", missing), ("c", lambda asked: doctor.passed("well"))])
    assert found["a"] == Finding("fail", "RuntimeError: driver/library version mismatch", "Mend what this names.")
    assert found["b"] == Finding("fail", "no module torch", doctor.INSTALL)
    assert found["c"].state == "pass"


def test_floors_are_those_of_pyproject(monkeypatch: pytest.MonkeyPatch) -> None:
    python, packages = doctor.requirements()
    assert ">=3.11" in python
    assert {"torch", "deepspeed", "transformers", "safetensors"} <= set(packages)
    assert "mpi4py" not in packages
    assert packages["torch"].startswith(">=")


def test_floors_come_from_the_installation_where_there_is_no_source_tree(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    facts = types.SimpleNamespace(metadata={"Requires-Python": ">=3.11"}, requires=["torch>=9", 'x>=1; extra == "mpi"'])
    monkeypatch.setattr(doctor, "PROJECT", tmp_path / "nowhere.toml")
    monkeypatch.setattr(doctor.importlib.metadata, "distribution", lambda name: facts)
    assert doctor.requirements() == (">=3.11", {"torch": ">=9"})


def test_versions_below_their_floor_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted(monkeypatch, python=">=3.99", packaging=">=9999", torch=">=2", nowhere=">=1")
    assert doctor.python(Asked()).state == "fail"
    assert doctor.package(Asked(), "packaging").state == "fail"
    assert doctor.package(Asked(), "nowhere") == Finding("fail", "not installed, wanted >=1", doctor.INSTALL)
    assert doctor.package(Asked(), "torch").state == "pass", "a local version such as 2.13.0+cpu counts"


def test_a_package_that_does_not_load_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted(monkeypatch, torch=">=2")
    monkeypatch.setitem(sys.modules, "torch", None)
    found = examine(Asked(), [("torch", lambda asked: doctor.imported(asked, "torch")), ("GPUs", doctor.gpus)])
    assert [finding.state for finding in found.values()] == ["fail", "fail"]


def test_a_driver_without_a_gpu_for_torch_fails(tools: Path) -> None:
    assert doctor.gpus(Asked()).state == "pass"
    tool(tools, "nvidia-smi", "echo 550.54")
    found = doctor.gpus(Asked())
    assert found.state == "fail"
    assert "550.54" in found.found


def test_a_missing_or_broken_compiler_is_a_warning(tools: Path) -> None:
    assert "no C++ compiler" in doctor.compilers(Asked()).found
    tool(tools, "c++", "echo c++ 12")
    assert "ninja" in doctor.compilers(Asked()).found
    tool(tools, "ninja", "true")
    assert doctor.compilers(Asked()) == Finding("pass", "c++ 12, ninja")
    tool(tools, "c++", "exit 1")
    assert doctor.compilers(Asked()).state == "warn"


def test_ops_are_built_or_buildable_or_neither(tools: Path, op_folder: Path) -> None:
    (op_folder / "fused_adam" / "fused_adam.so").touch()
    found = doctor.ops(Asked())
    assert found.state == "warn"
    assert "fused_adam built, cpu_adam cannot be built" in found.found


def test_a_stale_lock_is_named_and_removed_only_when_asked(op_folder: Path) -> None:
    lock = op_folder / "fused_adam" / "lock"
    assert doctor.locks(Asked()).state == "pass"
    lock.touch()
    found = doctor.locks(Asked())
    assert (found.state, str(lock) in found.found, "--fix" in found.remedy) == ("fail", True, True)
    assert lock.exists()
    assert doctor.locks(Asked(fix=True)).state == "pass"
    assert not lock.exists()


def test_a_lock_that_somebody_holds_stays(op_folder: Path) -> None:
    lock = op_folder / "fused_adam" / "lock"
    with lock.open("w"):
        found = doctor.locks(Asked(fix=True))
        assert (found.state, f"process {os.getpid()}" in found.found) == ("warn", True)
    with (op_folder / toolchain.OWN_LOCK).open("w") as own:
        fcntl.flock(own, fcntl.LOCK_EX)
        assert doctor.locks(Asked(fix=True)).state == "warn"
    assert lock.exists()


def test_the_package_index_s_apex_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.apex(Asked()).state == "pass"
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").touch()
    (tmp_path / "apex-0.9.10.dist-info").mkdir()
    (tmp_path / "apex-0.9.10.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: apex\nVersion: 0.9.10\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = doctor.apex(Asked())
    sys.modules.pop("apex", None)
    assert (found.state, "0.9.10" in found.found, "pip uninstall apex" in found.remedy) == ("warn", True, True)


def test_ranks_that_do_not_see_each_other_fail(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert doctor.mpi(Asked()).state == "pass"
    tool(tools, "mpirun", "echo size 1; echo size 1")
    assert doctor.mpi(Asked()).state == "pass", "without mpi4py nothing is asked of it"
    monkeypatch.setitem(sys.modules, "mpi4py", types.ModuleType("mpi4py"))
    sys.modules["mpi4py"].__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    assert doctor.mpi(Asked()).state == "fail"
    tool(tools, "mpirun", "echo size 2; echo size 2")
    assert doctor.mpi(Asked()).state == "pass"
    tool(tools, "mpirun", "exit 1")
    assert doctor.mpi(Asked()).state == "warn"
    (tools / "mpirun").unlink()
    assert doctor.mpi(Asked()).state == "warn"


def test_slurm_on_a_login_node(tools: Path) -> None:
    assert doctor.slurm(Asked()).state == "pass"
    tool(tools, "sinfo", "exit 1")
    assert doctor.slurm(Asked()).found == "no sbatch"
    tool(tools, "sbatch", "true")
    assert doctor.slurm(Asked()).found == "sinfo gets no answer"
    tool(tools, "sinfo", '[ "$1" = --version ] && echo slurm 24.05 || echo "gpu* down 4"')
    assert "no partition is up" in doctor.slurm(Asked()).found
    tool(tools, "sinfo", '[ "$1" = --version ] && echo slurm 24.05 || { echo "gpu* up 4"; echo "cpu down 1"; }')
    assert doctor.slurm(Asked()) == Finding("pass", "slurm 24.05, partitions up: gpu*")


def test_slurm_inside_a_job(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert "no srun" in doctor.slurm(Asked()).found
    tool(tools, "srun", "true")
    assert "no node list" in doctor.slurm(Asked()).found
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    assert doctor.slurm(Asked()) == Finding("pass", "job 7: JOB_NODELIST n[1-2], GPUS_ON_NODE 4")


@pytest.mark.parametrize(("free", "state"), [(10, "fail"), (2 << 30, "warn"), (20 << 30, "pass")])
def test_free_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, state: str) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=free, total=free))
    found = doctor.disk(Asked(output_dir=tmp_path / "not" / "yet"))
    assert (found.state, str(tmp_path) in found.found) == (state, True)
    assert not (tmp_path / "not").exists()


def test_a_folder_that_cannot_be_written_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert doctor.disk(Asked(output_dir=tmp_path)).state == "fail"


def test_little_shared_memory_and_few_files_are_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: types.SimpleNamespace(total=64 << 20))
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda which: (256, 4096))
    assert doctor.shared_memory(Asked()).state == "warn"
    assert "ulimit -n" in doctor.open_files(Asked()).remedy


def test_a_host_without_an_address_and_a_port_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    monkeypatch.setattr(doctor.socket, "gethostname", lambda: "no-such-host.invalid")
    assert doctor.network(Asked()).state == "warn"
    monkeypatch.setattr(doctor.socket, "gethostname", lambda: "localhost")
    assert doctor.network(Asked()).state == "pass"
    with doctor.socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        assert doctor.network(Asked()).state == "fail"
    monkeypatch.setenv("SLURM_NNODES", "2")
    assert doctor.network(Asked()).state == "warn", "loopback is no address for another machine"


def test_offline_without_a_cache_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert doctor.hub(Asked()).state == "warn"
    (tmp_path / "hub" / "models--google-bert--bert-base-uncased").mkdir(parents=True)
    assert doctor.hub(Asked()).state == "pass"


@pytest.mark.parametrize("shift", [-3600.0, 10 * 365 * 86400.0])
def test_a_clock_that_is_wrong_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shift: float) -> None:
    assert doctor.clock(Asked(output_dir=tmp_path)).state == "pass"
    true = time.time
    monkeypatch.setattr(doctor.time, "time", lambda: true() + shift)
    assert doctor.clock(Asked(output_dir=tmp_path)).state == "warn"
    assert list(tmp_path.iterdir()) == []


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
