"""Monitor: what a run shows while it goes, on TensorBoard and the console, from rank 0. It measures nothing itself."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from homodistil_ds.runtime import console


class Monitor:
    """The event writer of `run_dir`/tb and the progress display.

    With `enabled` false (every rank but 0) each method returns at once and no file is made. `first_step` is the step
    a resumed run continues from: curves already written after it are dropped by TensorBoard instead of doubled.
    A tb folder that cannot be written costs one warning line and the curves, never the run.
    """

    def __init__(self, run_dir: Path, total_steps: int, enabled: bool, first_step: int = 0) -> None:
        self.total_steps = total_steps
        self.enabled = enabled
        self._tb = run_dir / "tb"
        self._writer: SummaryWriter | None = None
        self._bar: tqdm | None = None
        self._clock: tuple[int, float] | None = None  # step and time of the first progress call
        if enabled:
            try:
                again = first_step > 0 or self._tb.exists()  # a run that left nothing of worth may be begun anew
                self._writer = SummaryWriter(str(self._tb), purge_step=first_step + 1 if again else None)
            except OSError as error:
                self._give_up(error)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point per tag. A tag is `group/name`, such as loss/total or perf/tokens_s."""
        for tag, value in values.items():
            self._write(lambda writer, tag=tag, value=value: writer.add_scalar(tag, value, step))  # type: ignore[misc]

    def histogram(self, step: int, tag: str, values: torch.Tensor) -> None:
        """Add the distribution of the finite entries; a tensor without any is left out."""
        if self._writer is None:
            return
        finite = values.detach().float().flatten()
        finite = finite[finite.isfinite()]
        if finite.numel():
            self._write(lambda writer: writer.add_histogram(tag, finite, step))

    def text(self, step: int, tag: str, text: str) -> None:
        self._write(lambda writer: writer.add_text(tag, text, step))

    def figure(self, step: int, tag: str, figure: Figure) -> None:
        self._write(lambda writer: writer.add_figure(tag, figure, step, close=False))

    def line(self, text: str) -> None:
        """Print one console line, above the bar where one is shown."""
        if not self.enabled:
            return
        if self._bar is None:
            console.say(text)
        else:
            self._draw(lambda bar: bar.write(text))

    def progress(self, step: int, values: Mapping[str, float | str]) -> None:
        """Show how far the run is: a bar on a terminal, one plain line elsewhere (a bar fills a log file)."""
        if not self.enabled:
            return
        now = time.monotonic()
        if self._clock is None:
            self._clock = (step, now)
        if sys.stderr.isatty():
            if self._bar is None:
                self._bar = tqdm(total=self.total_steps, initial=step, unit="step", dynamic_ncols=True)
            self._bar.set_postfix_str("  ".join(value_texts(values)), refresh=False)
            self._draw(lambda bar: bar.update(step - bar.n))
            self._draw(lambda bar: bar.refresh())
            console.note(progress_line(step, self.total_steps, values))
            return
        first, since = self._clock
        eta = (now - since) / (step - first) * (self.total_steps - step) if step > first else None
        self.line(progress_line(step, self.total_steps, values, eta))

    def close(self) -> None:
        """End the bar and flush the events. Further calls print lines but record nothing."""
        if self._bar is not None:
            self._draw(lambda bar: bar.close())
            self._bar = None
        self._write(lambda writer: writer.close())
        self._writer = None

    def _draw(self, action: Callable[[tqdm], object]) -> None:
        assert self._bar is not None
        try:
            action(self._bar)
        except OSError as error:  # the terminal was closed
            console.forget(sys.stdout, error)
            console.forget(sys.stderr, error)

    def _write(self, action: Callable[[SummaryWriter], object]) -> None:
        if self._writer is None:
            return
        try:
            action(self._writer)
        except OSError as error:  # a full disk surfaces here, one call after the writer's own thread met it
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._writer = None
        self.line(f"homodistil_ds: warning: no TensorBoard curves from here on, {self._tb}: {error.strerror or error}")


def progress_line(step: int, total: int, values: Mapping[str, float | str], eta_seconds: float | None = None) -> str:
    """One plain progress line, such as `step  120/300  loss 7.412  2,310 tok/s  eta 1:40`."""
    parts = [f"step {step:>{len(str(total)) + 1}}/{total}", *value_texts(values)]
    if eta_seconds is not None:
        parts.append(f"eta {clock_text(eta_seconds)}")
    return "  ".join(parts)


def value_texts(values: Mapping[str, float | str]) -> list[str]:
    """`name value` for each entry; a name ending in /s is a unit and follows its value (`2,310 tok/s`)."""
    texts = []
    for name, value in values.items():
        if not isinstance(value, str):
            value = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
        texts.append(f"{value} {name}" if name.endswith("/s") else f"{name} {value}")
    return texts


def clock_text(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss from one hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
