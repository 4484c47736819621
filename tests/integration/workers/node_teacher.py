"""Four ranks as two nodes of two: a teacher in pieces over the ranks of each node against one that is whole."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from placement import ALL, compare, losses, setting_of

from homodistil_ds.methods.placing import placed_teacher
from homodistil_ds.runtime import engine, ranks
from homodistil_ds.runtime.exit_reason import leave


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    engine.prepare_op_folder()
    ranks.start()
    own = ranks.rank()
    ranks.host = lambda: f"node{own // 2}"
    differences = compare(settings, "node")
    runs = {place: losses(settings, 2, place)[0] for place in ("replicated", "node")}
    teacher = placed_teacher(setting_of(settings, "pieces", 2, "node"), ALL)
    parts = {
        name: p.ds_tensor.numel() / p.ds_numel for name, p in teacher.module.named_parameters() if len(p.ds_shape) > 1
    }
    result = {"differences": differences, "runs": runs, "largest": max(parts.values()), "smallest": min(parts.values())}
    ranks.on_first(lambda: Path(settings["out"], "result.json").write_text(json.dumps(result), encoding="utf-8"))
    ranks.stop()


if __name__ == "__main__":
    main()
    leave(0)
