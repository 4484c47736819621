"""tools/prepare_corpus.py with small units and shards, and a pause after each unit, so that little text makes many."""

import importlib.util
import sys
import time
from pathlib import Path

from homodistil_ds.data import packing, tokens, units

TOOL = Path(__file__).resolve().parents[3] / "tools" / "prepare_corpus.py"

units.UNIT_CHARACTERS = 3000
packing.SHARD_BYTES = 16_000
pause, made_part = float(sys.argv[1]), tokens._part


def part(*arguments: object) -> object:
    time.sleep(pause)
    return made_part(*arguments)  # type: ignore[arg-type]


tokens._part = part  # type: ignore[assignment]
spec = importlib.util.spec_from_file_location("prepare_corpus", TOOL)
assert spec is not None
assert spec.loader is not None
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)
sys.exit(tool.main(sys.argv[2:]))
