"""The command, on ranks of which one has broken memory: the scores it keeps of one neuron change after a step."""

from __future__ import annotations

import sys
import time

import torch

from homodistil_ds.command import main
from homodistil_ds.pruning.importance import Importance
from homodistil_ds.runtime import ranks
from homodistil_ds.runtime.exit_reason import leave

BROKEN_RANK, FROM_UPDATE = 1, 5

update = Importance.update
calls = 0


def broken(self: Importance, score: torch.Tensor) -> None:
    global calls
    update(self, score)
    calls += 1
    if ranks.rank() == BROKEN_RANK and calls >= FROM_UPDATE:
        print(f"corrupted at {time.time()}", file=sys.stderr, flush=True)
        self.split(self.mean)["ffn.1"].neg_()


Importance.update = broken  # type: ignore[method-assign]

if __name__ == "__main__":
    leave(main(sys.argv[1:]))
