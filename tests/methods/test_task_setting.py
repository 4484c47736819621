"""Which examples a run on a task trains on, and which it holds out of them."""

from __future__ import annotations

import numpy as np
import pytest

from homodistil_ds.errors import HomodistilError
from homodistil_ds.methods.task_setting import used_and_held_out

EXAMPLES = 1000


@pytest.mark.parametrize("fraction", [1.0, 0.1])
def test_what_is_held_out_is_part_of_what_would_be_used_and_is_not_trained_on(fraction: float) -> None:
    whole, none = used_and_held_out(EXAMPLES, fraction, 0.0, seed=3)
    used, held_out = used_and_held_out(EXAMPLES, fraction, 0.1, seed=3)
    assert len(none) == 0
    assert sorted([*used, *held_out]) == whole.tolist()
    assert len(held_out) == pytest.approx(0.1 * fraction * EXAMPLES, abs=10)


def test_a_teacher_of_any_seed_has_seen_nothing_that_another_seed_holds_out() -> None:
    used = [used_and_held_out(EXAMPLES, 0.5, 0.1, seed)[0] for seed in (0, 1)]
    held_out = [used_and_held_out(EXAMPLES, 0.5, 0.1, seed)[1] for seed in (0, 1)]
    assert not np.array_equal(*used)
    assert not set(used[0]) & set(held_out[1])
    assert not set(used[1]) & set(held_out[0])


@pytest.mark.parametrize(("examples", "held_out"), [(4, 0.1), (10, 0.99)])
def test_a_share_that_leaves_one_side_empty_is_refused(examples: int, held_out: float) -> None:
    with pytest.raises(HomodistilError, match=r"task\.held_out") as raised:
        used_and_held_out(examples, 1.0, held_out, seed=0)
    assert raised.value.error_id == "CFG-RANGE"
