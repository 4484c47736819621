"""Masks are a pure function of seed and sample index, whatever the split over ranks."""

import numpy as np
import pytest
import torch
from transformers import BertTokenizerFast

from homodistil_ds.data.masking import Masking, masked_batch, masking_for
from homodistil_ds.errors import HomodistilError

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CLS, SEP, MASK = 2, 3, 4


def masking(probability: float = 0.15) -> Masking:
    return Masking(mask_id=MASK, vocabulary_size=1000, special_ids=(0, 1, 2, 3, 4), probability=probability)


def rows(count: int, length: int = 128) -> np.ndarray:
    tokens = np.random.default_rng(0).integers(5, 1000, (count, length)).astype(np.uint16)
    tokens[:, 0], tokens[:, -1] = CLS, SEP
    return tokens


def test_split_batch_equals_the_whole() -> None:
    tokens, indices = rows(24), np.arange(24) * 1000
    whole = masked_batch(tokens, indices, masking(), seed=1)
    for size in (1, 3, 8):
        parts = [masked_batch(tokens[i : i + size], indices[i : i + size], masking(), 1) for i in range(0, 24, size)]
        for name in ("input_ids", "positions", "labels"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


def test_draws_differ_between_seeds_and_indices() -> None:
    tokens = np.repeat(rows(1), 50, axis=0)
    one = masked_batch(tokens, np.arange(50), masking(), seed=0).positions
    other = masked_batch(tokens, np.arange(50), masking(), seed=1).positions
    assert len({tuple(row) for row in torch.cat([one, other]).tolist()}) == 100


@pytest.mark.parametrize(("probability", "count"), [(0.15, 19), (0.001, 1), (0.999, 126)])
def test_constant_count_inside_the_frame(probability: float, count: int) -> None:
    tokens = rows(16)
    tokens[:, 5:40] = SEP  # too many specials for the highest probability to avoid
    original = tokens.copy()
    batch = masked_batch(tokens, np.arange(16), masking(probability), seed=0)
    assert batch.positions.shape == batch.labels.shape == (16, count)
    assert {batch.input_ids.dtype, batch.positions.dtype, batch.labels.dtype} == {torch.int64}
    assert (batch.positions.diff(dim=1) > 0).all()
    assert batch.positions.min() >= 1
    assert batch.positions.max() <= 126
    before = torch.from_numpy(original.astype(np.int64))
    assert torch.equal(before.gather(1, batch.positions), batch.labels)
    assert torch.equal(batch.input_ids.scatter(1, batch.positions, batch.labels), before)
    assert np.array_equal(tokens, original)
    if count < 90:
        assert (batch.labels > MASK).all()


def test_shares_of_mask_random_and_unchanged() -> None:
    batch = masked_batch(rows(2000), np.arange(2000), masking(), seed=0)
    shown = batch.input_ids.gather(1, batch.positions)
    masked, same = shown == MASK, shown == batch.labels
    assert masked.float().mean().item() == pytest.approx(0.8, abs=0.01)
    assert same.float().mean().item() == pytest.approx(0.1, abs=0.01)
    replaced = shown[~masked & ~same]
    assert replaced.min() > MASK
    assert len(replaced.unique()) > 900
    visits = torch.bincount(batch.positions.ravel(), minlength=128)[1:-1].float()
    assert (visits / 2000 - 19 / 126).abs().max() < 0.04


def test_masking_for() -> None:
    words = SPECIAL + [f"w{n}" for n in range(4000)]
    tokenizer = BertTokenizerFast(vocab={word: n for n, word in enumerate(words)})
    found = masking_for(tokenizer, 5000, 0.2)
    assert found == Masking(MASK, len(tokenizer), (0, 1, 2, 3, 4), 0.2)
    with pytest.raises(HomodistilError) as caught:
        masking_for(tokenizer, 100, 0.2)
    assert caught.value.error_id == "DATA-VOCABULARY"
    maskless = BertTokenizerFast(vocab={word: n for n, word in enumerate(SPECIAL)})
    maskless.mask_token = None
    with pytest.raises(HomodistilError) as caught:
        masking_for(maskless, 5000, 0.2)
    assert caught.value.error_id == "DATA-NO-MASK-TOKEN"
