"""Prepare a corpus in parallel: clean, drop copies, tokenize, pack. Training then starts from the folder in seconds.

    python tools/prepare_corpus.py --corpus my_texts/ notes.jsonl.gz --output_dir corpora/mine      # on all cores
    mpirun -n 16 python tools/prepare_corpus.py --corpus my_texts/ --output_dir corpora/mine        # on many machines
    srun --mpi=pmix -n 16 python tools/prepare_corpus.py --corpus my_texts/ --output_dir corpora/mine
    deepspeed homodistil_ds/train.py --corpus corpora/mine ...
    python tools/prepare_corpus.py --verify corpora/mine                                            # read all of it

The folder is the same byte for byte whoever prepares it. A preparation that was killed goes on where it was when the
same command is given again.
"""

import os

# Each worker tokenizes on a thread of its own; set before any library looks.
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

import argparse
import contextlib
import sys
import time
import traceback
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from homodistil_ds.config import BUILTIN, RunConfig
from homodistil_ds.data import workers
from homodistil_ds.data.corpus import INDEX, is_prepared, verify
from homodistil_ds.data.plan import UNFINISHED, Recipe
from homodistil_ds.data.prepare import Outcome, prepare_folder
from homodistil_ds.data.progress import Progress
from homodistil_ds.data.workers import Alone, Workers
from homodistil_ds.errors import HomodistilError
from homodistil_ds.models.loading import folder_of, tokenizer_of
from homodistil_ds.runtime import claim, console


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    given = flags().parse_args(arguments)
    logging.set_verbosity_error()
    try:
        if given.verify:
            index = verify(given.verify)
            console.say(f"{given.verify}: whole, fingerprint {index['fingerprint']}")
            return 0
        check(given)
        expected = workers.launched()
        if expected is not None and expected > 1 and given.workers:
            raise HomodistilError("CFG-FLAG", "--workers under a launcher", "The launcher says how many; leave it out.")
        tokenizer = load_tokenizer(given.tokenizer or given.teacher)
        size = given.workers or expected or len(os.sched_getaffinity(0))

        def job(these: Workers) -> Outcome:
            return prepare(given, tokenizer, these)

        began = time.monotonic()
        if expected is not None and expected > 1:
            outcome = workers.under_mpi(expected, job, lambda error: failed(error, given))
        else:
            outcome = workers.in_processes(size, job) if size > 1 else job(Alone())
    except HomodistilError as error:
        return failed(error, given)
    except KeyboardInterrupt:
        console.say(f"\nhomodistil_ds: stopped. {kept(given.output_dir)}", sys.stderr)
        return 130
    if outcome.index:
        tell(given.output_dir, outcome, time.monotonic() - began, size)
    return 0


def flags() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument(
        "--corpus", nargs="+", default=[BUILTIN], help="as of train.py: files, folders, hub names (default: builtin)"
    )
    flags.add_argument("--output_dir", type=Path, help="the folder to prepare; needed but for --verify")
    flags.add_argument(
        "--teacher", default=BUILTIN, help="whose tokenizer it is: a folder or a hub name (default: builtin)"
    )
    flags.add_argument("--tokenizer", help="another folder or hub name of the tokenizer alone")
    flags.add_argument(
        "--sequence_length", type=int, default=RunConfig().sequence_length, help="(default: %(default)s)"
    )
    flags.add_argument("--workers", type=int, help="processes (default: as many as cores); not under mpirun or srun")
    flags.add_argument("--no_clean", action="store_true", help="take the text as it is")
    flags.add_argument("--skip_bad_files", action="store_true", help="list unreadable files instead of stopping")
    flags.add_argument(
        "--verify", type=Path, metavar="FOLDER", help="compare every file with the index, do nothing else"
    )
    return flags


def check(given: argparse.Namespace) -> None:
    for wrong, what, remedy in (
        (given.output_dir is None, "--output_dir is missing", "Name the folder to prepare."),
        (given.sequence_length < 3, f"--sequence_length {given.sequence_length}", "Rows need 3 tokens or more."),
        (given.workers is not None and given.workers < 1, f"--workers {given.workers}", "Use 1 or more."),
    ):
        if wrong:
            raise HomodistilError("CFG-FLAG", what, remedy)


