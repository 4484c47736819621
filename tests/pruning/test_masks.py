"""Masks: deterministic choice, monotone, equal head shapes, exact zeros, digests that see one bit."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, BertConfig, LlamaConfig

from homodistil_ds.models.families import plan_for
from homodistil_ds.models.forward import Student
from homodistil_ds.models.loading import load_teacher, twin
from homodistil_ds.models.width import Dim, WidthPlan, Widths
from homodistil_ds.pruning.masks import Masks, heads_in, top, zero_run
from homodistil_ds.pruning.shrink import entries
from homodistil_ds.runtime.shards import Shard, whole

STAIRS = (
    Widths(hidden=31, ffn=60, heads=4, head_size=8),
    Widths(hidden=25, ffn=60, heads=4, head_size=7),
    Widths(hidden=24, ffn=33, heads=3, head_size=7),
    Widths(hidden=15, ffn=1, heads=3, head_size=5),
    Widths(hidden=4, ffn=1, heads=1, head_size=4),
)


@pytest.fixture(scope="module")
def plan(tiny_teacher: Path) -> WidthPlan:
    return plan_for(AutoConfig.from_pretrained(tiny_teacher))


def random_values(plan: WidthPlan, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {group: torch.rand(size, generator=generator) for group, size in plan.groups().items()}


def narrowed(plan: WidthPlan, widths: Widths, seed: int = 0) -> Masks:
    masks = Masks(plan)
    masks.narrow(random_values(plan, seed), widths)
    return masks


def test_top_keeps_the_most_valuable_and_among_equals_the_lower_index() -> None:
    kept = torch.tensor([True, True, False, True, True, True])
    values = torch.tensor([1.0, 2.0, 9.0, 2.0, 2.0, 0.0])
    assert top(values, kept, 2).tolist() == [False, True, False, True, False, False]
    assert top(torch.zeros(6), kept, 3).tolist() == [True, True, False, True, False, False]
    assert torch.equal(top(values, kept, 6), kept)


def test_top_breaks_ties_by_index_in_a_group_of_real_size() -> None:
    values = (torch.arange(3072) % 3).float()
    expected = sorted(range(3072), key=lambda index: (-int(values[index]), index))[:1500]
    assert top(values, torch.ones(3072, dtype=torch.bool), 1500).nonzero().flatten().tolist() == sorted(expected)


def test_what_is_masked_stays_masked_while_the_widths_are_reached(plan: WidthPlan) -> None:
    masks = Masks(plan)
    before = dict(masks.kept)
    for seed, widths in enumerate(STAIRS):
        masks.narrow(random_values(plan, seed), widths)
        assert masks.widths() == widths
        for group, kept in masks.kept.items():
            assert not (kept & ~before[group]).any(), group
        before = dict(masks.kept)
    fractions = masks.fractions()
    assert fractions["ffn.1"] == 1 / 64
    assert fractions["hidden"] == 4 / 32


def test_heads_leave_first_by_the_sum_of_their_entries_and_then_neurons_inside_each_kept_head(plan: WidthPlan) -> None:
    values = random_values(plan, 0)
    # Head 1 holds the most valuable single neurons and head 2 the least of the rest, yet head 1 has the lowest sum.
    values["qk.0"] = torch.tensor([[5.0] * 8, [20.0] + [0.0] * 7, [4.0] * 8, [6.0] * 8]).flatten()
    values["vo.0"] = torch.tensor([[5.0] * 8, [9.0] + [0.0] * 7, [3.0] * 7 + [4.0], [1.0] * 7 + [2.0]]).flatten()
    masks = Masks(plan)
    masks.narrow(values, Widths(hidden=32, ffn=64, heads=3, head_size=2))
    assert heads_in(plan, masks.kept, 0).tolist() == [True, False, True, True]
    assert masks.head_origins()[0].tolist() == [0, 2, 3]
    assert masks.indices()["qk.0"].tolist() == [0, 1, 16, 17, 24, 25]
    assert masks.indices()["vo.0"].tolist() == [0, 1, 16, 23, 24, 31]


def test_a_masked_neuron_does_not_speak_for_its_head_whether_it_was_cut_or_not(plan: WidthPlan) -> None:
    """Its average only fades, so in a run without cuts it is still there when heads are chosen."""
    masked, cut = narrowed(plan, STAIRS[1]), narrowed(plan, STAIRS[1])
    cut.remove(cut.staying(STAIRS[1]))
    values = random_values(plan, 1)
    loser = int(torch.stack([values[f"{half}.0"].view(4, 8).sum(1) for half in ("qk", "vo")]).sum(0).argmin())
    for half in ("qk.0", "vo.0"):
        dead = ~masked.kept[half] & (torch.arange(32) // 8 == loser)
        values[half] = torch.where(dead, 100.0, values[half])
    masked.narrow(values, STAIRS[2])
    cut.narrow({group: value[cut.present[group]] for group, value in values.items()}, STAIRS[2])
    assert masked.digest() == cut.digest()
    assert loser not in masked.head_origins()[0]


@pytest.mark.parametrize("widths", STAIRS)
def test_every_layer_has_the_same_heads_in_qk_and_vo_and_the_same_neurons_per_head(
    plan: WidthPlan, widths: Widths
) -> None:
    masks = narrowed(plan, widths)
    for layer in range(plan.layers):
        halves = [masks.kept[f"{axis}.{layer}"].view(4, 8).sum(1) for axis in ("qk", "vo")]
        assert torch.equal(halves[0], halves[1])
        assert sorted(set(halves[0].tolist()) - {0}) == [widths.head_size]
        assert len(masks.head_origins()[layer]) == widths.heads


@pytest.mark.parametrize("splits", [1, 3])
def test_apply_zeroes_masters_moments_and_copies_exactly_where_a_neuron_is_masked(
    tiny_teacher: Path, plan: WidthPlan, splits: int
) -> None:
    teacher, _ = load_teacher(str(tiny_teacher))
    student = Student(twin(teacher, plan), plan.family, ("logits", "hidden", "embedding"), plan.full.hidden)
    masks = narrowed(plan, STAIRS[2])
    copies = {name: torch.full(p.shape, 2.0, dtype=torch.bfloat16) for name, p in student.named_parameters()}
    owned = {name: [torch.full((p.numel(),), 1.0 + n) for n in range(3)] for name, p in student.named_parameters()}

    def shards() -> Iterator[Shard]:
        for name, (weight, *moments) in owned.items():
            shape = copies[name].shape
            for run in torch.arange(weight.numel()).tensor_split(splits):
                at, count = int(run[0]), len(run)
                parts = [tensor.narrow(0, at, count) for tensor in (weight, *moments)]
                yield Shard(
                    name=name, shape=shape, offset=at, weight=parts[0], gradient=None, moments=(parts[1], parts[2])
                )

    masks.apply(shards())
    masks.apply(whole(copies.items()))
    for name, copy in copies.items():
        kept = torch.ones(copy.shape)
        for place, dim in enumerate(plan.dims(name)):
            if dim is not None:
                kept *= masks.kept[dim.group].float().view([-1 if d == place else 1 for d in range(copy.dim())])
        assert torch.equal(copy.float(), 2.0 * kept), name
        for place, tensor in enumerate(owned[name]):
            assert torch.equal(tensor.view(kept.shape), (1.0 + place) * kept), name


@pytest.mark.parametrize(
    ("shape", "dims"),
    [((6,), (Dim("b", 2),)), ((4, 6), (Dim("a"), Dim("b", 2))), ((3, 3), (None, Dim("b"))), ((4, 4), (Dim("a"),) * 2)],
)
def test_runs_of_any_split_lose_the_entries_of_masked_neurons_and_no_others(
    shape: tuple[int, ...], dims: tuple[Dim | None, ...]
) -> None:
    masked = {"a": torch.tensor([0, 3]), "b": torch.tensor([1])}
    expected = torch.ones(shape)
    for place, dim in enumerate(dims):
        if dim is not None:
            expected.index_fill_(place, entries(masked[dim.group], dim.block), 0.0)
    size = expected.numel()
    for start, stop in itertools.combinations(range(size + 1), 2):
        run = torch.ones(stop - start)
        zero_run(run, start, shape, dims, masked)
        assert torch.equal(run, expected.flatten()[start:stop])


def test_digests_name_the_group_in_which_one_bit_differs(plan: WidthPlan) -> None:
    reference = narrowed(plan, STAIRS[2])
    for group in plan.groups():
        other = narrowed(plan, STAIRS[2])
        assert other.digests() == reference.digests()
        assert other.digest() == reference.digest()
        other.kept[group][-1] ^= True
        differing = [name for name, digest in other.digests().items() if digest != reference.digests()[name]]
        assert differing == [group]
        assert other.digest() != reference.digest()
    assert all(0 <= digest < 2**63 for digest in reference.digests().values())


def test_different_choices_have_different_digests(plan: WidthPlan) -> None:
    digests = [narrowed(plan, STAIRS[1], seed).digest() for seed in range(5)]
    assert all(one != other for one, other in itertools.combinations(digests, 2))


def test_a_state_dict_through_a_file_restores_the_same_masks(plan: WidthPlan, tmp_path: Path) -> None:
    masks, other = narrowed(plan, STAIRS[2]), Masks(plan)
    torch.save(masks.state_dict(), tmp_path / "masks.pt")
    other.load_state_dict(torch.load(tmp_path / "masks.pt"))
    assert other.digests() == masks.digests()
    assert other.widths() == STAIRS[2]
    for each in (masks, other):
        each.narrow(random_values(plan, 5), STAIRS[3])
    assert other.digest() == masks.digest()


def test_grouped_heads_leave_with_the_head_of_keys_and_values_that_they_share() -> None:
    plan = plan_for(LlamaConfig(hidden_size=48, num_attention_heads=6, num_key_value_heads=3, num_hidden_layers=2))
    values = random_values(plan, 0)
    values |= {"heads.0": torch.tensor([2.0, 1.0, 3.0]), "heads.1": torch.tensor([1.0, 2.0, 0.0])}
    masks = Masks(plan)
    masks.narrow(values, Widths(hidden=20, ffn=9, heads=4, head_size=8))
    assert masks.widths() == Widths(hidden=20, ffn=9, heads=4, head_size=8)
    assert masks.indices()["heads.0"].tolist() == [0, 2]
    assert [origins.tolist() for origins in masks.head_origins()] == [[0, 1, 4, 5], [0, 1, 2, 3]]
    assert [places.tolist() for places in masks.head_places()] == [[0, 1, 4, 5], [0, 1, 2, 3]]
    masks.remove(masks.staying(masks.widths()))
    assert masks.physical() == masks.widths()
    assert [places.tolist() for places in masks.head_places()] == [[0, 1, 2, 3]] * 2


def test_a_width_between_two_groups_keeps_the_larger_one_whole() -> None:
    plan = plan_for(LlamaConfig(hidden_size=48, num_attention_heads=6, num_key_value_heads=3, num_hidden_layers=1))
    masks = narrowed(plan, Widths(hidden=48, ffn=9, heads=3, head_size=8))
    assert masks.widths().heads == 4


def test_widths_of_bert_base_are_those_asked_for() -> None:
    plan = plan_for(BertConfig())
    widths = Widths(hidden=224, ffn=896, heads=7, head_size=32)
    assert narrowed(plan, widths).widths() == widths
