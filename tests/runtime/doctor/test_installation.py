"""Packages, compilers, ops and GPUs with a fault put in their way."""

from __future__ import annotations

import fcntl
import os
import sys
import types
from pathlib import Path

import pytest
from programs_on_path import tool

from homodistil_ds.runtime import toolchain
from homodistil_ds.runtime.doctor import installation
from homodistil_ds.runtime.doctor.findings import INSTALL, Asked, Finding, examine


def wanted(monkeypatch: pytest.MonkeyPatch, python: str = ">=3.11", **packages: str) -> None:
    monkeypatch.setattr(installation, "requirements", lambda: (python, packages))


def test_floors_are_those_of_pyproject(monkeypatch: pytest.MonkeyPatch) -> None:
    python, packages = installation.requirements()
    assert ">=3.11" in python
    assert {"torch", "deepspeed", "transformers", "safetensors"} <= set(packages)
    assert "mpi4py" not in packages
    assert packages["torch"].startswith(">=")


def test_floors_come_from_the_installation_where_there_is_no_source_tree(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    facts = types.SimpleNamespace(metadata={"Requires-Python": ">=3.11"}, requires=["torch>=9", 'x>=1; extra == "mpi"'])
    monkeypatch.setattr(installation, "PROJECT", tmp_path / "nowhere.toml")
    monkeypatch.setattr(installation.importlib.metadata, "distribution", lambda name: facts)
    assert installation.requirements() == (">=3.11", {"torch": ">=9"})


def test_versions_below_their_floor_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted(monkeypatch, python=">=3.99", packaging=">=9999", torch=">=2", nowhere=">=1")
    assert installation.python(Asked()).state == "fail"
    assert installation.package(Asked(), "packaging").state == "fail"
    assert installation.package(Asked(), "nowhere") == Finding("fail", "not installed, wanted >=1", INSTALL)
    assert installation.package(Asked(), "torch").state == "pass", "a local version such as 2.13.0+cpu counts"


def test_a_package_that_does_not_load_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted(monkeypatch, torch=">=2")
    monkeypatch.setitem(sys.modules, "torch", None)
    found = examine(
        Asked(), [("torch", lambda asked: installation.imported(asked, "torch")), ("GPUs", installation.gpus)]
    )
    assert [finding.state for finding in found.values()] == ["fail", "fail"]


def test_a_driver_without_a_gpu_for_torch_fails(tools: Path) -> None:
    assert installation.gpus(Asked()).state == "pass"
    tool(tools, "nvidia-smi", "echo 550.54")
    found = installation.gpus(Asked())
    assert found.state == "fail"
    assert "550.54" in found.found


def test_a_missing_or_broken_compiler_is_a_warning(tools: Path) -> None:
    assert "no C++ compiler" in installation.compilers(Asked()).found
    tool(tools, "c++", "echo c++ 12")
    assert "ninja" in installation.compilers(Asked()).found
    tool(tools, "ninja", "true")
    assert installation.compilers(Asked()) == Finding("pass", "c++ 12, ninja")
    tool(tools, "c++", "exit 1")
    assert installation.compilers(Asked()).state == "warn"


def test_ops_are_built_or_buildable_or_neither(tools: Path, op_folder: Path) -> None:
    (op_folder / "fused_adam" / "fused_adam.so").touch()
    found = installation.ops(Asked())
    assert found.state == "warn"
    assert "fused_adam built, cpu_adam cannot be built" in found.found


def test_a_stale_lock_is_named_and_removed_only_when_asked(op_folder: Path) -> None:
    lock = op_folder / "fused_adam" / "lock"
    assert installation.locks(Asked()).state == "pass"
    lock.touch()
    found = installation.locks(Asked())
    assert (found.state, str(lock) in found.found, "--fix" in found.remedy) == ("fail", True, True)
    assert lock.exists()
    assert installation.locks(Asked(fix=True)).state == "pass"
    assert not lock.exists()


def test_a_lock_that_somebody_holds_stays(op_folder: Path) -> None:
    lock = op_folder / "fused_adam" / "lock"
    with lock.open("w"):
        found = installation.locks(Asked(fix=True))
        assert (found.state, f"process {os.getpid()}" in found.found) == ("warn", True)
    with (op_folder / toolchain.OWN_LOCK).open("w") as own:
        fcntl.flock(own, fcntl.LOCK_EX)
        assert installation.locks(Asked(fix=True)).state == "warn"
    assert lock.exists()


def test_the_package_index_s_apex_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert installation.apex(Asked()).state == "pass"
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").touch()
    (tmp_path / "apex-0.9.10.dist-info").mkdir()
    (tmp_path / "apex-0.9.10.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: apex\nVersion: 0.9.10\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = installation.apex(Asked())
    sys.modules.pop("apex", None)
    assert (found.state, "0.9.10" in found.found, "pip uninstall apex" in found.remedy) == ("warn", True, True)
