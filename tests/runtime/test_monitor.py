"""Monitor: events that can be read back, plain lines without a terminal, and a run that survives a bad tb folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from homodistil_ds.runtime.monitor import Monitor, clock_text, progress_line


def events(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir / "tb")).Reload()


def test_events_are_read_back(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, total_steps=20, enabled=True)
    for step in (10, 20):
        monitor.scalars(step, {"loss/total": 8.0 - step / 10, "optim/lr": 1e-3})
    monitor.histogram(20, "pruning/score", torch.tensor([1.0, 2.0, -torch.inf], dtype=torch.bfloat16))
    monitor.histogram(20, "pruning/empty", torch.tensor([torch.nan]))
    figure = Figure(figsize=(1, 1))
    figure.add_subplot().plot([0, 1])
    monitor.figure(20, "pruning/masks", figure)
    monitor.close()
    read = events(tmp_path)
    assert [(e.step, e.value) for e in read.Scalars("loss/total")] == [(10, 7.0), (20, 6.0)]
    assert read.Tags()["histograms"] == ["pruning/score"]
    assert read.Histograms("pruning/score")[0].histogram_value.num == 2
    assert read.Tags()["images"] == ["pruning/masks"]


def test_resume_does_not_double_the_curve(tmp_path: Path) -> None:
    before = Monitor(tmp_path, total_steps=30, enabled=True)
    for step in (10, 20):
        before.scalars(step, {"loss/total": 1.0})
    before.close()
    after = Monitor(tmp_path, total_steps=30, enabled=True, first_step=10)
    for step in (20, 30):
        after.scalars(step, {"loss/total": 2.0})
    after.close()
    assert [(e.step, e.value) for e in events(tmp_path).Scalars("loss/total")] == [(10, 1.0), (20, 2.0), (30, 2.0)]


def test_disabled_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monitor = Monitor(tmp_path, total_steps=10, enabled=False)
    monitor.scalars(1, {"loss/total": 1.0})
    monitor.histogram(1, "a", torch.ones(2))
    monitor.figure(1, "b", Figure())
    monitor.line("hidden")
    monitor.progress(1, {"loss": 1.0})
    monitor.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_plain_lines_without_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("homodistil_ds.runtime.monitor.time.monotonic", lambda: now[0])
    monitor = Monitor(tmp_path, total_steps=300, enabled=True)
    monitor.progress(20, {"loss": 8.0})
    now[0] = 50.0
    monitor.progress(120, {"loss": 7.412, "kl": 0.81, "widths": "192/768/8x24", "tok/s": 2310.4})
    monitor.close()
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "step   20/300  loss 8",
        "step  120/300  loss 7.412  kl 0.81  widths 192/768/8x24  2,310 tok/s  eta 1:30",
    ]
    assert err == ""


def test_bar_on_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monitor = Monitor(tmp_path, total_steps=30, enabled=True)
    monitor.progress(10, {"loss": 7.412})
    monitor.line("cut to 192")
    monitor.progress(30, {"loss": 6.5})
    monitor.close()
    out, err = capsys.readouterr()
    assert out == "cut to 192\n"
    assert "10/30" in err
    assert "30/30" in err
    assert "loss 6.5" in err


def test_tb_that_is_not_a_folder_costs_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tb").write_text("in the way")
    monitor = Monitor(tmp_path, total_steps=10, enabled=True)
    for step in range(3):
        monitor.scalars(step, {"loss/total": 1.0})
    monitor.close()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert "warning" in lines[0]
    assert str(tmp_path / "tb") in lines[0]


def test_full_disk_costs_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = Monitor(tmp_path, total_steps=10, enabled=True)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", full)
    for step in range(3):
        monitor.scalars(step, {"loss/total": 1.0, "loss/kl": 1.0})
    monitor.close()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert "No space left on device" in lines[0]


def test_a_terminal_that_was_closed_costs_the_display_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monitor = Monitor(tmp_path, total_steps=10, enabled=True)
    monitor.progress(1, {"loss": 1.0})
    monkeypatch.setattr(sys.stderr, "write", closed)
    monkeypatch.setattr(sys.stdout, "write", closed)
    for step in range(2, 5):
        monitor.progress(step, {"loss": 1.0})
        monitor.line("held-out")
    monitor.close()
    monitor.line("the end")


def test_texts() -> None:
    assert progress_line(5, 20, {"loss": float("nan")}) == "step   5/20  loss nan"
    assert [clock_text(s) for s in (0, 100, 3725)] == ["0:00", "1:40", "1:02:05"]
