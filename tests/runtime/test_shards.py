"""Runs of flattened parameters, whatever their ends."""

import itertools

import pytest
import torch

from homodistil_ds.models.width import Dim
from homodistil_ds.pruning.shrink import cut_run, cut_tensor
from homodistil_ds.runtime.shards import runs


@pytest.mark.parametrize(("rows", "columns"), [(4, 3), (1, 7), (5, 1)])
def test_the_blocks_of_any_run_are_the_entries_of_the_matrix_in_order(rows: int, columns: int) -> None:
    matrix = torch.arange(rows * columns).view(rows, columns)
    for start, stop in itertools.combinations(range(rows * columns + 1), 2):
        blocks = list(runs(matrix.flatten()[start:stop], start, columns))
        assert len(blocks) <= 3
        assert torch.equal(torch.cat([block.flatten() for _, _, block in blocks]), matrix.flatten()[start:stop])
        for row, column, block in blocks:
            assert torch.equal(matrix[row : row + block.shape[0], column : column + block.shape[1]], block)


SOME = {"a": torch.tensor([0, 2, 3]), "b": torch.tensor([1, 4])}


@pytest.mark.parametrize(
    ("shape", "dims"),
    [
        ((5,), (Dim("a"),)),
        ((10,), (Dim("b", 2),)),
        ((4, 6), (Dim("a"), Dim("b"))),
        ((5, 10), (Dim("b"), Dim("b", 2))),
        ((3, 5), (None, Dim("b"))),
        ((5, 3), (Dim("b"), None)),
        ((4, 4), (Dim("a"), Dim("a"))),
        ((2, 3), (Dim("other"), None)),
    ],
)
def test_what_is_left_of_the_runs_of_any_split_is_the_cut_tensor(
    shape: tuple[int, ...], dims: tuple[Dim | None, ...]
) -> None:
    size = torch.Size(shape).numel()
    tensor = torch.arange(2.0 * size).view(2, *shape)
    whole = torch.stack([cut_tensor(half, dims, SOME) for half in tensor]).flatten(1)
    for start, stop in itertools.combinations(range(size + 1), 2):
        place = 0
        for first, last in ((0, start), (start, stop), (stop, size)):
            offset, left = cut_run(tensor.flatten(1)[:, first:last], first, shape, dims, SOME)
            if left.shape[1]:
                assert offset == place
            assert torch.equal(left, whole[:, place : place + left.shape[1]])
            place += left.shape[1]
        assert place == whole.shape[1]
