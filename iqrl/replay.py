"""Replay of a pack: each seed's transitions in order, each observation stored once.

A row is one float32 vector ``observation | action | reward | flag``; an episode of T decisions takes
T + 1 rows, the last of which holds its final observation only. Rows live on the learning device; the same
bytes are what a run's replay log keeps on disk (`iqrl.run_directory`).

`starts` lists, oldest first, the rows at which a slice may start. A slice of H transitions may start at a
row once H more rows of its episode exist; rows closer than that to a *termination* are starts too (the
agent masks what follows it), rows close to a truncation never are.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from iqrl.agent import Batch, Slices
from iqrl.tasks import TaskSpec

GOING, TERMINATED, TRUNCATED, FINAL = 0.0, 1.0, 2.0, 3.0


class Replay:
    """Ring of `capacity` transitions for each of S seeds.

    Args:
        spec: sizes of the task.
        seeds: S.
        slices: how the agent samples.
        capacity: transitions kept per seed; older ones are dropped.
        device: where rows live.
    """

    def __init__(
        self, spec: TaskSpec, seeds: int, slices: Slices, capacity: int, device: torch.device | str = "cpu"
    ) -> None:
        self.spec, self.slices, self.capacity = spec, slices, capacity
        self.width = spec.observation_dim + spec.action_dim + 2
        # A margin for final rows, at the task's usual episode length, and for the slice being written over.
        self.ring = capacity + capacity // spec.episode_decisions + slices.horizon + 2
        self.rows = torch.zeros(seeds, self.ring, self.width, device=device)
        self.starts = torch.zeros(seeds, self.ring, dtype=torch.int64, device=device)  # serial numbers of rows
        self._starts = self.starts.numpy() if self.starts.device.type == "cpu" else np.zeros((seeds, self.ring), np.int64)
        self.window = torch.zeros(seeds, 2, dtype=torch.int64, device=device)  # place of the oldest start, count
        self.priority = Priorities(seeds, self.ring, device) if slices.prioritised else None
        self.written = [0] * seeds  # rows ever written: the serial number of the next row
        self._episode = [0] * seeds  # serial number of the current episode's first row
        self._first = [0] * seeds  # serial number of the oldest start, counting starts
        self._next = [0] * seeds  # and of the next one

    def __len__(self) -> int:
        return self.rows.shape[0]

    @staticmethod
    def bytes_needed(spec: TaskSpec, slices: Slices, capacity: int) -> int:
        """Bytes that one seed's full replay takes on the device."""
        rows = capacity + capacity // spec.episode_decisions + slices.horizon + 2
        return rows * 4 * (spec.observation_dim + spec.action_dim + 2 + 2 + int(slices.prioritised))

    def available(self, seed: int) -> int:
        """Number of slices that seed number `seed` can sample from."""
        return max(0, self._next[seed] - self._first[seed] - self._held_back)

    @property
    def _held_back(self) -> int:
        """Newest starts not to be sampled: across episodes a slice is H successive starts."""
        return self.slices.horizon - 1 if self.slices.cross_episodes else 0

    def add(
        self, seed: int, observation: np.ndarray, action: np.ndarray, reward: float,
        terminated: bool, truncated: bool, next_observation: np.ndarray,
    ) -> np.ndarray:
        """Append one transition for the seed at place `seed` of the pack.

        Returns:
            (1 or 2, width) float32, the rows written: two at an episode's end.
        """
        ended = terminated or truncated
        rows = np.zeros((2 if ended else 1, self.width), np.float32)
        split = self.spec.observation_dim
        rows[0, :split], rows[0, split:-2], rows[0, -2] = observation, action, reward
        rows[0, -1] = TERMINATED if terminated else TRUNCATED if truncated else GOING
        if ended:
            rows[1, :split], rows[1, -1] = next_observation, FINAL
        self.extend(seed, rows)
        return rows

    def extend(self, seed: int, rows: np.ndarray) -> None:
        """Append rows (n, width) that `add` made, such as those of a replay log."""
        block = self.ring // 2 + 1  # never overwrite what the same call writes
        for i in range(0, len(rows), block):
            self._write(seed, rows[i : i + block])

    def _write(self, seed: int, rows: np.ndarray) -> None:
        serial, horizon = self.written[seed], self.slices.horizon
        at, n = serial % self.ring, len(rows)
        head = min(n, self.ring - at)
        source = torch.from_numpy(np.ascontiguousarray(rows))
        self.rows[seed, at : at + head] = source[:head].to(self.rows.device)
        self.rows[seed, : n - head] = source[head:].to(self.rows.device)
        starts: list[int] = []
        previous = GOING if serial == 0 else float(self.rows[seed, (serial - 1) % self.ring, -1])
        for flag in rows[:, -1].tolist():
            if self.slices.cross_episodes:
                starts += [serial] if flag != FINAL else []
            elif serial - horizon >= self._episode[seed]:  # this row completes the slice that started H before
                starts.append(serial - horizon)
            if flag == FINAL:
                if previous == TERMINATED and not self.slices.cross_episodes:
                    starts += range(max(self._episode[seed], serial - horizon + 1), serial)
                self._episode[seed] = serial + 1
            previous, serial = flag, serial + 1
        self.written[seed] = serial
        self._update_starts(seed, starts)

    def _update_starts(self, seed: int, new: list[int]) -> None:
        if new:
            places = (self._next[seed] + np.arange(len(new))) % self.ring
            self._starts[seed, places] = new
            index = torch.from_numpy(places).to(self.starts.device)
            self.starts[seed, index] = torch.tensor(new).to(self.starts.device)
            if self.priority is not None:
                self.priority.add(seed, index)
            self._next[seed] += len(new)
        first, oldest = self._first[seed], self.written[seed] - self.ring
        while first < self._next[seed] and (
            self._starts[seed, first % self.ring] < oldest or self._next[seed] - first > self.capacity
        ):
            first += 1
        if self.priority is not None and first > self._first[seed]:
            gone = np.arange(self._first[seed], first) % self.ring
            self.priority.drop(seed, torch.from_numpy(gone).to(self.starts.device))
        self._first[seed] = first
        self.window[seed] = torch.tensor([first % self.ring, self.available(seed)])

    def memory(self) -> dict[str, Tensor]:
        """The tensors that `gather` and `Priorities.sample` read, each with a leading seed axis."""
        memory = {"rows": self.rows, "starts": self.starts, "window": self.window}
        if self.priority is not None:
            memory |= {"priority": self.priority.values, "block_sums": self.priority.block_sums}
        return memory


