"""What a preparation is to do: its recipe, the files it found, whether earlier work in the folder is of the same."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from homodistil_ds.config import BUILTIN
from homodistil_ds.data.corpus import FORMAT, is_prepared, read_index, vocabulary
from homodistil_ds.data.text import files_of, is_local, local_files
from homodistil_ds.errors import HomodistilError
from homodistil_ds.runtime.whole_files import written_whole

UNFINISHED = ".unfinished"
PLAN = "plan.json"
SAME_TEXT = " Where nothing but the dates of its files changed, give the folder itself as the corpus."


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What decides the content of a prepared folder, besides the tokenizer."""

    sources: tuple[str, ...]
    sequence_length: int
    clean: bool = True
    skip_bad_files: bool = False

    def made_with(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """What must be equal for a folder to be taken for this recipe's; sizes and dates stand for the files' text."""
        return {
            "format": FORMAT,
            "sources": [[source, *_listing(source)] for source in self.sources],
            "sequence_length": self.sequence_length,
            "clean": self.clean,
            "skip_bad_files": self.skip_bad_files,
            "vocabulary": vocabulary(tokenizer),
            "tokenizer": _tokenizer_digest(tokenizer),
        }


def begin(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, folder: Path, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """The plan to go by, made now or by an earlier start; None if the folder is finished."""
    made_with, work = recipe.made_with(tokenizer), folder / UNFINISHED
    if is_prepared(folder):
        differing = differing_names(read_index(folder).get("made_with", {}), made_with)
        if differing:
            raise HomodistilError(
                "DATA-CACHE",
                f"{folder}: made with other values of {', '.join(differing)}",
                f"Remove {folder}, or prepare into another folder." + (SAME_TEXT if differing == ["sources"] else ""),
            )
        shutil.rmtree(work, ignore_errors=True)
        return None
    plan = _earlier_plan(work)
    if plan is not None and (differing := differing_names(plan["made_with"], made_with)):
        if differing == ["skip_bad_files"] and recipe.skip_bad_files:
            plan = {**plan, "made_with": made_with, "skipped": None}
        else:
            say(f"the unfinished work in {folder} has other values of {', '.join(differing)}: beginning again")
            plan = None
    if plan is None:
        files = [file for source in recipe.sources for file in files_of(source)]
        shutil.rmtree(work, ignore_errors=True)
        (work / "parts").mkdir(parents=True)
        skipped: list[Any] | None = None if recipe.skip_bad_files else []
        plan = {"made_with": made_with, "files": [list(asdict(file).values()) for file in files], "skipped": skipped}
        write_json(work / PLAN, plan)
    return plan


def _earlier_plan(work: Path) -> dict[str, Any] | None:
    try:
        plan: dict[str, Any] = json.loads((work / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return plan


def differing_names(made_with: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    return [name for name, value in wanted.items() if made_with.get(name) != value]


def write_json(path: Path, values: dict[str, Any]) -> None:
    with written_whole(path) as stream:
        stream.write((json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))


def _listing(source: str) -> list[Any]:
    """How many files a local source has, their bytes, and a digest of names, sizes and dates; of others nothing."""
    if not is_local(source) or source == BUILTIN:
        return []
    files = local_files(source)
    digest = hashlib.sha256()
    for file in files:
        digest.update(json.dumps([file.path, file.size, Path(file.path).stat().st_mtime_ns]).encode())
    return [len(files), sum(file.size for file in files), digest.hexdigest()[:16]]


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of everything that decides how text is cut."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = json.loads(backend.to_str()) if backend is not None else {}
    deciding = [parts.get(name) for name in ("normalizer", "pre_tokenizer", "added_tokens", "model")]
    return hashlib.sha256(json.dumps(deciding).encode()).hexdigest()[:16]
