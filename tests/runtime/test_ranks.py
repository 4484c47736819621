"""Which group differs first, and on which ranks; which faults are a peer's."""

import pytest
import torch
import torch.distributed as dist

from homodistil_ds.runtime.ranks import (
    agree_to_stop,
    differing,
    first_difference,
    lost,
    lowest,
    rows,
    smallest,
    to_first,
    told_by,
)

NAMES = ["hidden", "ffn.0", "qk.0"]


def test_equal_rows_have_no_difference() -> None:
    assert first_difference(NAMES, [[1, 2, 3]]) is None
    assert first_difference(NAMES, [[1, 2, 3]] * 4) is None


def test_the_first_group_that_differs_is_named_with_every_rank_that_disagrees_with_rank_0() -> None:
    rows = [[1, 2, 3], [1, 2, 9], [1, 7, 3], [1, 2, 3], [1, 8, 9]]
    assert first_difference(NAMES, rows) == ("ffn.0", [2, 4])


def test_a_wrong_rank_0_is_reported_as_all_others() -> None:
    assert first_difference(NAMES, [[5, 2, 3], [1, 2, 3], [1, 2, 3]]) == ("hidden", [1, 2])


def test_one_process_agrees_with_itself() -> None:
    assert agree_to_stop(None) is None
    assert agree_to_stop("SIGTERM") == "SIGTERM"


@pytest.mark.parametrize(
    "text",
    [
        "[gloo/transport/tcp/pair.cc:525] Connection closed by peer [127.0.0.1]:52771",
        "[gloo/transport/tcp/pair.cc:547] Read error [127.0.0.1]:1234: Connection reset by peer",
        "[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1000ms for recv operation to complete",
        "NCCL error: remote process exited or there was a network error\nncclRemoteError: A call failed possibly",
    ],
)
def test_a_peer_that_left_is_recognised(text: str) -> None:
    assert lost(RuntimeError(text))
    assert lost(dist.DistBackendError(text))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        torch.OutOfMemoryError("CUDA out of memory"),
        dist.DistBackendError("ncclInvalidUsage: Duplicate GPU detected"),
        ValueError("Connection closed by peer"),
    ],
)
def test_other_faults_are_not_blamed_on_a_peer(error: Exception) -> None:
    assert not lost(error)


def test_one_process_is_everybody() -> None:
    assert lowest(None) is None
    assert lowest("broken") == (0, "broken")
    assert told_by(0, "name") == "name"
    assert to_first("entry") == ["entry"]
    assert smallest(7) == 7
    assert rows([1.0, 2.0]).tolist() == [[1.0, 2.0]]
    assert differing({"hidden": 3}) is None
