"""Which group differs first, and on which ranks."""

from homodistil_ds.runtime.ranks import first_difference

NAMES = ["hidden", "ffn.0", "qk.0"]


def test_equal_rows_have_no_difference() -> None:
    assert first_difference(NAMES, [[1, 2, 3]]) is None
    assert first_difference(NAMES, [[1, 2, 3]] * 4) is None


def test_the_first_group_that_differs_is_named_with_every_rank_that_disagrees_with_rank_0() -> None:
    rows = [[1, 2, 3], [1, 2, 9], [1, 7, 3], [1, 2, 3], [1, 8, 9]]
    assert first_difference(NAMES, rows) == ("ffn.0", [2, 4])


def test_a_wrong_rank_0_is_reported_as_all_others() -> None:
    assert first_difference(NAMES, [[5, 2, 3], [1, 2, 3], [1, 2, 3]]) == ("hidden", [1, 2])
