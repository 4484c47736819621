from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is all of PATH; `programs_on_path.tool` puts programs into it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    return folder


@pytest.fixture
def op_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "ops"
    (folder / "fused_adam").mkdir(parents=True)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(folder))
    return folder