def sample_uniform(window: Tensor, ring: int, uniform: Tensor) -> Tensor:
    """Places (B,) in `starts`, uniform over the available ones; `uniform` (B,) float64 in [0, 1). One seed's."""
    return (window[0] + (uniform * window[1]).long()) % ring


def gather(memory: dict[str, Tensor], places: Tensor, spec: TaskSpec, slices: Slices) -> Batch:
    """The slices that start at `places` (B,) of one seed's memory."""
    rows, starts = memory["rows"], memory["starts"]
    ring, split, steps = rows.shape[0], spec.observation_dim, torch.arange(slices.horizon + 1, device=rows.device)
    if slices.cross_episodes:  # successive transitions, whatever the episode: iqrl.md Q4
        current = starts[(places + steps[:-1, None]) % ring]  # (H, B)
        taken, following = rows[current % ring], rows[(current + 1) % ring]
        observation = torch.cat([taken[:1], following])[..., :split]
        ends = torch.zeros_like(taken[..., -1])
        return Batch(observation, taken[..., split:-2], taken[..., -2], ends, ends)
    taken = rows[(starts[places] + steps[:, None]) % ring]  # (H + 1, B, width)
    flag = taken[:-1, :, -1]
    return Batch(
        taken[..., :split], taken[:-1, :, split:-2], taken[:-1, :, -2],
        (flag == TERMINATED).float(), (flag == TRUNCATED).float(),
    )


class Priorities:
    """Priorities of the starts of S seeds, sampled exactly by inverting their cumulative sum (LAP, td7.md).

    Kept with the sums of blocks of successive places, so that a draw reads one block and not the whole
    ring: its cost grows with the square root of the capacity.
    """

    BLOCK = 1024

    def __init__(self, seeds: int, ring: int, device: torch.device | str) -> None:
        blocks = -(-ring // self.BLOCK)
        self.values = torch.zeros(seeds, blocks * self.BLOCK, device=device)
        self.block_sums = torch.zeros(seeds, blocks, dtype=torch.float64, device=device)
        self.highest = torch.ones(seeds, device=device)

    def add(self, seed: int, places: Tensor) -> None:
        """New starts get the highest priority seen."""
        self._write(seed, places, self.highest[seed].expand(len(places)))

    def drop(self, seed: int, places: Tensor) -> None:
        """Starts that are no longer kept are never drawn."""
        self._write(seed, places, torch.zeros(len(places), device=self.values.device))

    def update(self, seed: int, places: Tensor, priority: Tensor) -> None:
        """New priorities (B,) of the starts at `places` (B,)."""
        self._write(seed, places, priority)
        self.highest[seed] = torch.maximum(self.highest[seed], priority.max())

    def reset_highest(self, seed: int) -> None:
        """Forget priorities that no start has any more (td7.md, target update)."""
        self.highest[seed] = self.values[seed].max()

    def _write(self, seed: int, places: Tensor, priority: Tensor) -> None:
        self.values[seed, places] = priority
        blocks = torch.unique(places // self.BLOCK)
        self.block_sums[seed, blocks] = self.values[seed].view(-1, self.BLOCK)[blocks].double().sum(-1)

    @classmethod
    def sample(cls, values: Tensor, block_sums: Tensor, uniform: Tensor) -> Tensor:
        """Places (B,) drawn in proportion to one seed's `values`; `uniform` (B,) float64 in [0, 1)."""
        upto = torch.cumsum(block_sums, 0)
        target = uniform * upto[-1]
        block = torch.clamp((upto <= target[:, None]).sum(-1), max=len(block_sums) - 1)  # (B,)
        inside = torch.cumsum(values.view(-1, cls.BLOCK)[block].double(), -1)  # (B, BLOCK)
        rest = target - (upto[block] - block_sums[block])
        place = torch.clamp((inside <= rest[:, None]).sum(-1), max=cls.BLOCK - 1)
        return block * cls.BLOCK + place
