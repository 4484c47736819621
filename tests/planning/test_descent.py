"""What is refused from the configurations of a run alone, before anything is loaded."""

from typing import Any

import pytest

from homodistil_ds.errors import HomodistilError
from homodistil_ds.planning.descent import check_recomputed, descent_of
from homodistil_ds.presets import PRESETS


def test_layers_run_once_more_hand_no_gradient_to_what_is_read_inside_them_when_sharded() -> None:
    check_recomputed({"logits", "hidden", "embedding"}, sharded=True)
    check_recomputed({"attention", "queries", "keys"}, sharded=False)
    with pytest.raises(HomodistilError, match="attention, keys, queries") as caught:
        check_recomputed({"logits", "queries", "keys", "attention"}, sharded=True)
    assert caught.value.error_id == "CFG-RECOMPUTE"


def test_the_configuration_after_cuts_is_judged_at_the_start_too() -> None:
    def machine(stage: int) -> dict[str, Any]:
        return {"zero_optimization": {"stage": stage}, "activation_checkpointing": {}}

    config = PRESETS["demo"]()
    assert descent_of(config, machine(2), None).target == descent_of(config, machine(2), machine(2)).target
    with pytest.raises(HomodistilError, match="inside the layers"):
        descent_of(config, machine(2), machine(3))
