"""How a worker that has run its cases ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from homodistil_ds.runtime import ranks


def end(out: Path, results: dict[str, Any]) -> None:
    """Rank 0 writes what the test reads; then the group is left."""
    if ranks.rank() == 0:
        (out / "result.json").write_text(json.dumps(results), encoding="utf-8")
    ranks.stop()
