"""What a step of a task sees is a function of seed and step: not of ranks, micro batches or the steps before it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig
from words import CLS, PAD, SEP, words_tokenizer

from homodistil_ds.data.corpus import Order
from homodistil_ds.data.glue import Examples
from homodistil_ds.data.task_batches import WINDOW, Encoded, TaskBatch, TaskBatches, encode, padded, padded_pair
from homodistil_ds.distillation import mixup
from homodistil_ds.models.families import FAMILIES
from homodistil_ds.models.tasks import task_forward
from homodistil_ds.task_config import MixupConfig

EXAMPLES, GLOBAL, SEED = 150, 8, 5
SPLITS = [(world, micro) for world in (1, 2, 4) for micro in (1, 2, 4, 8) if world * micro <= GLOBAL]
Row = tuple[tuple[int, ...], tuple[int, ...], float, float, float]


def texts(count: int, seed: int) -> tuple[str, ...]:
    """No two alike: the first word is the example's own."""
    generator = np.random.default_rng(seed)
    return tuple(
        " ".join(f"w{number}" for number in [place, *generator.integers(1000, 4000, generator.integers(1, 20))])
        for place in range(count)
    )


def encoded(pairs: bool = True) -> Encoded:
    examples = Examples(
        first=texts(EXAMPLES, 0),
        second=texts(EXAMPLES, 1) if pairs else None,
        labels=np.arange(EXAMPLES) % 3,
        indices=np.arange(EXAMPLES),
    )
    return encode(examples, words_tokenizer(), 32)


PAIRS = encoded()


def batches(rank: int = 0, world_size: int = 1, micro_batch: int = GLOBAL, ratio: float = 1.0) -> TaskBatches:
    return TaskBatches(
        examples=PAIRS,
        order=Order(EXAMPLES, SEED),
        seed=SEED,
        global_batch=GLOBAL,
        micro_batch=micro_batch,
        rank=rank,
        world_size=world_size,
        pad_id=PAD,
        mixing=MixupConfig(ratio=ratio),
    )


def unpadded(ids: torch.Tensor, types: torch.Tensor, row: int) -> tuple[int, ...]:
    real = ids[row] != PAD
    return (*ids[row][real].tolist(), *types[row][real].tolist())


def rows_of(batch: TaskBatch) -> tuple[list[Row], list[Row]]:
    """Plain and mixed rows, without what padding depends on: both texts, both labels, the share."""
    ids, mask, types, other_ids, other_types, share = batch.shown
    assert ids is not None
    assert mask is not None
    assert types is not None
    assert other_ids is not None
    assert other_types is not None
    assert share is not None
    assert torch.equal(share, batch.pairs.share)
    assert torch.equal(mask.bool(), ((ids != PAD) & (share > 0)[:, None]) | ((other_ids != PAD) & (share < 1)[:, None]))
    assert int(mask.sum(1).max()) == mask.shape[1], "no column without a token"
    rows: list[Row] = [
        (
            unpadded(ids, types, row),
            unpadded(other_ids, other_types, row),
            float(batch.labels[row]),
            float(batch.pairs.other_labels[row]),
            float(share[row]),
        )
        for row in range(len(ids))
    ]
    return rows[: batch.pairs.plain], rows[batch.pairs.plain :]


def step_of(step: int, world_size: int, micro_batch: int, ratio: float = 1.0) -> tuple[list[Row], list[Row]]:
    plain: list[Row] = []
    mixed: list[Row] = []
    for rank in range(world_size):
        for batch in batches(rank, world_size, micro_batch, ratio).micro_batches(step):
            assert batch.pairs.plain == micro_batch
            own, copies = rows_of(batch)
            plain += own
            mixed += copies
    return plain, mixed


@pytest.mark.parametrize("pairs", [True, False])
def test_texts_are_cut_to_the_length_and_of_two_the_longer_one_first(pairs: bool) -> None:
    long, short = " ".join(f"w{n}" for n in range(30)), "w900 w901"
    examples = Examples(first=(long, short), second=(short, long) if pairs else None, labels=None, indices=np.arange(2))
    found = encode(examples, words_tokenizer(), 12)
    assert found.labels is None
    assert found.lengths.tolist() == ([12, 12] if pairs else [12, 4])
    kept, few = [5 + n for n in range(12)], [905, 906]
    if pairs:
        assert found.types is not None
        assert found.ids[0].tolist() == [CLS, *kept[:7], SEP, *few, SEP]
        assert found.ids[1].tolist() == [CLS, *few, SEP, *kept[:7], SEP]
        assert found.types[0].tolist() == [0] * 9 + [1] * 3
        assert found.types[1].tolist() == [0] * 4 + [1] * 8
    else:
        assert found.types is None
        assert found.ids[0].tolist() == [CLS, *kept[:10], SEP]


