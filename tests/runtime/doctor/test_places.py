"""Disks, memory, network and clock with a fault put in their way."""

from __future__ import annotations

import time
import types
from pathlib import Path

import pytest

from homodistil_ds.runtime.doctor import places
from homodistil_ds.runtime.doctor.findings import Asked


@pytest.mark.parametrize(("free", "state"), [(10, "fail"), (2 << 30, "warn"), (20 << 30, "pass")])
def test_free_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, state: str) -> None:
    monkeypatch.setattr(places.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=free, total=free))
    found = places.disk(Asked(output_dir=tmp_path / "not" / "yet"))
    assert (found.state, str(tmp_path) in found.found) == (state, True)
    assert not (tmp_path / "not").exists()


def test_a_folder_that_cannot_be_written_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(places.os, "access", lambda path, mode: False)
    assert places.disk(Asked(output_dir=tmp_path)).state == "fail"


def test_little_shared_memory_and_few_files_are_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places.shutil, "disk_usage", lambda path: types.SimpleNamespace(total=64 << 20))
    monkeypatch.setattr(places.resource, "getrlimit", lambda which: (256, 4096))
    assert places.shared_memory(Asked()).state == "warn"
    assert "ulimit -n" in places.open_files(Asked()).remedy


def test_a_host_without_an_address_and_a_port_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    monkeypatch.setattr(places.socket, "gethostname", lambda: "no-such-host.invalid")
    assert places.network(Asked()).state == "warn"
    monkeypatch.setattr(places.socket, "gethostname", lambda: "localhost")
    assert places.network(Asked()).state == "pass"
    with places.socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        assert places.network(Asked()).state == "fail"
    monkeypatch.setenv("SLURM_NNODES", "2")
    assert places.network(Asked()).state == "warn", "loopback is no address for another machine"


def test_offline_without_a_cache_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert places.hub(Asked()).state == "warn"
    (tmp_path / "hub" / "models--google-bert--bert-base-uncased").mkdir(parents=True)
    assert places.hub(Asked()).state == "pass"


@pytest.mark.parametrize("shift", [-3600.0, 10 * 365 * 86400.0])
def test_a_clock_that_is_wrong_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shift: float) -> None:
    assert places.clock(Asked(output_dir=tmp_path)).state == "pass"
    true = time.time
    monkeypatch.setattr(places.time, "time", lambda: true() + shift)
    assert places.clock(Asked(output_dir=tmp_path)).state == "warn"
    assert list(tmp_path.iterdir()) == []
