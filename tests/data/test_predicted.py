"""What a decoder predicts: every next token, whatever the split into batches."""

import numpy as np
import torch

from homodistil_ds.data.predicted import NextTokens


def test_every_token_but_the_first_is_predicted_from_the_one_before_it() -> None:
    tokens = np.array([[7, 8, 9, 2], [5, 2, 6, 7]], np.uint16)
    batch = NextTokens().batch(tokens, np.arange(2), seed=3)
    assert torch.equal(batch.input_ids, torch.tensor([[7, 8, 9, 2], [5, 2, 6, 7]]))
    assert torch.equal(batch.positions, torch.tensor([[0, 1, 2], [0, 1, 2]]))
    assert torch.equal(batch.labels, torch.tensor([[8, 9, 2], [2, 6, 7]]))
    assert NextTokens().share(4) == 0.75
