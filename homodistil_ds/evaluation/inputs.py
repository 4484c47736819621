"""Made-up inputs that a model can be asked with: ids, a mask with padding, token types. It reads no text.

Legend: B batch, L length.
"""

from __future__ import annotations

import inspect

import torch
from transformers import PreTrainedModel

from homodistil_ds.evaluation import plain

SHAPES = ((1, 7), (3, 64))  # B, L of the batches that exports are compared on


def sample_inputs(model: PreTrainedModel, batch: int, length: int) -> dict[str, torch.Tensor]:
    """Every input the model takes, int64 [B, L], L being at most what it knows; in a batch the last row is padded."""
    length = min(length, plain.positions(model))
    generator = torch.Generator().manual_seed(1000 * batch + length)
    ids = torch.randint(model.config.vocab_size, (batch, length), generator=generator)
    padding = model.config.pad_token_id or 0
    ids[ids == padding] = padding + 1  # RoBERTa takes every padding id for padding, whatever the mask says
    mask = torch.ones_like(ids)
    if batch > 1:
        mask[-1, length // 2 :] = 0
        ids[mask == 0] = padding
    inputs = {"input_ids": ids, "attention_mask": mask}
    inputs |= for_decoder(model, ids)
    takes_types = "token_type_ids" in inspect.signature(model.forward).parameters
    if takes_types and getattr(model.config, "type_vocab_size", 1) > 1:  # RoBERTa has the parameter and one type
        types = torch.zeros_like(ids)
        types[:, length // 2 :] = 1
        inputs["token_type_ids"] = types
    return inputs


def for_decoder(model: PreTrainedModel, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the decoder of a model that has one behind its encoder reads beside ids [B, L]: some of them backwards."""
    if not model.config.is_encoder_decoder:
        return {}
    return {"decoder_input_ids": ids[:, : -(-ids.shape[1] // 2)].flip(1)}
