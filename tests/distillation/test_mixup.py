"""Which examples are mixed in which shares (X1)."""

import numpy as np
import pytest
import torch

from homodistil_ds.distillation.mixup import draw, mix, with_copy


def test_a_draw_is_a_function_of_seed_and_step() -> None:
    partner, share = draw(3, 7, 50, 0.4)
    np.random.seed(1)
    for own, other in zip(draw(3, 7, 50, 0.4), (partner, share), strict=True):
        np.testing.assert_array_equal(own, other)
    for seed, step in ((4, 7), (3, 8), (-3, 7)):
        others = draw(seed, step, 50, 0.4)
        assert not np.array_equal(others[0], partner)
        assert not np.array_equal(others[1], share)


def test_every_example_is_somebodys_partner_once() -> None:
    partner, share = draw(0, 1, 64, 0.4)
    assert sorted(partner.tolist()) == list(range(64))
    assert share.shape == (64,)
    assert share.dtype == np.float32


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, 8.0])
def test_shares_have_the_mean_and_the_spread_of_their_beta(alpha: float) -> None:
    """Variance of Beta(a, a): 1 / (8 a + 4)."""
    shares = np.concatenate([draw(0, step, 500, alpha)[1] for step in range(1, 41)]).astype(np.float64)
    assert ((shares >= 0) & (shares <= 1)).all()
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    assert shares.var() == pytest.approx(1 / (8 * alpha + 4), rel=0.05)


@pytest.mark.parametrize("count", [1, 7, 8, 32])
def test_copies_are_as_many_as_asked_and_evenly_spread(count: int) -> None:
    assert with_copy(count, 0.0).tolist() == []
    assert with_copy(count, 1.0).tolist() == list(range(count))
    places = with_copy(count, 0.25)
    assert len(places) == round(count / 4)
    assert len(set(places.tolist())) == len(places)
    assert all(0 <= place < count for place in places)
    gaps = np.diff([*places, *(places[:1] + count)])
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


def test_a_mixture_is_the_first_at_share_1_the_second_at_share_0_and_linear_between() -> None:
    first, second = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    assert torch.equal(mix(first, second, torch.ones(3)), first)
    assert torch.equal(mix(first, second, torch.zeros(3)), second)
    share = torch.tensor([0.25, 0.5, 1.0])
    for row, part in enumerate(share.tolist()):
        torch.testing.assert_close(mix(first, second, share)[row], part * first[row] + (1 - part) * second[row])


def test_a_mixture_keeps_the_precision_of_its_states() -> None:
    states = torch.randn(2, 3, 4, dtype=torch.bfloat16)
    assert mix(states, states, torch.tensor([0.3, 0.7])).dtype is torch.bfloat16
