"""Read a teacher's weight files a run of entries at a time, and make what they fill: never a whole model at once."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from homodistil_ds.errors import HomodistilError
from homodistil_ds.models.families import FAMILIES, plan_for
from homodistil_ds.models.fused import has_own_head, keep_generation, taken_apart
from homodistil_ds.models.width import Family, LanguageModel, WidthPlan

AUTO_CLASSES: dict[LanguageModel, Any] = {
    "masked": AutoModelForMaskedLM,
    "causal": AutoModelForCausalLM,
    "denoising": AutoModelForSeq2SeqLM,
}
HEAD = "lm_head.weight"
COMPARED = 2**22  # entries at a time
LENGTH_BYTES = 8  # a safetensors file: length of the header, header in JSON, tensors
DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "BOOL": torch.bool},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
}
OLD_NAMES = {".gamma": ".weight", ".beta": ".bias"}  # of norms, before 2019; transformers renames them too
MEND = (
    "Load it once with transformers on a machine that can hold it and save it again with save_pretrained, or give "
    "--teacher_placement replicated."
)


# read(name, start, count): a run of a flattened tensor, 1-D [count], in whatever number format it has
Read = Callable[[str, int, int], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Where a tensor's bytes begin in a file."""

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def has_pieces(source: str) -> bool:
    """Whether a folder or a hub name has safetensors files of its own; transformers also finds converted ones."""
    return any(_cached(source, name) for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))


def open_pieces(source: str, flag: str = "--teacher") -> dict[str, Piece]:
    """Every tensor of a folder's or a hub name's safetensors files by name; only the headers are read.

    Raises HomodistilError for files that are absent or damaged, and OSError as transformers does for hub names.
    """
    files = [_cached(source, SAFE_WEIGHTS_NAME)]
    if files == [None]:
        index = _cached(source, SAFE_WEIGHTS_INDEX_NAME)
        if index is None:
            raise HomodistilError(
                "DATA-TEACHER",
                f"{flag} {source}: neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}",
                MEND,
            )
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        files = [_cached(source, name) for name in names]
        if None in files:
            missing = names[files.index(None)]
            raise HomodistilError(
                "DATA-TEACHER", f"{flag} {source}: {missing} is missing", "Copy or download it again."
            )
    return {_new_name(name): piece for path in files if path for name, piece in header(path).items()}


def _cached(source: str, name: str) -> Path | None:
    found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)


def _new_name(name: str) -> str:
    return next((name.removesuffix(old) + new for old, new in OLD_NAMES.items() if name.endswith(old)), name)


def header(path: Path) -> dict[str, Piece]:
    """The tensors of one safetensors file. Raises HomodistilError if the file is not whole."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if length > size:
                raise ValueError("its header is longer than the file")
            entries = json.loads(file.read(length))
        start = LENGTH_BYTES + length
        pieces, end = {}, start
        for name, entry in entries.items():
            if name != "__metadata__":
                dtype, shape, (first, last) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
                if last - first != math.prod(shape) * dtype.itemsize:
                    raise ValueError(f"{name} has another size than its shape {shape}")
                pieces[name] = Piece(path=path, offset=start + first, dtype=dtype, shape=shape)
                end = max(end, start + last)
        if end != size:
            raise ValueError(f"its header tells of {end} bytes")
    except (ValueError, KeyError, TypeError) as error:
        raise HomodistilError(
            "DATA-CORRUPT",
            f"{path} ({size} bytes) is not a whole safetensors file of plain tensors: {error}",
            "Copy or download the file again.",
        ) from error
    return pieces


def reader(pieces: dict[str, Piece]) -> Read:
    """Read from the files, in their own number format.

    Plain reads: safetensors' own slices map a file as private memory, all of which counts against a rank's limit.
    """

    def read(name: str, start: int, count: int) -> torch.Tensor:
        piece = pieces[name]
        values = bytearray(count * piece.dtype.itemsize)
        with piece.path.open("rb", buffering=0) as file:
            file.seek(piece.offset + start * piece.dtype.itemsize)
            view = memoryview(values)
            while view:
                got = file.readinto(view)
                if not got:
                    raise OSError(f"{piece.path} became shorter while it was read")
                view = view[got:]
        return torch.frombuffer(values, dtype=piece.dtype)

    return read


def reader_of(model: PreTrainedModel) -> Read:
    """Read from a model that is whole in memory."""
    tensors = _saved(model)
    return lambda name, start, count: tensors[name].detach().view(-1)[start : start + count]


def outline(config: object, family: Family, stays_fused: bool = False) -> PreTrainedModel:
    """The model of a configuration with names and shapes alone: its tensors are on the meta device, and fused matrices
    taken apart, or as files have them where it `stays_fused`. Raises ValueError for a configuration that transformers
    makes no model of."""
    loader = AUTO_CLASSES[family.language_model]
    with torch.device("meta"):
        try:
            model = loader.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
        except (KeyError, TypeError, RuntimeError, ZeroDivisionError) as error:
            raise ValueError(f"transformers makes no model of its config.json ({error!r})") from error
        return model if family.fused and stays_fused else taken_apart(model, family)


def unfilled(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same configuration in eval mode whose weights hold anything; drawing them would cost the most."""
    with no_init_weights():
        built = type(model)._from_config(copy.deepcopy(model.config), dtype=torch.float32)
    built.tie_weights()
    keep_generation(model, built)
    return taken_apart(built, plan_for(built.config).family).eval()


