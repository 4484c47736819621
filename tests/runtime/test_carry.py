"""Pieces to runs, on one rank; tests/integration has the ranks."""

import itertools

import torch

from homodistil_ds.runtime.carry import Piece, exchange


def test_any_runs_are_joined_from_the_pieces_that_hold_them_in_whatever_order() -> None:
    state = {name: torch.randn(3, 7) for name in ("a", "b")}
    cuts = [("b", 4, 7), ("a", 0, 2), ("a", 5, 7), ("b", 0, 4), ("a", 2, 5)]
    pieces = [Piece(name=n, shape=(7,), offset=first, values=state[n][:, first:last]) for n, first, last in cuts]
    for first, last in itertools.combinations(range(8), 2):
        wanted = [("b", first, last - first), ("a", 0, last)]
        found = exchange(pieces, wanted)
        assert torch.equal(found[0], state["b"][:, first:last])
        assert torch.equal(found[1], state["a"][:, :last])


def test_a_run_that_one_piece_holds_is_not_copied() -> None:
    piece = Piece(name="a", shape=(7,), offset=0, values=torch.randn(3, 7))
    assert exchange([piece], [("a", 2, 5)])[0].data_ptr() == piece.values[:, 2:].data_ptr()
