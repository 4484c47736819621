"""Load saved folders as a stranger would, with torch and transformers alone, and time them. Run as a script.

    python -I plain.py FOLDER INPUTS.pt OUT.pt     INPUTS: list of batches, name -> int64 [B, L]; OUT: list of their
                                                   logits in float32, [B, L, V] or, of a classifier, [B, classes]
    python -I plain.py --speed IDS.pt FOLDER...    prints JSON: tokens per second of each folder on IDS, int64 [B, L]
    python -I plain.py --latency FOLDER...         prints JSON: seconds per call of each folder at each batch size

Both times are those of the encoders, without a head or a decoder behind them, in float32. It imports nothing of this
project.
"""

import json
import os
import statistics
import sys
import time
from typing import Any

import torch
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

# How the name of an architecture ends -> the class that loads it.
CLASSES = {
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForMaskedLM": AutoModelForMaskedLM,
    "ForCausalLM": AutoModelForCausalLM,
    "LMHeadModel": AutoModelForCausalLM,
    "ForConditionalGeneration": AutoModelForSeq2SeqLM,
}
LATENCY_LENGTH = 128
LATENCY_ROUNDS = {1: 21, 32: 5}  # batch size -> rounds that count


def main(arguments: list[str]) -> None:
    if arguments[0] == "--speed":
        ids = torch.load(arguments[1], weights_only=True)
        print(json.dumps(speeds([load(folder) for folder in arguments[2:]], ids)))
    elif arguments[0] == "--latency":
        print(json.dumps(latencies([load(folder) for folder in arguments[1:]])))
    else:
        folder, inputs_path, out_path = arguments
        model, batches = load(folder), torch.load(inputs_path, weights_only=True)
        with torch.no_grad():
            torch.save([model(**batch).logits for batch in batches], out_path)


def load(folder: str) -> PreTrainedModel:
    loader = auto_class(AutoConfig.from_pretrained(folder))
    model = loader.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
    model.config.use_cache = False  # of decoders, which are asked once
    return model


def auto_class(config: Any) -> Any:
    """The auto class that a configuration's architecture belongs to; T5's has had several names.

    One that names none, or none that predicts words, stands for the language model of its kind.
    """
    if config.is_encoder_decoder:
        return AutoModelForSeq2SeqLM
    named = config.architectures or ()
    known = (loader for end, loader in CLASSES.items() if any(name.endswith(end) for name in named))
    masked = type(config) in MODEL_FOR_MASKED_LM_MAPPING
    return next(known, AutoModelForMaskedLM if masked else AutoModelForCausalLM)


def positions(model: PreTrainedModel) -> int:
    """The longest sequence a model takes; RoBERTa counts its positions from behind the padding id."""
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    known = getattr(model.config, "max_position_embeddings", sys.maxsize)  # T5 knows distances alone
    return int(known) - (0 if padding is None else padding + 1)


def speeds(models: list[PreTrainedModel], ids: torch.Tensor, rounds: int = 7) -> list[float]:
    """Tokens per second of the encoders on ids [B, L]."""
    return [ids.numel() / seconds for seconds in seconds_per_call(models, ids, rounds)]


def latencies(models: list[PreTrainedModel]) -> dict[str, Any]:
    """Threads, sequence length (the same for all models) and, per batch size, seconds per call of each model.

    `load` is the machine's load average over a minute before, of `cores`: on a busy machine small models wait most.
    """
    load, cores = os.getloadavg()[0], os.cpu_count()
    length = min([LATENCY_LENGTH, *map(positions, models)])
    vocabulary = min(model.config.vocab_size for model in models)
    generator = torch.Generator().manual_seed(0)
    seconds = {
        batch: seconds_per_call(models, torch.randint(vocabulary, (batch, length), generator=generator), rounds)
        for batch, rounds in LATENCY_ROUNDS.items()
    }
    threads = torch.get_num_threads()
    return {"threads": threads, "length": length, "load": load, "cores": cores, "seconds": seconds}


@torch.no_grad()
def seconds_per_call(models: list[PreTrainedModel], ids: torch.Tensor, rounds: int) -> list[float]:
    """Seconds of each encoder on ids [B, L]; the models take turns, the median round counts, the first one does not."""
    seconds: list[list[float]] = [[] for _ in models]
    bodies = [model.get_encoder() if model.config.is_encoder_decoder else model.base_model for model in models]
    for turn in range(rounds + 1):
        for body, times in zip(bodies, seconds, strict=True):
            started = time.perf_counter()
            body(ids)
            if turn:
                times.append(time.perf_counter() - started)
    return [statistics.median(times) for times in seconds]


if __name__ == "__main__":
    main(sys.argv[1:])
