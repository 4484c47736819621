"""Which neurons are kept: chosen from importance, agreed on by all ranks, written as exact zeros. Monotone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch

from homodistil_ds.models.width import Dim, WidthPlan, Widths
from homodistil_ds.pruning.shrink import entries
from homodistil_ds.runtime.shards import Shard, runs


class Masks:
    """Kept neurons per group, bool [N] on the CPU, counted as in the teacher. What is masked stays masked.

    `present` are the neurons that the running student still has: a cut takes masked ones out of it. What is masked and
    present is zero; `local()` sees the masks as the student does.
    """

    def __init__(self, plan: WidthPlan) -> None:
        self.plan = plan
        self.kept = {group: torch.ones(size, dtype=torch.bool) for group, size in plan.groups().items()}
        self.present = {group: kept.clone() for group, kept in self.kept.items()}

    def narrow(self, values: Mapping[str, torch.Tensor], widths: Widths) -> None:
        """Keep the most valuable neurons of each group down to `widths`; `values` are of the present neurons."""
        whole = {group: torch.zeros(len(present)) for group, present in self.present.items()}
        for group, value in whole.items():
            value[self.present[group]] = values[group]
        self.kept = choose(self.plan, whole, self.kept, widths)

    def staying(self, widths: Widths) -> dict[str, torch.Tensor]:
        """Which of the present neurons stay in a student of `widths`: the kept ones, filled up with masked ones.

        Group -> indices among the present neurons, int64, ascending. Raises ValueError if a kept neuron would go.
        """
        kept = {group: mask.float() for group, mask in self.kept.items()}
        stay = choose(self.plan, kept, self.present, widths)
        for group, mask in stay.items():
            if bool((self.kept[group] & ~mask).any()):
                raise ValueError(f"a student of {widths} cannot hold the {self.widths()} that are kept ({group})")
        return {group: mask[self.present[group]].nonzero().flatten() for group, mask in stay.items()}

    def remove(self, stay: Mapping[str, torch.Tensor]) -> None:
        """Note a cut: only `stay`, indices among the present neurons, are present from now on."""
        for group, indices in stay.items():
            places = self.present[group].nonzero().flatten()[indices]
            self.present[group] = torch.zeros_like(self.present[group]).index_fill_(0, places, True)

    def local(self) -> dict[str, torch.Tensor]:
        """Group -> which of the present neurons are kept: bool [present N]."""
        return {group: kept[self.present[group]] for group, kept in self.kept.items()}

    def head_origins(self) -> list[torch.Tensor]:
        """Per layer, the teacher's head behind each kept head: int64 [kept A]."""
        return [heads_in(self.plan, self.kept, layer).nonzero().flatten() for layer in range(self.plan.layers)]

    def head_places(self) -> list[torch.Tensor]:
        """Per layer, where each kept head is among the heads that the student still has: int64 [kept A]."""
        layers = range(self.plan.layers)
        present = [heads_in(self.plan, self.present, layer) for layer in layers]
        return [heads_in(self.plan, self.kept, layer)[present[layer]].nonzero().flatten() for layer in layers]

    def indices(self) -> dict[str, torch.Tensor]:
        """Group -> indices of its kept neurons in the teacher, int64, ascending."""
        return {group: kept.nonzero().flatten() for group, kept in self.kept.items()}

    def fractions(self) -> dict[str, float]:
        return {group: float(kept.float().mean()) for group, kept in self.kept.items()}

    def widths(self) -> Widths:
        """The kept widths, the same in every layer."""
        return self._widths(self.kept)

    def physical(self) -> Widths:
        """The widths that the student still has, masked neurons included."""
        return self._widths(self.present)

    def _widths(self, neurons: Mapping[str, torch.Tensor]) -> Widths:
        heads = int(heads_in(self.plan, neurons, 0).sum())
        return Widths(
            hidden=int(neurons["hidden"].sum()),
            ffn=int(neurons["ffn.0"].sum()),
            heads=heads,
            head_size=int(neurons["qk.0"].sum()) // heads if "qk.0" in neurons else self.plan.full.head_size,
        )

    def digests(self) -> dict[str, int]:
        """Group -> the first 63 bits of the SHA-256 of its mask."""
        return {group: sha256_of(kept)[0] for group, kept in self.kept.items()}

    def digest(self) -> str:
        """One digest of all groups, 16 hexadecimal characters."""
        return sha256_of(torch.cat(list(self.kept.values())))[1]

    def apply(self, shards: Iterable[Shard]) -> None:
        """Write exact zeros into the weights and moments of masked neurons, in place."""
        masked = {group: (~kept).nonzero().flatten() for group, kept in self.local().items()}
        for shard in shards:
            dims = self.plan.dims(shard.name)
            if any(dim is not None and len(masked[dim.group]) for dim in dims):
                for tensor in (shard.weight, *shard.moments):
                    zero_run(tensor, shard.offset, shard.shape, dims, masked)

    def state_dict(self) -> dict[str, dict[str, torch.Tensor]]:
        return {"kept": dict(self.kept), "present": dict(self.present)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        self.kept, self.present = (
            {group: state[name][group].bool() for group in self.kept} for name in ("kept", "present")
        )


def choose(
    plan: WidthPlan, values: Mapping[str, torch.Tensor], among: Mapping[str, torch.Tensor], widths: Widths
) -> dict[str, torch.Tensor]:
    """The most valuable of the neurons `among` [N bool], down to `widths`; ties go to the lower index.

    Heads leave first, then `qk` and `vo` neurons inside each kept head; a head is worth the sum of those it still has.
    """
    chosen = {"hidden": top(values["hidden"], among["hidden"], widths.hidden)}
    for layer in range(plan.layers):
        groups = plan.groups_of(layer)
        for kind, name in groups.items():
            if kind in ("ffn", "heads", "cross"):
                chosen[name] = top(values[name], among[name], plan.size(kind, widths))
        if "heads" not in groups:
            chosen |= _choose_in_heads(plan, values, among, widths, layer)
    return {group: chosen[group] for group in among}


def _choose_in_heads(
    plan: WidthPlan, values: Mapping[str, torch.Tensor], among: Mapping[str, torch.Tensor], widths: Widths, layer: int
) -> dict[str, torch.Tensor]:
    head_size, halves = plan.full.head_size, (f"qk.{layer}", f"vo.{layer}")
    # What is masked still has a fading average until a cut removes it: it must not speak for its head.
    kept = [values[group].masked_fill(~among[group], 0.0) for group in halves]
    worth = torch.stack([value.view(-1, head_size).sum(1) for value in kept]).sum(0)
    heads = top(worth, heads_in(plan, among, layer), widths.heads)
    chosen = {}
    for group in halves:
        value, inside = values[group].view(-1, head_size), among[group].view(-1, head_size)
        rows = [
            top(value[head], inside[head], widths.head_size) if heads[head] else torch.zeros_like(inside[head])
            for head in range(len(heads))
        ]
        chosen[group] = torch.stack(rows).flatten()
    return chosen


def zero_run(
    values: torch.Tensor,
    offset: int,
    shape: tuple[int, ...],
    dims: tuple[Dim | None, ...],
    masked: Mapping[str, torch.Tensor],
) -> None:
    """Zero the entries of masked neurons in a run [count] of a flattened parameter, in place.

    `masked` maps a group to ascending indices. Only what is masked is written: a mask of all entries costs more to make
    than this to do.
    """
    blocks = [(offset, 0, values[:, None])] if len(shape) == 1 else runs(values, offset, shape[1])
    for *firsts, block in blocks:
        for place, (dim, first) in enumerate(zip(dims, firsts, strict=False)):
            if dim is not None:
                places = entries(masked[dim.group], dim.block)
                low, high = torch.searchsorted(places, torch.tensor([first, first + block.shape[place]])).tolist()
                if low < high:
                    block.index_fill_(place, (places[low:high] - first).to(block.device), 0.0)


def heads_in(plan: WidthPlan, neurons: Mapping[str, torch.Tensor], layer: int) -> torch.Tensor:
    """Query heads of the teacher with any neuron left: bool [A]."""
    if (heads := plan.group("heads", layer)) in neurons:
        return neurons[heads].repeat_interleave(plan.queries_per_group)
    return neurons[f"qk.{layer}"].view(-1, plan.full.head_size).any(1)


def top(values: torch.Tensor, kept: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` most valuable of the kept neurons, bool [N]; equal values: the lower index stays."""
    order = torch.sort(values.masked_fill(~kept, -torch.inf), descending=True, stable=True).indices
    chosen = torch.zeros_like(kept)
    chosen[order[:count]] = True
    return chosen & kept


def sha256_of(values: torch.Tensor) -> tuple[int, str]:
    """The first 63 bits of the SHA-256 of a tensor's bytes, and its first 16 hexadecimal characters."""
    digest = hashlib.sha256(values.numpy().tobytes())
    return int.from_bytes(digest.digest()[:8], "big") >> 1, digest.hexdigest()[:16]
