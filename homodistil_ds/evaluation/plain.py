"""Load saved folders as a stranger would, with torch and transformers alone, and time them. Run as a script.

    python -I plain.py FOLDER IDS.pt OUT.pt        IDS: int64 [B, L]; OUT: logits [B, L, V] of FOLDER in float32
    python -I plain.py --speed IDS.pt FOLDER...    prints JSON: tokens per second of each folder, in float32

It imports nothing of this project.
"""

import json
import statistics
import sys
import time

import torch
from transformers import AutoModelForMaskedLM, PreTrainedModel


def main(arguments: list[str]) -> None:
    if arguments[0] == "--speed":
        ids = torch.load(arguments[1], weights_only=True)
        print(json.dumps(speeds([load(folder) for folder in arguments[2:]], ids)))
    else:
        folder, ids_path, out_path = arguments
        with torch.no_grad():
            torch.save(load(folder)(torch.load(ids_path, weights_only=True)).logits, out_path)


def load(folder: str) -> PreTrainedModel:
    return AutoModelForMaskedLM.from_pretrained(folder).float().eval()


@torch.no_grad()
def speeds(models: list[PreTrainedModel], ids: torch.Tensor, rounds: int = 7) -> list[float]:
    """Tokens per second of the encoders on ids [B, L]; the models take turns, the median round counts."""
    seconds: list[list[float]] = [[] for _ in models]
    for turn in range(rounds + 1):
        for model, times in zip(models, seconds, strict=True):
            started = time.perf_counter()
            model.base_model(ids)
            if turn:
                times.append(time.perf_counter() - started)
    return [ids.numel() / statistics.median(times) for times in seconds]


if __name__ == "__main__":
    main(sys.argv[1:])