def load_tokenizer(teacher: str) -> PreTrainedTokenizerBase:
    try:
        return tokenizer_of(folder_of(teacher))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise HomodistilError(
            "CFG-TEACHER", f"no tokenizer in {teacher} ({reason})", "Give a folder or hub name that has one."
        ) from error


def prepare(given: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, these: Workers) -> Outcome:
    """The part of one worker. The first holds the folder, which then keeps others out."""
    first, folder = these.rank == 0, given.output_dir
    recipe = Recipe(
        sources=tuple(given.corpus),
        sequence_length=given.sequence_length,
        clean=not given.no_clean,
        skip_bad_files=given.skip_bad_files,
    )
    try:
        if first:
            hold(folder)
        progress = Progress(first, these.size)
        return prepare_folder(recipe, tokenizer, folder, these, progress, console.say)
    except OSError as error:
        remedy = "Check that the folder can be written by all workers and has room."
        raise HomodistilError("ENV-FILE", str(error), remedy) from error
    finally:
        if claim.is_held(folder) and is_prepared(folder) and not claim.superseded(folder):
            (folder / claim.FILE_NAME).unlink()  # whoever comes now finds the index, so two locks do no harm


def hold(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    there = {path.name for path in folder.iterdir()} - {claim.FILE_NAME}
    if there and not there & {INDEX, UNFINISHED}:
        raise HomodistilError(
            "CFG-USED-DIR", f"--output_dir {folder} holds other things ({sorted(there)[0]})", "Choose another folder."
        )
    if warning := claim.hold(folder):
        console.say(warning, sys.stderr)


def failed(error: BaseException, given: argparse.Namespace) -> int:
    """Say what went wrong; returns the exit code."""
    if not isinstance(error, HomodistilError):
        traceback.print_exception(error)
        sys.stderr.flush()
        return 1
    if given.output_dir is not None:
        with contextlib.suppress(OSError, HomodistilError):
            leave(given.output_dir)
        error.kept = kept(given.output_dir)
    console.say(error.block(), sys.stderr)
    return error.exit_code


def leave(folder: Path) -> None:
    """Take away a folder that was only claimed, unless another preparation has begun there."""
    if [path.name for path in folder.iterdir()] == [claim.FILE_NAME]:
        if not claim.is_held(folder):  # it was claimed by a worker process, which has ended
            claim.hold(folder)
        (folder / claim.FILE_NAME).unlink()
        folder.rmdir()


def kept(folder: Path) -> str:
    if (folder / UNFINISHED).is_dir() and not is_prepared(folder):
        return f"What is finished stays in {folder}; the same command goes on from there."
    return "Nothing was changed."


def tell(folder: Path, outcome: Outcome, seconds: float, size: int) -> None:
    index, counts = outcome.index, outcome.index["counts"]
    dropped = f"{counts['copies']:,} copies, {counts['too_short']:,} too short"
    rows = f"{index['rows']['train']:,} rows to train on, {index['rows']['held_out']:,} held out"
    console.say(f"{folder}: {counts['kept']:,} of {counts['documents']:,} documents ({dropped}), {rows}")
    console.say(f"{counts['tokens']:,} tokens, fingerprint {index['fingerprint']}")
    for skipped in index["skipped"]:
        console.say(f"skipped {skipped['name']}: {skipped['fault']}")
    rate = f"{counts['bytes'] / 1e6 / seconds:.2f} MB of text/s" if outcome.made and not outcome.found else "resumed"
    done = f"{outcome.made} units tokenized, {outcome.found} found finished, {seconds:.1f} s on {size} workers"
    busiest = f"the busiest took {outcome.cpu_seconds:.1f} s of CPU, {rate}"
    new = outcome.made + outcome.found > 0
    console.say(f"{done}, {busiest}" if new else "It was prepared before; nothing was done.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
