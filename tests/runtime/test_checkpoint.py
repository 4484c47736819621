"""Checkpoints of one process without a process group: what is written, kept, believed and refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from homodistil_ds.errors import HomodistilError
from homodistil_ds.runtime import checkpoint, checkpoint_writing
from homodistil_ds.runtime.carry import Piece

RANK_FILE = "rank-00000-of-00001.safetensors"
FILES = (RANK_FILE, checkpoint.TENSORS, checkpoint.STATE, checkpoint.MANIFEST)


def pieces(step: int) -> list[Piece]:
    """A parameter `a` [4, 5] in two runs with a hole between them, and a whole `b` [3]."""
    values = step + torch.arange(60.0).view(3, 20)
    return [
        Piece(name="a", offset=0, values=values[:, :7]),
        Piece(name="a", offset=7, values=values[:, 7:20]),
        Piece(name="b", offset=0, values=values[:, :3] * 2),
    ]


def save(folder: Path, step: int, keep: int = 3) -> Path:
    tensors = {"kept/hidden": torch.tensor([True, False])}
    return checkpoint_writing.save(folder, {"step": step, "note": "ä"}, tensors, pieces(step), keep)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of the steps 2, 4 and 6."""
    for step in (2, 4, 6):
        save(tmp_path / "checkpoints", step)
    return tmp_path / "checkpoints"


def taken(folder: Path, asked: str = "auto") -> tuple[checkpoint.Checkpoint, str]:
    lines: list[str] = []
    found = checkpoint.find(asked, folder, lines.append)
    return found, "\n".join(lines)


def test_what_was_saved_comes_back(folder: Path) -> None:
    found, said = taken(folder)
    assert (found.step, found.state["note"], said) == (6, "ä", "")
    assert found.tensors()["kept/hidden"].tolist() == [True, False]
    across, other = found.read([("a", 5, 10), ("b", 0, 3)])
    whole = 6 + torch.arange(60.0).view(3, 20)
    assert torch.equal(across, whole[:, 5:15])
    assert torch.equal(other, whole[:, :3] * 2)


def test_entries_that_are_not_there_are_an_error(folder: Path) -> None:
    with pytest.raises(HomodistilError, match=r"20 of 21 wanted entries of a") as raised:
        taken(folder)[0].read([("a", 0, 21)])
    assert raised.value.error_id == "CKPT-SHAPE"


def test_a_file_that_the_manifest_does_not_list_is_not_read(folder: Path) -> None:
    (folder / "step-6" / "rank-00001-of-00002.safetensors").write_bytes(b"\x80\x04 no checkpoint")
    assert taken(folder)[0].read([("b", 0, 3)])[0].shape == (3, 3)


