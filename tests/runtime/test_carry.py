"""Pieces to runs, on one rank; tests/integration has the ranks."""

import itertools
import types
from typing import Any

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler

from homodistil_ds.runtime.carry import SCALE, Piece, exchange, moving_scale


def test_any_runs_are_joined_from_the_pieces_that_hold_them_in_whatever_order() -> None:
    state = {name: torch.randn(3, 7) for name in ("a", "b")}
    cuts = [("b", 4, 7), ("a", 0, 2), ("a", 5, 7), ("b", 0, 4), ("a", 2, 5)]
    pieces = [Piece(name=n, offset=first, values=state[n][:, first:last]) for n, first, last in cuts]
    for first, last in itertools.combinations(range(8), 2):
        wanted = [("b", first, last - first), ("a", 0, last)]
        found = exchange(pieces, wanted)
        assert torch.equal(found[0], state["b"][:, first:last])
        assert torch.equal(found[1], state["a"][:, :last])


def test_a_run_that_one_piece_holds_is_not_copied() -> None:
    piece = Piece(name="a", offset=0, values=torch.randn(3, 7))
    assert exchange([piece], [("a", 2, 5)])[0].data_ptr() == piece.values[:, 2:].data_ptr()


def engine_with(scaler: Any) -> Any:
    return types.SimpleNamespace(optimizer=types.SimpleNamespace(loss_scaler=scaler))


@pytest.mark.parametrize("scaler", [None, LossScaler(scale=1.0)])
def test_a_loss_scale_that_stands_still_is_neither_kept_nor_changed(scaler: Any) -> None:
    assert moving_scale(engine_with(scaler)) == {}


def test_of_a_loss_scale_what_moves_can_be_read_and_written() -> None:
    scaler = DynamicLossScaler(2.0**16, 2.0, 1000, 1, 2, False)
    assert moving_scale(engine_with(scaler)).keys() >= SCALE
    moving_scale(engine_with(scaler))["cur_scale"] = 8.0
    assert scaler.loss_scale == 8.0
