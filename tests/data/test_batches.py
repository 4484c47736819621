"""What a step sees does not depend on how it is split over ranks and micro batches."""

from collections.abc import Iterable

import numpy as np
import pytest
import torch

from homodistil_ds.data.batches import Batches
from homodistil_ds.data.corpus import Corpus, Order
from homodistil_ds.data.masking import Masking
from homodistil_ds.data.predicted import Batch

TRAIN, HELD_OUT, LENGTH, GLOBAL = 20, 11, 18, 8
SPLITS = [(world, micro) for world in (1, 2, 4) for micro in (1, 2, 4, 8) if world * micro <= GLOBAL]
Whole = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def corpus() -> Corpus:
    rows = np.random.default_rng(0).integers(5, 1000, (TRAIN + HELD_OUT, LENGTH)).astype(np.uint16)
    rows[:, 0], rows[:, -1] = 2, 3
    return Corpus(train=rows[:TRAIN], held_out=rows[TRAIN:], fingerprint="", documents=0, tokens=0)


CORPUS = corpus()


def batches(rank: int, world_size: int, micro_batch: int, seed: int = 5) -> Batches:
    return Batches(
        corpus=CORPUS,
        prediction=Masking(mask_id=4, vocabulary_size=1000, special_ids=(0, 1, 2, 3, 4), probability=0.25),
        order=Order(TRAIN, seed),
        seed=seed,
        global_batch=GLOBAL,
        micro_batch=micro_batch,
        rank=rank,
        world_size=world_size,
    )


def joined(parts: Iterable[Batch]) -> Whole:
    parts = list(parts)
    return (
        torch.cat([part.input_ids for part in parts]),
        torch.cat([part.positions for part in parts]),
        torch.cat([part.labels for part in parts]),
    )


def step_of(world_size: int, micro_batch: int, step: int) -> Whole:
    return joined(
        part for rank in range(world_size) for part in batches(rank, world_size, micro_batch).micro_batches(step)
    )


def restored(whole: Whole) -> torch.Tensor:
    """The rows before masking."""
    ids, positions, labels = whole
    return ids.scatter(1, positions, labels)


def multiset(rows: torch.Tensor) -> list[tuple[int, ...]]:
    return sorted(map(tuple, rows.tolist()))


@pytest.mark.parametrize(("world_size", "micro_batch"), SPLITS)
def test_the_ranks_together_see_the_same_rows_masks_and_labels_at_any_split(world_size: int, micro_batch: int) -> None:
    for step in (1, 3, 4):  # the third step crosses the edge of the first epoch
        for own, whole in zip(step_of(world_size, micro_batch, step), step_of(1, GLOBAL, step), strict=True):
            assert torch.equal(own, whole)


@pytest.mark.parametrize(("world_size", "micro_batch"), SPLITS)
def test_every_rank_gets_whole_micro_batches_and_an_equal_share(world_size: int, micro_batch: int) -> None:
    for rank in range(world_size):
        sizes = [len(part.input_ids) for part in batches(rank, world_size, micro_batch).micro_batches(1)]
        assert sizes == [micro_batch] * (GLOBAL // world_size // micro_batch)


def test_consecutive_steps_visit_every_row_once_per_epoch() -> None:
    rows = torch.cat([restored(step_of(2, 2, step)) for step in range(1, 6)])  # 40 samples are two epochs
    every = multiset(torch.from_numpy(CORPUS.train.astype(np.int64)))
    assert multiset(rows[:TRAIN]) == every
    assert multiset(rows[TRAIN:]) == every
    assert not torch.equal(rows[:TRAIN], rows[TRAIN:])


def test_a_row_is_masked_anew_in_the_next_epoch_and_with_another_seed() -> None:
    first, second = (batches(0, 1, GLOBAL, seed) for seed in (5, 6))
    positions = [joined(source.micro_batches(step))[1] for source, step in ((first, 1), (first, 4), (second, 1))]
    assert not torch.equal(positions[0], positions[1])
    assert not torch.equal(positions[0], positions[2])


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_every_held_out_row_belongs_to_exactly_one_rank_with_the_same_masks_in_every_run(
    world_size: int, micro_batch: int
) -> None:
    parts = [list(batches(rank, world_size, micro_batch, 7).held_out()) for rank in range(world_size)]
    assert len({len(part) for part in parts}) == 1, "models in pieces need every rank in every forward pass"
    own = joined(batch for part in parts for batch, rows in part if rows)
    assert all(rows in (0, len(batch.input_ids)) for part in parts for batch, rows in part)
    whole = joined(batch for batch, _ in batches(0, 1, 100, 5).held_out())
    assert multiset(restored(own)) == multiset(torch.from_numpy(CORPUS.held_out.astype(np.int64)))
    assert multiset(torch.cat(own, dim=1)) == multiset(torch.cat(whole, dim=1))


def test_a_rank_without_a_held_out_row_takes_part_with_one_that_does_not_count() -> None:
    assert [rows for _, rows in batches(HELD_OUT, HELD_OUT + 1, 1).held_out()] == [0]