def test_the_newest_stay_and_nothing_unfinished(folder: Path) -> None:
    (folder / ".saving-7-abcd").mkdir()
    (folder / ".saving-7-abcd" / RANK_FILE).write_text("half")
    (folder / "aside-step-9").mkdir()
    save(folder, 8)
    assert {path.name for path in folder.iterdir()} == {"step-4", "step-6", "step-8", "aside-step-9", "latest"}
    assert (folder / "latest").read_text() == "step-8"
    save(folder, 10, keep=1)
    assert [path.name for path in checkpoint.newest_first(folder)] == ["step-10"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("way", ["empty", "4 bytes", "half", "one byte less", "one bit", "missing"])
def test_damage_is_found_and_the_checkpoint_before_taken(folder: Path, name: str, way: str) -> None:
    path = folder / "step-6" / name
    content = path.read_bytes()
    sizes = {"empty": 0, "4 bytes": 4, "half": len(content) // 2, "one byte less": len(content) - 1}
    if way == "missing":
        path.unlink()
    elif way == "one bit":
        path.write_bytes(content[:9] + bytes([content[9] ^ 1]) + content[10:])
    else:
        path.write_bytes(content[: sizes[way]])
    found, said = taken(folder)
    assert found.step == 4
    assert f"{folder / 'step-6'}: {name}" in said
    with pytest.raises(HomodistilError) as raised:
        taken(folder, str(folder / "step-6"))
    assert raised.value.error_id == "CKPT-DAMAGED"
    assert name in raised.value.what
    assert str(folder / "step-4") in raised.value.remedy
    assert len(checkpoint.newest_first(folder)) == 3, "nothing is deleted"


def test_all_damaged_is_an_error_that_names_each(folder: Path) -> None:
    for step in (2, 4, 6):
        (folder / f"step-{step}" / RANK_FILE).unlink()
    with pytest.raises(HomodistilError, match=r"step-6: .*step-4: .*step-2: ") as raised:
        taken(folder)
    assert raised.value.error_id == "CKPT-NONE"


@pytest.mark.parametrize("text", [None, "", "step-2", "step-99", "../elsewhere", "\0"])
def test_latest_is_not_believed(folder: Path, text: str | None) -> None:
    (folder / "latest").unlink()
    if text is not None:
        (folder / "latest").write_text(text)
    assert taken(folder)[0].step == 6


def test_a_run_and_one_of_its_checkpoints_can_be_named(folder: Path, tmp_path: Path) -> None:
    assert taken(tmp_path / "other", str(tmp_path))[0].step == 6
    assert taken(tmp_path / "other", str(folder / "step-2"))[0].step == 2


@pytest.mark.parametrize("asked", ["auto", "PATH"])
def test_nothing_to_go_on_from_is_an_error(tmp_path: Path, asked: str) -> None:
    asked = str(tmp_path / "nowhere") if asked == "PATH" else asked
    with pytest.raises(HomodistilError) as raised:
        taken(tmp_path / "checkpoints", asked)
    assert raised.value.exit_code == 5
    assert not (tmp_path / "checkpoints").exists()


def test_a_checkpoint_that_is_not_there_is_not_called_damaged(folder: Path) -> None:
    with pytest.raises(HomodistilError, match="there is no such checkpoint") as raised:
        taken(folder, str(folder / "step-5"))
    assert raised.value.remedy.endswith("step-6, step-4, step-2.")


def test_a_manifest_cannot_point_out_of_its_folder(folder: Path) -> None:
    files = {"../step-4/state.json": {"bytes": 1, "sha256": ""}}
    manifest = {"format": checkpoint.FORMAT, "files": files, "sha256": checkpoint.digest_of(files)}
    (folder / "step-6" / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    assert checkpoint.problem_of(folder / "step-6") == "../step-4/state.json is missing"


def test_later_checkpoints_are_set_aside_and_can_still_be_named(folder: Path) -> None:
    assert checkpoint.set_aside_later(folder, 2) == ["aside-step-6", "aside-step-4"]
    assert taken(folder)[0].step == 2
    save(folder, 4)
    assert checkpoint.set_aside_later(folder, 2) == ["aside-step-4.1"]
    assert taken(folder, str(folder / "aside-step-6"))[0].step == 6


def test_a_checkpoint_in_the_way_of_a_new_one_is_set_aside(folder: Path) -> None:
    (folder / "step-6" / checkpoint.STATE).write_text("{")
    save(folder, 6)
    assert taken(folder)[0].step == 6
    assert (folder / "aside-step-6" / checkpoint.STATE).read_text() == "{"


@pytest.mark.parametrize("function", ["_write_rank", "_commit", "sync"])
def test_a_failed_save_leaves_what_was_there(folder: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    def fails(*arguments: object) -> None:
        raise OSError(28, os.strerror(28))

    before = sorted(folder.iterdir())
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_writing, function, fails)
        with pytest.raises(HomodistilError, match=r"checkpoint of step 8 .* No space left") as raised:
            save(folder, 8)
    assert (raised.value.error_id, raised.value.exit_code) == ("CKPT-SAVE", 5)
    assert str(folder / "step-6") in raised.value.kept
    assert sorted(folder.iterdir()) == before
    assert checkpoint.problem_of(save(folder, 8)) is None


def test_a_checkpoint_in_its_place_counts_though_latest_could_not_be_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path, text: str) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(checkpoint_writing, "replace_text", fails)
    assert save(folder, 8) == folder / "step-8"
    assert taken(folder)[0].step == 8
    assert (folder / "latest").read_text() == "step-6"


def test_a_full_disk_is_seen_before_anything_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_writing.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(HomodistilError, match="no space left"):
        save(folder, 8)
    assert not list(folder.glob(f"{checkpoint.UNFINISHED}*"))


def test_a_run_directory_that_has_gone_is_not_made_again(tmp_path: Path) -> None:
    with pytest.raises(HomodistilError, match="No such file or directory") as raised:
        save(tmp_path / "gone" / "checkpoints", 2)
    assert raised.value.error_id == "CKPT-SAVE"
    assert not (tmp_path / "gone").exists()


def test_a_start_that_was_cut_off_writes_no_more(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    (folder.parent / "lock").write_text('{"job": "71", "restart": 1}')
    with pytest.raises(HomodistilError) as raised:
        save(folder, 9)
    assert raised.value.error_id == "DIST-SUPERSEDED"
    assert not list(folder.glob("*9*"))
