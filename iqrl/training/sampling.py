"""Drawing slices from one seed's replay: pure functions of its tables (`Replay.tables`) and of random numbers.

Tables of several tasks have a leading axis of N tasks. Then a batch of B has as many slices of each: task after task,
one more of the first B mod N.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from iqrl.agent import Batch, Slices
from iqrl.environments.tasks import TaskSpec
from iqrl.training.frames import stacked
from iqrl.training.priorities import Priorities
from iqrl.training.replay import TERMINATED, TRUNCATED

_PARTS = tuple(part.name for part in dataclasses.fields(Batch))  # asked here: a compiler cannot


def sample(tables: dict[str, Tensor], slices: Slices, ring: int, uniform: Tensor) -> Tensor:
    """Indices (B,) into one seed's `starts`, drawn as `slices` says; `uniform` (B,) float64 in [0, 1).

    Of several tasks each is into its own task's.
    """
    if of_tasks(tables):
        return torch.cat([sample(own, slices, ring, part) for own, part in by_task(tables, uniform)])
    if slices.fades:
        return sample_faded(tables, slices, ring, uniform)
    if slices.prioritised:
        return Priorities.sample(tables["priority"], tables["block_sums"], uniform)
    return sample_uniform(tables["window"], ring, uniform)


def sample_faded(tables: dict[str, Tensor], slices: Slices, ring: int, uniform: Tensor) -> Tensor:
    """Indices (B,) drawn in proportion to priority times max(fade ** age, floor); age in decisions.

    Only blocks that hold the newest starts, not yet at the floor, are summed anew; the others' sums are known.
    """
    values, born = (tables[k].view(-1, Priorities.BLOCK) for k in ("priority", "born"))
    sums, (oldest, count, decisions) = tables["block_sums"], tables["window"].unbind()
    log_fade, floor = math.log(slices.fade), slices.fade_floor

    def faded(block: Tensor) -> Tensor:
        """(...) -> (..., BLOCK), float64."""
        age = (decisions - 1 - born[block]).double()
        return values[block].double() * torch.clamp(torch.exp(log_fade * age), min=floor)

    blocks = len(sums)
    fading = math.ceil(math.log(floor) / log_fade) if floor > 0 else ring  # decisions until the floor is reached
    recent = min(blocks, -(-(fading + slices.horizon) // Priorities.BLOCK) + 3)  # either end, and where the ring ends
    newest = (oldest + count - 1 + slices.held_back) % ring // Priorities.BLOCK
    new = (newest - torch.arange(recent, device=uniform.device)) % blocks
    return Priorities.draw((floor * sums).scatter(0, new, faded(new).sum(-1)), faded, uniform)


def sample_uniform(window: Tensor, ring: int, uniform: Tensor) -> Tensor:
    """Indices (B,) into one seed's `starts`, uniform over those available; `uniform` (B,) float64 in [0, 1)."""
    return (window[0] + (uniform * window[1]).long()) % ring


def gather(tables: dict[str, Tensor], drawn: Tensor, spec: TaskSpec, slices: Slices) -> Batch:
    """The slices of one seed whose starts have the indices `drawn` (B,), as `sample` gives them."""
    if of_tasks(tables):
        batches = [gather(own, part, spec, slices) for own, part in by_task(tables, drawn)]
        return joined(batches)
    rows, starts = tables["rows"], tables["starts"]
    steps = torch.arange(slices.horizon + 1, device=rows.device)
    ring, split = rows.shape[0], rows.shape[1] - spec.action_dim - 2
    if slices.cross_episodes:  # successive transitions, whatever the episode: iqrl.md Q4
        current = starts[(drawn + steps[:-1, None]) % ring]  # (H, B)
        first, following = rows[current % ring], rows[(current + 1) % ring]
        observation = torch.cat([first[:1], following])[..., :split]
        if spec.frame_shape:
            observation = stacked(tables, torch.cat([current[:1], current + 1]), spec.stack)
        ends = torch.zeros_like(first[..., -1])
        return Batch(observation, first[..., split:-2], first[..., -2], ends, ends)
    serial = starts[drawn] + steps[:, None]
    rows = rows[serial % ring]  # (H + 1, B, width)
    flag = rows[:-1, :, -1]
    return Batch(
        stacked(tables, serial, spec.stack) if spec.frame_shape else rows[..., :split],
        rows[:-1, :, split:-2],
        rows[:-1, :, -2],
        (flag == TERMINATED).float(),
        (flag == TRUNCATED).float(),
    )


def of_tasks(tables: dict[str, Tensor]) -> bool:
    """Whether the tables are of several tasks."""
    return tables["window"].dim() > 1


def by_task(tables: dict[str, Tensor], each: Tensor) -> list[tuple[dict[str, Tensor], Tensor]]:
    """Of each task its tables, and its part of what a batch has B of (B,)."""
    parts = torch.tensor_split(each, len(tables["window"]))
    return [({k: v[n] for k, v in tables.items()}, part) for n, part in enumerate(parts)]


def joined(batches: list[Batch]) -> Batch:
    """One batch after another along B."""
    return Batch(*(torch.cat([getattr(batch, name) for batch in batches], 1) for name in _PARTS))