def test_padding_is_masked_and_ends_with_the_longest_row() -> None:
    rows = np.array([3, 4, 5])
    few = PAIRS.take(rows)
    for length in (0, 40):
        ids, mask, types = padded(few, PAD, length)
        assert types is not None
        assert ids.shape == mask.shape == types.shape == (3, max(length, few.lengths.max()))
        for row, (own, own_types) in enumerate(zip(few.ids, few.types or (), strict=True)):
            end = len(own)
            assert ids[row, :end].tolist() == own.tolist()
            assert types[row, :end].tolist() == own_types.tolist()
            assert mask[row].tolist() == [1] * end + [0] * (mask.shape[1] - end)
            assert (ids[row, end:] == PAD).all()


def test_a_pair_of_rows_is_masked_where_both_end() -> None:
    order = np.argsort(PAIRS.lengths)
    short, long = PAIRS.take(order[:2]), PAIRS.take(order[-2:])
    for first, second in ((short, long), (long, short)):
        ids, mask, _, other_ids, _ = padded_pair(first, second, torch.full((2,), 0.5), PAD)
        assert ids is not None
        assert mask is not None
        assert other_ids is not None
        assert ids.shape == other_ids.shape
        assert mask.sum(1).tolist() == long.lengths.tolist()


@pytest.mark.parametrize(("world_size", "micro_batch"), SPLITS)
@pytest.mark.parametrize("ratio", [0.25, 1.0])
def test_the_ranks_together_see_the_same_global_batch_at_any_split(
    ratio: float, world_size: int, micro_batch: int
) -> None:
    for step in (1, 2, WINDOW + 1, 20):
        assert step_of(step, world_size, micro_batch, ratio) == step_of(step, 1, GLOBAL, ratio)


@pytest.mark.parametrize(("world_size", "micro_batch"), SPLITS)
@pytest.mark.parametrize("ratio", [0.25, 0.5, 1.0])
def test_a_mean_over_micro_batches_weighs_every_mixed_row_alike(
    ratio: float, world_size: int, micro_batch: int
) -> None:
    ranks = [batches(rank, world_size, micro_batch, ratio) for rank in range(world_size)]
    parts = [part for own in ranks for part in own.micro_batches(1)]
    copies = round(ratio * GLOBAL)
    assert sum(len(part.labels) - micro_batch for part in parts) == copies
    assert all(part.pairs.weight / len(parts) == pytest.approx(1 / copies) for part in parts)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 1.0])
def test_partners_shares_and_labels_are_those_that_were_drawn(ratio: float) -> None:
    source = batches(ratio=ratio)
    for step in (1, 7):
        rows = source.rows(step)
        partner, share = mixup.draw(SEED, step, GLOBAL, 0.4)
        plain, mixed = step_of(step, 2, 2, ratio)
        assert [row[0] for row in plain] == [row[1] for row in plain] == [whole(row) for row in rows]
        assert all(row[4] == 1.0 and row[2] == row[3] for row in plain)
        copied = mixup.with_copy(GLOBAL, ratio)
        assert mixed == [
            (
                whole(rows[place]),
                whole(rows[partner[place]]),
                float(rows[place] % 3),
                float(rows[partner[place]] % 3),
                float(share[place]),
            )
            for place in copied
        ]


