"""Held-out loss of a saved model on a prepared corpus and, with a teacher, its discrepancy from that one; of a decoder
also how often it knows the last word of a passage (LAMBADA).

    python tools/evaluate_heldout.py --model runs/mine/student --teacher bert-base-uncased --corpus corpora/mine
    python tools/evaluate_heldout.py --model runs/qwen/student --teacher Qwen/Qwen3-0.6B --last_words lambada.jsonl

The rows are those that no training has seen, with the masks of every run, so the figures compare with report.json.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from homodistil_ds.config import RunConfig
from homodistil_ds.data.batches import Batches
from homodistil_ds.data.corpus import Order, load, read_index, vocabulary
from homodistil_ds.data.masking import prediction_for
from homodistil_ds.data.tokens import Tokens
from homodistil_ds.errors import HomodistilError
from homodistil_ds.evaluation import last_words
from homodistil_ds.evaluation.heldout import Forward, HeldOut, evaluate
from homodistil_ds.models.forward import Read, Teacher, headed
from homodistil_ds.models.loading import load_teacher, read_plan
from homodistil_ds.models.width import WidthPlan
from homodistil_ds.runtime import console, ranks


@dataclass(frozen=True)
class Loaded:
    flag: str
    source: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    plan: WidthPlan

    def forward(self, read: Read) -> Forward:
        """(input_ids [B, L], positions [B, K]) -> what is read there: logits, or states and the head for them."""
        reads: frozenset[Read] = frozenset({read})
        own = Teacher(self.model, self.plan.family, reads)
        return lambda *shown: headed(own, own(*shown, reads=reads))


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    given = flags().parse_args(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        figures = measure(given)
    except HomodistilError as error:
        console.say(error.block(), sys.stderr)
        return error.exit_code
    console.say("\n".join(lines(figures)))
    if given.output:
        given.output.write_text(json.dumps({"model": given.model, **figures}, indent=2) + "\n", encoding="utf-8")
    return 0


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub name")
    parser.add_argument("--teacher", help="folder or hub name; for --corpus a model with the same vocabulary")
    parser.add_argument("--corpus", type=Path, help="a prepared one, or runs/<name>/corpus")
    parser.add_argument("--last_words", type=Path, help='passages: JSON lines with "text", or a .txt, one per line')
    parser.add_argument("--held_out_sequences", type=int, default=RunConfig.held_out_sequences)
    parser.add_argument("--mask_probability", type=float, default=RunConfig.mask_probability)
    parser.add_argument("--micro_batch", type=int, default=16, help="sequences at a time")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    return parser


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """The figures asked for, None for the teacher's where there is none.

    Raises HomodistilError for a model, teacher, corpus or passages that cannot be read, or do not fit.
    """
    if given.corpus is None and given.last_words is None:
        raise HomodistilError(
            "CFG-FLAG", "neither --corpus nor --last_words is given", "Say what to measure on: either, or both."
        )
    named = {"--model": given.model} | ({"--teacher": given.teacher} if given.teacher else {})
    texts: list[str] = []
    if given.last_words is not None:
        texts = last_words.read_passages(given.last_words)
        for flag, source in named.items():
            last_words.check_decoder(read_plan(source, flag=flag), source, flag)
    models = [loaded(flag, source) for flag, source in named.items()]
    figures: dict[str, Any] = {}
    if given.last_words is not None:
        figures["last_words"] = on_passages(given, texts, *models)
    if given.corpus is not None:
        found = on_corpus(given, *models)
        figures |= {"heldout_loss": found.loss, "teacher_loss": found.teacher_loss, "kl": found.discrepancy_kl}
    return figures


def loaded(flag: str, source: str) -> Loaded:
    model, tokenizer = load_teacher(source, flag=flag)
    return Loaded(flag, source, model.to(ranks.device()), tokenizer, read_plan(source, flag=flag))


def on_corpus(given: argparse.Namespace, own: Loaded, teacher: Loaded | None = None) -> HeldOut:
    length = read_index(given.corpus)["sequence_length"]
    corpus = load(given.corpus, own.tokenizer, length, given.held_out_sequences)
    kind = own.plan.family.language_model
    if teacher:
        check_same_kind(own, teacher)
    for asked in filter(None, (own, teacher)):
        if length > asked.plan.positions:
            raise HomodistilError(
                "CFG-LENGTH",
                f"--corpus {given.corpus} has rows of {length} tokens, and {asked.flag} {asked.source} knows "
                f"{asked.plan.positions} positions",
                "Give a corpus that was prepared with shorter rows.",
            )
    batches = Batches(
        corpus=corpus,
        prediction=prediction_for(kind, own.tokenizer, own.model.config, given.mask_probability, length),
        order=Order(len(corpus.train), 0),
        seed=0,
        global_batch=given.micro_batch,
        micro_batch=given.micro_batch,
        rank=0,
        world_size=1,
    )
    shown = teacher.forward("predicted") if teacher else None
    return evaluate(own.forward("predicted"), shown, batches.held_out(), own.plan.fixed["vocab"])


def check_same_kind(own: Loaded, teacher: Loaded) -> None:
    """Raises HomodistilError for a teacher that is asked for other things, or in other words."""
    kinds = [asked.plan.family.language_model for asked in (own, teacher)]
    if kinds[0] != kinds[1]:
        raise HomodistilError(
            "CFG-FAMILY",
            f"{own.flag} {own.source} is a {kinds[0]} language model, {teacher.flag} {teacher.source} a "
            f"{kinds[1]} one: they are asked for different things",
            "Leave --teacher out, or give one of the same kind.",
        )
    sizes = [asked.plan.fixed["vocab"] for asked in (own, teacher)]
    if vocabulary(own.tokenizer) != vocabulary(teacher.tokenizer) or sizes[0] != sizes[1]:
        raise HomodistilError(
            "DATA-TOKENIZER",
            f"{teacher.flag} {teacher.source} has another vocabulary than {own.flag} {own.source} ({sizes[1]} and "
            f"{sizes[0]} rows): their predictions cannot be compared",
            "Leave --teacher out, or give the teacher that the model was distilled from.",
        )


def on_passages(
    given: argparse.Namespace, texts: list[str], own: Loaded, teacher: Loaded | None = None
) -> dict[str, Any]:
    """Each model reads the passages by its own tokenizer; the counts are those of --model."""
    passages, found = last_words_of(own, texts, given)
    theirs = last_words_of(teacher, texts, given)[1] if teacher else None
    return {
        **asdict(found),
        "teacher_accuracy": theirs.accuracy if theirs else None,
        "teacher_perplexity": theirs.perplexity if theirs else None,
        "passages": len(passages.usable),
        "shortened": passages.shortened,
        "skipped": passages.skipped,
    }


def last_words_of(
    asked: Loaded, texts: list[str], given: argparse.Namespace
) -> tuple[last_words.Passages, last_words.LastWords]:
    passages = last_words.encode(texts, Tokens(asked.tokenizer), asked.plan.positions)
    if not passages.usable:
        why = ", ".join(f"{count} {reason}" for reason, count in passages.skipped.items()) or "there is none"
        raise HomodistilError(
            "DATA-LAST-WORDS",
            f"--last_words {given.last_words}: no passage that {asked.flag} {asked.source} can be asked about ({why})",
            "A passage is a text of two words or more.",
        )
    return passages, last_words.measure(asked.forward("logits"), passages.usable, given.micro_batch)


def lines(figures: dict[str, Any]) -> list[str]:
    """What the console shows."""
    told = [
        f"{name:14}{figures[name]:9.4f} nats"
        for name in ("heldout_loss", "teacher_loss", "kl")
        if figures.get(name) is not None
    ]
    if "last_words" in figures:
        found = figures["last_words"]
        skipped = "".join(f", {count:,} skipped ({reason})" for reason, count in found["skipped"].items())
        shortened = f", {found['shortened']:,} without their beginning" if found["shortened"] else ""
        told.append(f"last words of {found['passages']:,} passages{shortened}{skipped}")
        for name in ("accuracy", "teacher_accuracy", "perplexity", "teacher_perplexity"):
            if found[name] is not None:
                told.append(f"{name:19}{found[name]:12,.4f}")
    return told


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
