"""Which neurons are kept: chosen from importance, agreed on by all ranks, written as exact zeros. Monotone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch

from homodistil_ds.models.width import WidthPlan, Widths
from homodistil_ds.runtime.shards import Shard


class Masks:
    """Kept neurons per group, bool [N] on the CPU. What is masked stays masked."""

    def __init__(self, plan: WidthPlan) -> None:
        self.plan = plan
        self.kept = {group: torch.ones(size, dtype=torch.bool) for group, size in plan.groups().items()}

    def narrow(self, values: Mapping[str, torch.Tensor], widths: Widths) -> None:
        """Keep the most valuable neurons of each group down to `widths`; ties go to the lower index.

        Heads leave first, then `qk` and `vo` neurons inside each kept head; a head's value is the sum of its entries.
        """
        head_size = self.plan.full.head_size
        self.kept["hidden"] = top(values["hidden"], self.kept["hidden"], widths.hidden)
        for layer in range(self.plan.layers):
            ffn = f"ffn.{layer}"
            self.kept[ffn] = top(values[ffn], self.kept[ffn], widths.ffn)
            halves = [(f"{axis}.{layer}", values[f"{axis}.{layer}"].view(-1, head_size)) for axis in ("qk", "vo")]
            worth = torch.stack([value.sum(1) for _, value in halves]).sum(0)
            heads = top(worth, self.kept_heads(layer), widths.heads)
            for group, value in halves:
                inside = self.kept[group].view(-1, head_size)
                rows = [
                    top(value[head], inside[head], widths.head_size) if heads[head] else torch.zeros_like(inside[head])
                    for head in range(len(heads))
                ]
                self.kept[group] = torch.stack(rows).flatten()

    def kept_heads(self, layer: int) -> torch.Tensor:
        """Heads with any neuron left: bool [A]."""
        return self.kept[f"qk.{layer}"].view(-1, self.plan.full.head_size).any(1)

    def head_origins(self) -> list[torch.Tensor]:
        """Per layer, the teacher's head behind each kept head: int64 [kept A]."""
        return [self.kept_heads(layer).nonzero().flatten() for layer in range(self.plan.layers)]

    def indices(self) -> dict[str, torch.Tensor]:
        """Group -> indices of its kept neurons, int64, ascending."""
        return {group: kept.nonzero().flatten() for group, kept in self.kept.items()}

    def fractions(self) -> dict[str, float]:
        return {group: float(kept.float().mean()) for group, kept in self.kept.items()}

    def widths(self) -> Widths:
        """The kept widths, the same in every layer."""
        heads = int(self.kept_heads(0).sum())
        return Widths(
            hidden=int(self.kept["hidden"].sum()),
            ffn=int(self.kept["ffn.0"].sum()),
            heads=heads,
            head_size=int(self.kept["qk.0"].sum()) // heads,
        )

    def digests(self) -> dict[str, int]:
        """Group -> the first 63 bits of the SHA-256 of its mask."""
        return {group: _sha256(kept)[0] for group, kept in self.kept.items()}

    def digest(self) -> str:
        """One digest of all groups, 16 hexadecimal characters."""
        return _sha256(torch.cat(list(self.kept.values())))[1]

    def apply(self, shards: Iterable[Shard], copies: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Write exact zeros into masters and moments (the shards) and into what the forward reads (full tensors)."""
        entries: dict[str, torch.Tensor | None] = {}
        for name, tensor in copies:
            masked = entries[name] = self._masked_entries(name, tensor)
            if masked is not None:
                tensor.masked_fill_(masked, 0.0)
        for shard in shards:
            masked = entries[shard.name]
            if masked is None:
                continue
            local = masked.flatten()[shard.offset : shard.offset + len(shard.weight)]
            for tensor in (shard.weight, *shard.moments):
                tensor.masked_fill_(local.to(tensor.device), 0.0)

    def _masked_entries(self, name: str, like: torch.Tensor) -> torch.Tensor | None:
        """True where an entry of the parameter belongs to a masked neuron; None if it has no pruned dimension."""
        dims = self.plan.dims(name)
        if not any(dims):
            return None
        masked = torch.zeros(like.shape, dtype=torch.bool, device=like.device)
        for dim, group in enumerate(dims):
            if group is not None:
                shape = [1] * like.dim()
                shape[dim] = -1
                masked |= ~self.kept[group].to(like.device).view(shape)
        return masked

    def state_dict(self) -> dict[str, torch.Tensor]:
        return dict(self.kept)

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        self.kept = {group: state[group].bool() for group in self.kept}


def top(values: torch.Tensor, kept: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` most valuable of the kept neurons, bool [N]; equal values: the lower index stays."""
    order = torch.sort(values.masked_fill(~kept, -torch.inf), descending=True, stable=True).indices
    chosen = torch.zeros_like(kept)
    chosen[order[:count]] = True
    return chosen & kept


def _sha256(kept: torch.Tensor) -> tuple[int, str]:
    digest = hashlib.sha256(kept.numpy().tobytes())
    return int.from_bytes(digest.digest()[:8], "big") >> 1, digest.hexdigest()[:16]
