"""Replay of several tasks: each task of each seed has a ring of its own, so that batches can be balanced over them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from iqrl.agent import Slices
from iqrl.environments.tasks import TaskSpec
from iqrl.training.replay import Replay


class MultiTaskReplay(Replay):
    """`Replay` of S seeds that keeps `capacity` transitions of each of their N tasks.

    To others a place is a seed's, as in `Replay`; within, the ring of seed s and task n is number s N + n. A row tells
    its task by the last number of its observation, so a seed's replay log holds its episodes as they came.
    `tables` have a leading axis of seeds and then one of tasks, by which `iqrl.training.sampling` knows them.
    """

    def __init__(
        self, spec: TaskSpec, seeds: int, slices: Slices, capacity: int, device: torch.device | str = "cpu"
    ) -> None:
        self.tasks = len(spec.tasks)
        super().__init__(spec, seeds * self.tasks, slices, capacity, device)
        self._newest = [0] * seeds  # the task of the newest row

    def available(self, place: int) -> int:
        """Number of slices that the task with the fewest can give; 0 until each has one."""
        return min(Replay.available(self, ring) for ring in self._rings(place))

    def add(
        self,
        place: int,
        observation: np.ndarray,
        action: np.ndarray,
        reward: float,
        terminated: bool,
        truncated: bool,
        next_observation: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        self._newest[place] = int(observation[-1])
        ring = place * self.tasks + self._newest[place]
        return super().add(ring, observation, action, reward, terminated, truncated, next_observation)

    def extend(self, place: int, rows: np.ndarray, pictures: np.ndarray | None = None) -> None:
        task = rows[:, self._split - 1].astype(int)
        for n, ring in enumerate(self._rings(place)):
            if len(own := rows[task == n]):
                super().extend(ring, own)
        if len(rows):
            self._newest[place] = int(task[-1])

    def newest(self, place: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        return super().newest(place * self.tasks + self._newest[place], count)

    def save(self, place: int) -> dict[str, Tensor]:
        """As of `Replay`, each entry with a leading axis of tasks."""
        saved = [Replay.save(self, ring) for ring in self._rings(place)]
        return {k: torch.stack([of_task[k] for of_task in saved]) for k in saved[0]}

    def load(self, place: int, saved: Mapping[str, Tensor]) -> None:
        for n, ring in enumerate(self._rings(place)):
            super().load(ring, {k: v[n] for k, v in saved.items()})

    def statistics(self, place: int) -> dict[str, Tensor]:
        """As of `Replay`; the tasks' `mean_absolute_reward` on average, for batches have as many of each."""
        found = [Replay.statistics(self, ring) for ring in self._rings(place)]
        rewards, ends = (torch.stack([of_task[k] for of_task in found]) for k in found[0])
        return {"mean_absolute_reward": rewards.mean(), "terminations": ends.sum()}

    def tables(self) -> dict[str, Tensor]:
        return {k: v.unflatten(0, (-1, self.tasks)) for k, v in super().tables().items()}

    def update_priorities(self, places: slice, sampled: Tensor, priority: Tensor) -> None:
        """As of `Replay`, each ring the part of a batch that was drawn from it."""
        assert self.priority is not None
        parts = (torch.tensor_split(x, self.tasks, dim=1) for x in (sampled, priority))
        for n, (own, its) in enumerate(zip(*parts, strict=True)):
            self.priority.update(slice(places.start * self.tasks + n, places.stop * self.tasks, self.tasks), own, its)

    def reset_highest(self, places: slice) -> None:
        assert self.priority is not None
        self.priority.reset_highest(slice(places.start * self.tasks, places.stop * self.tasks))

    def _rings(self, place: int) -> range:
        return range(place * self.tasks, (place + 1) * self.tasks)


def new_replay(
    spec: TaskSpec,
    seeds: int,
    slices: Slices,
    capacity: int,
    device: torch.device | str = "cpu",
    frames_in: Path | None = None,
) -> Replay:
    """The replay of a task, or of several (seen as states): `capacity` transitions of each seed and task."""
    if spec.tasks:
        return MultiTaskReplay(spec, seeds, slices, capacity, device)
    return Replay(spec, seeds, slices, capacity, device, frames_in)


def capacity(spec: TaskSpec, buffer_size: int, budget: int) -> int:
    """Transitions to keep of a seed and task: an equal share of `buffer_size`, and no more than the budget fills.

    Args:
        budget: decisions of the run; a short run does not reserve a million transitions.
    """
    return min(-(-buffer_size // spec.task_count), budget + spec.episode_decisions)
