"""Drawing slices from one seed's replay: pure functions of its tables (`Replay.tables`) and of random numbers.

Tables of several tasks have a leading axis of N tasks. Then a batch of B has as many slices of each: task after task,
one more of the first B mod N.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from iqrl.agent import Batch, Slices
from iqrl.environments.tasks import TaskSpec
from iqrl.training.frames import stacked
from iqrl.training.priorities import Priorities
from iqrl.training.replay import TERMINATED, TRUNCATED, Replay

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


def gather(
    tables: dict[str, Tensor], drawn: Tensor, spec: TaskSpec, slices: Slices, observation: Tensor | None = None
) -> Batch:
    """The slices of one seed whose starts have the indices `drawn` (B,), as `sample` gives them.

    Args:
        observation: theirs, where the tables have no pictures: as of `gather_apart`.
    """
    if of_tasks(tables):
        batches = [gather(own, part, spec, slices) for own, part in by_task(tables, drawn)]
        return joined(batches)
    rows = tables["rows"]
    ring, split = rows.shape[0], rows.shape[1] - spec.action_dim - 2
    serial = serials(tables["starts"], drawn, slices)
    seen = rows[serial % ring]  # (H + 1, B, width)
    acted = rows[(serial[1:] - 1) % ring] if slices.cross_episodes else seen[:-1]  # (H, B, width)
    if observation is None:
        observation = stacked(tables, serial, spec.stack) if spec.frame_shape else seen[..., :split]
    flag = torch.zeros_like(acted[..., -1]) if slices.cross_episodes else acted[..., -1]
    ends = (flag == TERMINATED).float(), (flag == TRUNCATED).float()
    return Batch(observation, acted[..., split:-2], acted[..., -2], *ends)


def serials(starts: Tensor, drawn: Tensor, slices: Slices) -> Tensor:
    """Serial numbers (H + 1, B) of the rows whose observations are those of slices."""
    steps = torch.arange(slices.horizon + 1, device=starts.device)
    if slices.cross_episodes:  # successive transitions, whatever the episode: iqrl.md Q4
        current = starts[(drawn + steps[:-1, None]) % len(starts)]
        return torch.cat([current[:1], current + 1])
    return starts[drawn] + steps[:, None]


def gather_apart(replay: Replay, places: Sequence[int], drawn: Tensor, slices: Slices) -> Tensor:
    """Observations (n, H + 1, B, ...) of slices (n, B) of the seeds at n places, where pictures live apart."""
    assert replay.frames is not None
    starts = torch.from_numpy(replay.starts_on_host)
    serial = torch.stack([serials(starts[place], own, slices) for place, own in zip(places, drawn.cpu())])
    return replay.frames.stacks(places, serial, drawn.device)


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
