"""A rank that is slow by itself is named with its host, once; ranks that keep up are not."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from integration.processes import work

NAP = 0.25
pytestmark = pytest.mark.alone


def test_the_slow_rank_is_named_once_and_an_even_run_warns_of_nobody(
    tiny_teacher: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    found = work(2, "slow", tmp_path, teacher=tiny_teacher, corpus=tiny_corpus)
    assert found["even"]["warnings"] == []
    for case, rank in (("forward", 1), ("data", 0)):
        (line,) = found[case]["warnings"]
        assert f"rank {rank} on host {socket.gethostname()} is slow" in line
        ratio = float(re.search(r"slow: ([\d.]+) of", line)[1])  # type: ignore[index]
        assert ratio < 0.7
        assert found[case]["values"]["perf/straggler_ratio"] < 0.7
        assert found[case]["values"][f"perf_ranks/own_s_{rank}"] > NAP
        assert found[case]["values"][f"perf_ranks/own_s_{1 - rank}"] < NAP
    assert found["data"]["values"]["perf/data_wait_s_max"] == pytest.approx(NAP, rel=0.5)
    assert found["data"]["values"]["perf/data_wait_s_mean"] == pytest.approx(NAP / 2, rel=0.6)
    assert found["forward"]["values"]["perf/data_wait_s_max"] < NAP / 2
