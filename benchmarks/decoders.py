"""Does it pay for decoders: a small Llama trained here, distilled to half and quarter of its widths in five ways.

    python benchmarks/decoders.py --output_dir runs/decoders --corpus enwiki.train.txt.xz
    python benchmarks/decoders.py --output_dir runs/decoders --table        # what there is so far

The teacher is made with the real command (`pretrain`) from random weights and a byte-level BPE of the corpus. Every
student is a run directory made by the real command, one process with one thread, --jobs at a time; what is complete is
not repeated. Every arm gets the same rows in the same order, as many steps, and short trials at the same learning
rates, of which the one counts whose own objective is lowest at the end.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from homotopy import target
from quality_arms import Arm, shape
from quality_cells import ROOT, TRAIN, Cells, as_flags, execute, prepare_corpus, side_by_side
from quality_table import form, line, millions, nats, training_seconds
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from homodistil_ds.data.text import read_documents
from homodistil_ds.models.families import plan_for
from homodistil_ds.models.width import WidthPlan

END = "<|endoftext|>"
READ = 8 << 20  # characters that the vocabulary is made from
WAYS: dict[str, dict[str, float | str]] = {
    "homotopic, logits": {},
    "homotopic, logits and states": {"loss.hidden": 1.0, "loss.embedding": 1.0},
    "one-shot, logits": {"pruning.start": 0.03, "pruning.end": 0.03},
    "random start, logits": {"student.init": "random"},
    "homotopic, the text alone": {"loss.kl": 0.0, "loss.mlm": 1.0},
}


def main() -> None:
    given = flags().parse_args()
    given.output_dir.mkdir(parents=True, exist_ok=True)
    if not given.table:
        run(given)
    print(write(given.output_dir))


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--corpus", nargs="+", default=["builtin"])
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--teacher_steps", type=int, default=800)
    parser.add_argument("--teacher_rate", type=float, default=2e-3)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--batch", type=int, default=16, help="sequences per step")
    parser.add_argument("--sequence_length", type=int, default=128)
    parser.add_argument("--held_out_sequences", type=int, default=128)
    parser.add_argument("--compressions", type=float, nargs="+", default=[0.5, 0.25], help="of the widths")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3], help="tried by each arm")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one process with one thread each")
    parser.add_argument("--deepspeed_config", default=str(ROOT / "ds_configs" / "zero2.json"))
    parser.add_argument("--table", action="store_true", help="run nothing, write the table of what there is")
    return parser


def run(given: argparse.Namespace) -> None:
    folder: Path = given.output_dir
    start = untrained(folder / "start", given)
    prepare_corpus(given, str(start))
    given.teacher = str(trained(start, folder / "teacher", given))
    plan = plan_for(LlamaConfig.from_pretrained(given.teacher))
    cells = Cells(given, plan)
    with ThreadPoolExecutor(given.jobs) as pool:
        rates = list(pool.map(cells.rate, arms(plan, given.compressions)))
    tuned = zip(arms(plan, given.compressions), rates, strict=True)
    runs = [(arm, rate, seed) for (arm, rate), seed in itertools.product(tuned, given.seeds)]
    side_by_side(given.jobs, runs, lambda one: distil(cells, *one))


def arms(plan: WidthPlan, compressions: list[float]) -> list[Arm]:
    """Every way at every compression."""
    return [
        Arm(name=f"{way} {compression:g}", preset="logit", flags={**shape(target(plan, compression)), **changed})
        for compression in compressions
        for way, changed in WAYS.items()
    ]


def distil(cells: Cells, arm: Arm, rate: float, seed: int) -> None:
    own = Arm(name=f"{arm.name} seed {seed}", preset=arm.preset, flags={**arm.flags, "seed": seed})
    cells.distil(own, rate, cells.place(own.name))


def untrained(folder: Path, given: argparse.Namespace) -> Path:
    """A Llama of some 6 million random weights with a tokenizer of the corpus."""
    if not (folder / "config.json").exists():
        trained = ByteLevelBPETokenizer()
        trained.train_from_iterator(texts(given.corpus), given.vocabulary, special_tokens=[END], show_progress=False)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token=END, bos_token=END)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=32,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def texts(sources: list[str]) -> Iterator[str]:
    """The first READ characters of a corpus, whole documents."""
    left = READ
    for text in read_documents(sources):
        if left <= 0:
            return
        left -= len(text)
        yield text


def trained(start: Path, folder: Path, given: argparse.Namespace) -> Path:
    if not (folder / "report.json").exists():
        values = {
            "preset": "correct_teacher",
            "teacher": start,
            "corpus": given.output_dir / "corpus",
            "output_dir": folder,
            "steps": given.teacher_steps,
            "learning_rate": given.teacher_rate,
            "global_batch_size": given.batch,
            "sequence_length": given.sequence_length,
            "held_out_sequences": given.held_out_sequences,
            "deepspeed_config": given.deepspeed_config,
        }
        execute([str(TRAIN), *as_flags(values)], folder.with_name("teacher.log"))
    return folder / "student"


def write(folder: Path) -> str:
    """decoders.md and decoders.json; returns the page."""
    reports = {path.parent.name: path.parent for path in sorted((folder / "distil").glob("*/arm.json"))}
    rows: dict[str, list[dict[str, Any]]] = {}
    for place in reports.values():
        arm = json.loads((place / "arm.json").read_text(encoding="utf-8"))
        report = json.loads((place / "report.json").read_text(encoding="utf-8"))
        rows.setdefault(arm["name"].rpartition(" seed ")[0], []).append({"arm": arm, "report": report})
    heads = ["student", "layers x hidden / ffn", "parameters (M)", "rate", "loss", "KL", "TFLOPs", "CPU s", "runs"]
    lines = [line(heads), "|:--|:--|" + "--:|" * (len(heads) - 2)]
    if rows:
        teacher = next(iter(rows.values()))[0]["report"]["teacher"]
        sizes = [form(teacher["widths"]), millions(teacher["parameters"])]
        lines.append(line(["teacher", *sizes, "", f"{teacher['heldout_loss']:.3f}", "0", "", "", ""]))
    for name, runs in rows.items():
        student, first = runs[0]["report"]["student"], runs[0]
        figures = [nats([run["report"]["student"][of] for run in runs]) for of in ("heldout_loss", "discrepancy_kl")]
        seconds = [training_seconds(run["report"]) for run in runs]
        cells = [name, form(student["widths"]), millions(student["parameters"])]
        cells += [f"{first['arm']['learning_rate']:g}{' (edge)' * first['arm']['at_edge']}", *figures]
        cells += [f"{first['report']['train_flops'] / 1e12:,.1f}", f"{statistics.mean(seconds):.0f}", str(len(runs))]
        lines.append(line(cells))
    page = "\n".join(lines) + "\n"
    (folder / "decoders.md").write_text(page, encoding="utf-8")
    (folder / "decoders.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return page


if __name__ == "__main__":
    main()
