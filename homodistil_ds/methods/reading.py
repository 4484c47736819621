"""The corpus of a run: packed once into the run directory, mapped by every rank, and the same for all of them."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from homodistil_ds.config import RunConfig
from homodistil_ds.data.corpus import INDEX, Corpus, load
from homodistil_ds.data.prepare import corpus_folder, prepare
from homodistil_ds.errors import HomodistilError
from homodistil_ds.methods.opening import claimed
from homodistil_ds.runtime import ranks
from homodistil_ds.runtime.late_files import appears


def read_corpus(config: RunConfig, tokenizer: PreTrainedTokenizerBase, run_dir: Path) -> Corpus:
    """Rank 0 packs the corpus into the run directory, then all ranks map it; or all map a prepared one."""
    own = run_dir / "corpus"

    def pack() -> None:
        with claimed(run_dir):
            prepare(config.corpus, tokenizer, config.sequence_length, config.held_out_sequences, own)

    ranks.on_first(pack)
    folder = ranks.together(lambda: corpus_folder(config.corpus, own))
    ranks.together(lambda: _wait_for(folder / INDEX, run_dir))
    corpus = ranks.together(lambda: load(folder, tokenizer, config.sequence_length, config.held_out_sequences))
    if ranks.differing({"corpus": int(corpus.fingerprint, 16) >> 1}) is not None:
        raise _not_shared(run_dir)
    return corpus


def _wait_for(packed: Path, run_dir: Path) -> None:
    """One that never comes is not shared, and must not be packed again."""
    if not appears(packed):
        raise _not_shared(run_dir)


def _not_shared(run_dir: Path) -> HomodistilError:
    return HomodistilError(
        "DIST-CORPUS-DIFFERS",
        f"the packed corpus of {run_dir} is not the same on all ranks",
        "Let all nodes see one --output_dir, and one prepared corpus, on a shared file system.",
    )