def exact_buffers(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, in which modules without weights compute anew what they know from the configuration alone.

    Rotary frequencies that were computed in low precision stand for other positions.
    """
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and module._non_persistent_buffers_set and not list(module.parameters()):
            kind: Any = type(module)
            for name, buffer in kind(config).named_buffers(recurse=False):
                setattr(module, name, buffer.to(module.get_buffer(name).device))
    return model


def check_pieces(
    source: str,
    model: PreTrainedModel,
    pieces: dict[str, Piece],
    plan: WidthPlan,
    flag: str = "--teacher",
) -> set[str]:
    """Compare files with what the model needs; returns the names that the files lack, for the caller to judge.

    Tensors that the model has no place for are passed over, as transformers does, unless a model of its family may have
    them, in any layer and with any configuration, and transformers does not say that they mean nothing. Raises
    HomodistilError for those and for other shapes.
    """
    needed = {name: tuple(tensor.shape) for name, tensor in _saved(model).items()}
    tied = set(model.state_dict()) - set(needed)
    whole = replace(plan, family=FAMILIES[plan.family.model_type])
    idle = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    surplus = sorted(
        name
        for name in pieces
        if name not in needed and name not in tied and whole.find(name) and not any(old.search(name) for old in idle)
    )
    if surplus:
        raise HomodistilError(
            "DATA-TEACHER",
            f"{flag} {source}: its config.json has no place for {len(surplus)} tensors, first {surplus[0]}",
            "Put the config.json that the weights were saved with beside them.",
        )
    for name, shape in needed.items():
        if name in pieces and pieces[name].shape != shape:
            raise HomodistilError(
                "DATA-TEACHER",
                f"{flag} {source}: {name} is {list(pieces[name].shape)}, its config.json makes it {list(shape)}",
                "Put the config.json that the weights were saved with beside them.",
            )
    _check_tied(source, model, pieces, flag)
    return set(needed) - set(pieces)


def _check_tied(source: str, model: PreTrainedModel, pieces: dict[str, Piece], flag: str) -> None:
    """A tensor that the configuration ties to another one is that one, where files hold both."""
    names = model.state_dict(keep_vars=True)
    first = {id(tensor): name for name, tensor in _saved(model).items()}
    for name, tensor in names.items():
        kept = first[id(tensor)]
        if kept != name and {kept, name} <= pieces.keys() and not _alike(pieces[kept], pieces[name]):
            raise HomodistilError(
                "DATA-TEACHER",
                f"{flag} {source}: its config.json ties {name} to {kept}, and its files hold two different ones",
                'If the model was trained so, put "tie_word_embeddings": false into config.json.',
            )


def _alike(one: Piece, other: Piece) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    both, count = reader({"one": one, "other": other}), math.prod(one.shape)
    runs = ((start, min(COMPARED, count - start)) for start in range(0, count, COMPARED))
    return all(torch.equal(both("one", *run), both("other", *run)) for run in runs)


def check_own_head(source: str, model: PreTrainedModel, family: Family, flag: str = "--teacher") -> None:
    """A vocabulary head that the configuration unties must be in the files: transformers takes the embedding for it.

    Raises HomodistilError.
    """
    if has_own_head(model, family) and HEAD not in open_pieces(source, flag):
        raise HomodistilError(
            "DATA-TEACHER",
            f"{flag} {source}: its config.json says that its vocabulary head is its own, and no file has a {HEAD}",
            'Copy all of its weight files, or put "tie_word_embeddings": true into config.json if it was trained so.',
        )


def _saved(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Parameters and saved buffers, tied ones under their first name only."""
    saved = set(model.state_dict())
    return dict(model.named_parameters()) | {name: b for name, b in model.named_buffers() if name in saved}
