"""Priorities of a pack's replay (LAP, td7.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


def to_device(parts: Sequence[np.ndarray], device: torch.device) -> Sequence[Tensor]:
    """Whole numbers (n,) to a device, in one copy."""
    return torch.from_numpy(np.concatenate(parts)).to(device).split([len(part) for part in parts])


class Priorities:
    """Priorities of the starts of S seeds (LAP, td7.md), drawn by inverting their cumulative sum, exactly.

    An index without a start has priority 0 and is never drawn. Beside the values stand the sums of blocks of
    successive ones, so that a draw or an update reads a few blocks and not the whole ring. Sums are in
    float64, of float32 values, and made anew from these whenever one changes, so that nothing drifts; for up
    to 2^20 priorities from 1 to 512 every sum is exact, whatever the order of its terms.
    """

    BLOCK = 128

    def __init__(self, seeds: int, ring: int, device: torch.device | str) -> None:
        self.values = torch.zeros(seeds, self.length(ring), device=device)
        self.block_sums = torch.zeros(seeds, self.length(ring) // self.BLOCK, dtype=torch.float64, device=device)
        self.highest = torch.ones(seeds, device=device)

    @classmethod
    def bytes_needed(cls, ring: int) -> int:
        """Bytes that one seed's priorities take on the device."""
        return cls.length(ring) * 4 + cls.length(ring) // cls.BLOCK * 8

    @classmethod
    def length(cls, ring: int) -> int:
        """Entries of a seed's table: whole blocks, an even number of them, as the ring is a multiple of 4."""
        return 2 * cls.BLOCK * -(-ring // (2 * cls.BLOCK))

    def replace(self, places: Sequence[int], dropped: Sequence[np.ndarray], added: Sequence[np.ndarray]) -> None:
        """Starts that are no longer kept are never drawn, new ones get the highest priority that their seed has had.

        dropped, added: indices (n,) of either, for the seed at each of `places`.
        """
        row = self.values.shape[1]
        off, on = (
            np.concatenate([p * row + i for p, i in zip(places, each, strict=True)]) for each in (dropped, added)
        )
        owner = np.repeat(np.asarray(places, np.int64), [len(i) for i in added])
        blocks = np.unique(np.concatenate([off, on]) // self.BLOCK)  # a row is of whole blocks
        off_, on_, owner_, blocks_ = to_device([off, on, owner, blocks], self.values.device)
        values = self.values.view(-1)
        values[off_] = 0.0
        values[on_] = self.highest[owner_]
        self.block_sums.view(-1)[blocks_] = values.view(-1, self.BLOCK)[blocks_].double().sum(-1)

    def update(self, places: slice, drawn: Tensor, priority: Tensor) -> None:
        """New priorities (n, B) of the starts with indices `drawn` (n, B), for n seeds side by side in the pack.

        Of a start drawn more than once the largest counts, whatever the order of writing.
        """
        values, sums = self.values[places], self.block_sums[places]
        values.scatter_(1, drawn, 0.0)
        values.scatter_reduce_(1, drawn, priority.to(values.dtype), "amax")
        blocks, seed = drawn // self.BLOCK, torch.arange(len(drawn), device=drawn.device)[:, None]
        sums.scatter_(1, blocks, values.view(len(drawn), -1, self.BLOCK)[seed, blocks].double().sum(-1))
        self.highest[places] = torch.maximum(self.highest[places], priority.amax(1))

    def reset_highest(self, places: slice) -> None:
        """Forget priorities that no start has any more (td7.md, step 6)."""
        self.highest[places] = self.values[places].amax(1)

    def save(self, place: int) -> dict[str, Tensor]:
        return {"priority": self.values[place].cpu().clone(), "highest": self.highest[place].cpu().clone()}

    def load(self, place: int, saved: Mapping[str, Tensor]) -> None:
        """Restore what `save` gave, also of a shorter table that never was full.

        Raises:
            ValueError: if it is of a longer one, or its priorities do not stand where the starts are.
        """
        values, found = torch.zeros_like(self.values[place]), saved["priority"]
        values[: len(found)] = found[: len(values)]
        if len(found) > len(values) or not torch.equal(values != 0, self.values[place] != 0):
            raise ValueError("saved priorities do not belong to the transitions of this replay")
        self.values[place] = values
        self.block_sums[place] = values.view(-1, self.BLOCK).double().sum(-1)
        self.highest[place] = saved["highest"].to(self.values.device)

    @classmethod
    def sample(cls, values: Tensor, block_sums: Tensor, uniform: Tensor) -> Tensor:
        """Indices (B,) drawn in proportion to one seed's `values`; `uniform` (B,) float64 in [0, 1).

        The first at which the cumulative sum exceeds `uniform` times the total. Rounding never leads to one of
        priority 0.
        """
        return cls.draw(block_sums, lambda block: values.view(-1, cls.BLOCK)[block].double(), uniform)

    @staticmethod
    def draw(block_sums: Tensor, weights: Callable[[Tensor], Tensor], uniform: Tensor) -> Tensor:
        """`sample` by weights (B, BLOCK) float64 of blocks (B,), and their sums."""
        upto = torch.cumsum(block_sums, 0)
        target = uniform * upto[-1]  # below upto[-1], for uniform is at most 1 - 2^-53
        block = torch.clamp(torch.searchsorted(upto, target, right=True), max=len(block_sums) - 1)  # (B,)
        inside = torch.cumsum(weights(block), -1)  # (B, BLOCK)
        rest = torch.clamp(target - (upto[block] - block_sums[block]), min=0.0)
        before = (inside <= rest[:, None]) & (inside < inside[:, -1:])
        return block * Priorities.BLOCK + before.sum(-1)
