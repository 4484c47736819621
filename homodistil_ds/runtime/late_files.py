"""Files that another rank has written: network file systems show them late."""

from __future__ import annotations

import time
from pathlib import Path

SEEN_WITHIN_SECONDS = 30.0


def appears(path: Path) -> bool:
    """Whether `path` can be seen, at once or within SEEN_WITHIN_SECONDS."""
    deadline = time.monotonic() + SEEN_WITHIN_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
