"""What a cache is known by, and the room it takes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from homodistil_ds.distillation.state_files import StateFiles
from homodistil_ds.errors import HomodistilError
from homodistil_ds.methods import caching
from homodistil_ds.methods.caching import DIGESTS, teacher_digest


def test_a_teacher_is_known_by_its_bytes_which_are_read_once(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(tiny_teacher, copied)
    digest = teacher_digest(str(tiny_teacher), tmp_path)
    assert teacher_digest(str(copied), tmp_path) == digest, "wherever it lies"
    with monkeypatch.context() as patched:
        patched.setattr(caching, "sha256", lambda path: pytest.fail(f"{path} is read again"))
        assert teacher_digest(str(copied), tmp_path) == digest
    assert len(json.loads((tmp_path / DIGESTS).read_text("utf-8"))) == 2
    (tmp_path / DIGESTS).write_text("damaged", encoding="utf-8")
    assert teacher_digest(str(copied), tmp_path) == digest
    os.utime(copied / "model.safetensors", (0, 0))
    assert teacher_digest(str(copied), tmp_path) == digest
    (copied / "config.json").write_text((copied / "config.json").read_text("utf-8") + " ", encoding="utf-8")
    assert teacher_digest(str(copied), tmp_path) != digest


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    files = StateFiles(tmp_path, "key", (19, 768), torch.bfloat16)
    caching._check_room(files, 1)
    with pytest.raises(HomodistilError, match="29,184,000,000,000") as raised:
        caching._check_room(files, 10**15)
    assert raised.value.error_id == "ENV-DISK"
