"""Held-out loss of a saved model on a prepared corpus and, with a teacher, its discrepancy from that one.

    python tools/evaluate_heldout.py --model runs/mine/student --teacher bert-base-uncased --corpus corpora/mine

The rows are those that no training has seen, with the masks of every run, so the figures compare with report.json.
"""

import argparse
import json
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from transformers.utils import logging

from homodistil_ds.config import RunConfig
from homodistil_ds.data.batches import Batches
from homodistil_ds.data.corpus import Order, load, read_index
from homodistil_ds.data.masking import prediction_for
from homodistil_ds.errors import HomodistilError
from homodistil_ds.evaluation.heldout import Forward, HeldOut, evaluate
from homodistil_ds.models.forward import Read, Teacher, headed
from homodistil_ds.models.loading import load_teacher, read_plan
from homodistil_ds.runtime import console, ranks


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    given = flags().parse_args(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        result = measure(given)
    except HomodistilError as error:
        console.say(error.block(), sys.stderr)
        return error.exit_code
    figures = {"heldout_loss": result.loss, "teacher_loss": result.teacher_loss, "kl": result.discrepancy_kl}
    for name, value in figures.items():
        if value is not None:
            console.say(f"{name:14}{value:9.4f} nats")
    if given.output:
        given.output.write_text(json.dumps({"model": given.model, **figures}, indent=2) + "\n", encoding="utf-8")
    return 0


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub name")
    parser.add_argument("--teacher", help="folder or hub name of a model with the same vocabulary")
    parser.add_argument("--corpus", required=True, type=Path, help="a prepared one, or runs/<name>/corpus")
    parser.add_argument("--held_out_sequences", type=int, default=RunConfig.held_out_sequences)
    parser.add_argument("--mask_probability", type=float, default=RunConfig.mask_probability)
    parser.add_argument("--micro_batch", type=int, default=16, help="sequences at a time")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    return parser


def measure(given: argparse.Namespace) -> HeldOut:
    """Raises HomodistilError for a model, teacher or corpus that cannot be read, or does not fit."""
    model, tokenizer = load_teacher(given.model, flag="--model")
    corpus = load(given.corpus, tokenizer, read_index(given.corpus)["sequence_length"], given.held_out_sequences)
    plan = read_plan(given.model, flag="--model")
    kind, vocabulary = plan.family.language_model, plan.fixed["vocab"]
    batches = Batches(
        corpus=corpus,
        prediction=prediction_for(kind, tokenizer, vocabulary, given.mask_probability),
        order=Order(len(corpus.train), 0),
        seed=0,
        global_batch=given.micro_batch,
        micro_batch=given.micro_batch,
        rank=0,
        world_size=1,
    )
    teacher = logits_of(given.teacher, load_teacher(given.teacher)[0]) if given.teacher else None
    return evaluate(logits_of(given.model, model), teacher, batches.held_out(), vocabulary)


def logits_of(source: str, model: torch.nn.Module) -> Forward:
    reads: frozenset[Read] = frozenset({"predicted"})
    own = Teacher(model.float().to(ranks.device()), read_plan(source).family, reads)
    return lambda *shown: headed(own, own(*shown, reads=reads))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
