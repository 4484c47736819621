"""Signs of life of a long preparation: a bar on a terminal, a line now and then elsewhere. Of one worker only."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from homodistil_ds.runtime import console

LINE_EVERY_SECONDS = 10.0


class Progress:
    def __init__(self, enabled: bool, workers: int = 1) -> None:
        self._enabled = enabled
        self._note = f" (worker 1 of {workers})" if workers > 1 else ""
        self._bar: tqdm | None = None
        self._began = self._told = time.monotonic()
        self._bytes = self._documents = 0

    def stage(self, name: str) -> None:
        """What begins now."""
        self.close()
        self._began = self._told = time.monotonic()
        self._bytes = self._documents = 0
        if self._enabled and sys.stderr.isatty():
            self._bar = tqdm(desc=name + self._note, unit="B", unit_scale=True)
        elif self._enabled:
            console.say(f"prepare: {name}")

    def add(self, size: int, documents: int = 0, name: str = "") -> None:
        """So many bytes more are done, last of `name`."""
        self._bytes += size
        self._documents += documents
        if self._bar is not None:
            self._bar.set_postfix_str(name, refresh=False)
            self._bar.update(size)
        elif self._enabled and time.monotonic() > self._told + LINE_EVERY_SECONDS:
            self._told = time.monotonic()
            rate = self._bytes / (self._told - self._began)
            done = f"{self._bytes / 1e6:.1f} MB, {self._documents} documents, {rate / 1e6:.2f} MB/s, in {name}"
            console.say(f"prepare: {done}{self._note}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
