"""What a start refuses about its machine before it builds an engine."""

import pytest

from homodistil_ds.errors import HomodistilError
from homodistil_ds.methods.opening import check_recomputed


def test_layers_run_once_more_hand_no_gradient_to_what_is_read_inside_them_when_sharded() -> None:
    check_recomputed({"logits", "hidden", "embedding"}, sharded=True)
    check_recomputed({"attention", "queries", "keys"}, sharded=False)
    with pytest.raises(HomodistilError, match="attention, keys, queries") as caught:
        check_recomputed({"logits", "queries", "keys", "attention"}, sharded=True)
    assert caught.value.error_id == "CFG-RECOMPUTE"