@pytest.mark.parametrize("share", [1.0, 0.0])
def test_a_mixture_that_is_wholly_one_example_is_that_example_to_a_model(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A share of exactly 1 makes mixing plain distillation: the partner shows nowhere, not as positions either."""
    partner = np.roll(np.arange(GLOBAL), 3)
    monkeypatch.setattr(mixup, "draw", lambda *_: (partner, np.full(GLOBAL, share, np.float32)))
    (batch,) = batches().micro_batches(1)
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=4005, num_labels=3, initializer_range=0.5, **small)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        logits = task_forward(model, FAMILIES["bert"], *batch.shown, reads={"logits"}).logits
    assert logits is not None
    expected = logits[:GLOBAL] if share == 1.0 else logits[:GLOBAL][partner]
    torch.testing.assert_close(logits[GLOBAL:], expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits[:GLOBAL], logits[:GLOBAL][partner], atol=1e-2), "examples are told apart"


def whole(example: int) -> tuple[int, ...]:
    assert PAIRS.types is not None
    return (*PAIRS.ids[example].tolist(), *PAIRS.types[example].tolist())


@pytest.mark.parametrize("size", [GLOBAL - 1, GLOBAL, 37, 144, EXAMPLES])
def test_every_example_comes_once_per_epoch(size: int) -> None:
    """The last step of an epoch also begins the next one, so a run of whole epochs repeats less than a batch."""
    source = replace(batches(), examples=PAIRS.take(np.arange(size)), order=Order(size, SEED))
    for epochs in (1, 2, 3):
        steps = -(-epochs * size // GLOBAL)
        seen = np.concatenate([source.rows(step) for step in range(1, steps + 1)])
        times = np.bincount(seen, minlength=size)
        assert times.min() >= epochs
        assert (times - epochs).sum() == steps * GLOBAL - epochs * size < GLOBAL


def test_a_step_asked_for_alone_is_that_of_the_sequence() -> None:
    source = batches()
    in_order = [source.rows(step).tolist() for step in range(1, 60)]
    for step in (59, 3, 17, 40, 19, 20):
        assert batches().rows(step).tolist() == in_order[step - 1]
    assert in_order[0] != replace(batches(), seed=SEED + 1).rows(1).tolist()


def test_a_batch_is_of_like_lengths() -> None:
    """The reason for the windows: less than half the padding of batches as they come."""
    source, order = batches(), Order(EXAMPLES, SEED)

    def padding(rows: np.ndarray) -> float:
        lengths = PAIRS.lengths[rows]
        return float((lengths.max() - lengths).sum())

    steps = range(1, EXAMPLES // GLOBAL + 1)
    sorted_ones = sum(padding(source.rows(step)) for step in steps)
    assert sorted_ones < 0.5 * sum(padding(order.rows((step - 1) * GLOBAL, GLOBAL)) for step in steps)


@pytest.mark.parametrize("ratio", [0.25, 1.0])
@pytest.mark.parametrize("micro_batch", [1, 4])
def test_a_teacher_whose_plain_logits_nobody_reads_sees_the_mixed_rows_alone(micro_batch: int, ratio: float) -> None:
    source = batches(micro_batch=micro_batch, ratio=ratio)
    both = list(source.micro_batches(2))
    alone = list(replace(source, teacher_reads_plain=False).micro_batches(2))
    for batch, without in zip(both, alone, strict=True):
        mixed = len(batch.labels) - micro_batch
        for shown, taught, few in zip(batch.shown, batch.taught, without.taught, strict=True):
            assert shown is not None
            assert taught is not None
            assert few is not None
            assert torch.equal(taught, shown)
            # A batch without a mixed row is shown whole: a teacher in pieces needs every rank in every pass.
            assert torch.equal(few, shown[micro_batch:] if mixed else shown)


def test_without_mixing_a_batch_is_its_examples() -> None:
    source = replace(batches(1, 2, 2), mixing=None)
    rows = source.rows(3)[4:]
    for place, batch in enumerate(source.micro_batches(3)):
        few = PAIRS.take(rows[2 * place : 2 * place + 2])
        for part, expected in zip(batch.shown, padded(few, PAD), strict=True):
            assert part is not None
            assert expected is not None
            assert torch.equal(part, expected)
        assert batch.taught is batch.shown
        assert batch.labels.tolist() == (rows[2 * place : 2 * place + 2] % 3).tolist()
        assert batch.pairs.plain == len(batch.labels) == 2


def test_the_tokens_of_a_step_count_every_shown_row() -> None:
    mean = float(PAIRS.lengths.mean())
    assert replace(batches(), mixing=None).tokens_per_step == pytest.approx(GLOBAL * mean)
    assert batches(ratio=0.5).tokens_per_step == pytest.approx(1.5 * GLOBAL * mean)
