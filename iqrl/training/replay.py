"""Replay of a pack: each seed's transitions in order, each observation stored once.

A row is one float32 vector ``observation | action | reward | flag``; an episode of T decisions takes
T + 1 rows, the last of which holds its final observation only. Rows live on the learning device; the same
bytes are what a run's replay log keeps on disk (`iqrl.runs.replay_log`).

Off the CPU, rows wait on the host until something reads the replay, and go to the device together: those of all seeds,
and of an agent that learns after each episode, the episode, are one copy.

`starts` lists, oldest first, the rows at which a slice may start. A slice of H transitions may start at a
row once H more rows of its episode exist; rows closer than that to a *termination* are starts too (the
agent masks what follows it), rows close to a truncation never are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from iqrl.agent import Batch, Slices
from iqrl.environments.tasks import TaskSpec

GOING, TERMINATED, TRUNCATED, FINAL = 0.0, 1.0, 2.0, 3.0


@dataclass(frozen=True)
class Placed:
    """Rows of a seed that have found their places in its tables, on the host.

    Attributes:
        rows, places: (n, width) and (n,).
        starts, taken: serial numbers of the starts that these rows complete, and their places in `starts`, (m,).
        born: how many decisions came before each of these starts, (m,).
        dropped: places in `starts` of those that are no longer kept.
    """

    seed: int
    rows: np.ndarray
    places: np.ndarray
    starts: np.ndarray
    born: np.ndarray
    taken: np.ndarray
    dropped: np.ndarray


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
        self.ring = self._ring(spec, slices, capacity)
        self.rows = torch.zeros(seeds, self.ring, self.width, device=device)
        self.starts = torch.zeros(seeds, self.ring, dtype=torch.int64, device=device)  # rows' serial numbers
        on_host = self.starts.device.type == "cpu"
        self._starts = self.starts.numpy() if on_host else np.zeros((seeds, self.ring), np.int64)
        blank = (seeds, Priorities.length(self.ring) if slices.fades else 0)
        self.born = torch.zeros(blank, dtype=torch.int64, device=device)  # decisions before each start
        self.window = torch.zeros(seeds, 3, dtype=torch.int64, device=device)  # oldest start's place, count; decisions
        self.priority = Priorities(seeds, self.ring, device) if slices.prioritised else None
        self.written = [0] * seeds  # rows ever written: the serial number of the next row
        self._decisions = [0] * seeds  # of the rows written, those that are not final
        self._episode = [0] * seeds  # serial number of the current episode's first row
        self._first = [0] * seeds  # serial number of the oldest start, counting starts
        self._next = [0] * seeds  # and of the next one
        self._flag = [GOING] * seeds  # of the newest row
        self.patient = not on_host  # let rows wait
        self._waiting: list[list[np.ndarray]] = [[] for _ in range(seeds)]

    def __len__(self) -> int:
        return self.rows.shape[0]

    @staticmethod
    def _ring(spec: TaskSpec, slices: Slices, capacity: int) -> int:
        """Rows kept: a margin for final rows and for the slice being written over.

        Final rows are as many as episodes, and an episode that terminates may be of one decision. No smaller than an
        episode, which a resume reads to play it again.
        A multiple of 4, so that every seed's tables begin at a multiple of 16 bytes: compiled code copies inputs that
        do not, all of them, at every call.
        """
        finals = capacity if spec.terminates else capacity // spec.episode_decisions
        rows = max(capacity, spec.episode_decisions) + finals + slices.horizon + 2
        return -(-rows // 4) * 4

    @staticmethod
    def bytes_needed(spec: TaskSpec, slices: Slices, capacity: int) -> int:
        """Bytes that one seed's full replay takes on the device."""
        rows = Replay._ring(spec, slices, capacity)
        row = 4 * (spec.observation_dim + spec.action_dim + 2) + 8 * (1 + slices.fades)  # numbers; `starts`, `born`
        return rows * row + (Priorities.bytes_needed(rows) if slices.prioritised else 0)

    def available(self, seed: int) -> int:
        """Number of slices that seed number `seed` can sample from."""
        self._write_waiting(range(len(self)))  # of all: whoever asks after one asks after the others
        return self._available(seed)

    def _available(self, seed: int) -> int:
        return max(0, self._next[seed] - self._first[seed] - self.slices.held_back)

    def add(
        self,
        seed: int,
        observation: np.ndarray,
        action: np.ndarray,
        reward: float,
        terminated: bool,
        truncated: bool,
        next_observation: np.ndarray,
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
        self._waiting[seed].append(rows)
        if not self.patient:
            self._write_waiting([seed])
        return rows

    def extend(self, seed: int, rows: np.ndarray) -> None:
        """Append rows (n, width) that `add` made, such as those of a replay log."""
        self._waiting[seed].append(rows)
        self._write_waiting([seed])

    def _write_waiting(self, seeds: Iterable[int]) -> None:
        """Write what waits of some seeds, together."""
        block = max(1, min(self.ring, self.capacity) // 2)  # never overwrite what the same call writes
        while seeds := [s for s in seeds if self._waiting[s]]:
            written = []
            for seed in seeds:
                rows = np.concatenate(self._waiting[seed])
                self._waiting[seed] = [rows[block:]] if len(rows) > block else []
                written.append(self._place(seed, rows[:block]))
            self._write(written)

    def save(self, seed: int) -> dict[str, Tensor]:
        """What of one seed's replay its rows do not tell: the priorities. On the CPU; empty without them."""
        self._write_waiting([seed])
        return {} if self.priority is None else self.priority.save(seed)

    def load(self, seed: int, saved: Mapping[str, Tensor]) -> None:
        """Restore what `save` gave, after the rows have been appended again.

        Raises:
            ValueError: if it belongs to another replay.
        """
        if self.priority is not None:
            self.priority.load(seed, saved)

    def _place(self, seed: int, rows: np.ndarray) -> Placed:
        """Find places for rows of a seed, and for the starts that they complete."""
        serial, horizon = self.written[seed], self.slices.horizon
        places = np.arange(serial, serial + len(rows)) % self.ring
        starts: list[int] = []
        finals: list[int] = []  # before each start
        previous, final = self._flag[seed], serial - self._decisions[seed]
        for flag in rows[:, -1].tolist():
            if self.slices.cross_episodes:
                starts += [serial] if flag != FINAL else []
            elif serial - horizon >= self._episode[seed]:  # completes the slice that started H before
                starts.append(serial - horizon)
            if flag == FINAL and previous == TERMINATED and not self.slices.cross_episodes:
                starts += range(max(self._episode[seed], serial - horizon + 1), serial)
            finals += [final] * (len(starts) - len(finals))
            if flag == FINAL:
                self._episode[seed], final = serial + 1, final + 1
            previous, serial = flag, serial + 1
        self.written[seed], self._flag[seed], self._decisions[seed] = serial, previous, serial - final
        dropped, taken = self._update_starts(seed, starts)
        found, born = np.array(starts, np.int64), np.array(starts, np.int64) - np.array(finals, np.int64)
        return Placed(seed, rows, places, found, born, taken, dropped)

    def _update_starts(self, seed: int, new: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Let go of starts that are too many or whose rows are written over, then take up new ones: places of both."""
        first, following, oldest = self._first[seed], self._next[seed], self.written[seed] - self.ring
        while first < following and (
            self._starts[seed, first % self.ring] < oldest or following + len(new) - first > self.capacity
        ):
            first += 1
        dropped = np.arange(self._first[seed], first) % self.ring
        taken = (following + np.arange(len(new))) % self.ring
        self._starts[seed, taken] = new
        self._first[seed], self._next[seed] = first, following + len(new)
        return dropped, taken

    def _write(self, written: list[Placed]) -> None:
        """Take rows of several seeds to the device: one copy of numbers, one of places in the tables laid flat."""
        seeds = [w.seed for w in written]
        windows = [[self._first[s] % self.ring, self._available(s), self._decisions[s]] for s in seeds]
        parts = [
            np.concatenate([w.seed * self.ring + w.places for w in written]),
            np.concatenate([w.seed * self.ring + w.taken for w in written]),
            np.concatenate([w.starts for w in written]),
            np.concatenate([w.seed * self.born.shape[1] + w.taken for w in written]),
            np.concatenate([w.born for w in written]),
            np.array(seeds),
            np.array(windows).reshape(-1),
        ]
        places, taken, starts, aged, born, which, window = _together(parts, self.rows.device)
        rows = np.concatenate([w.rows for w in written])
        self.rows.view(-1, self.width)[places] = torch.from_numpy(rows).to(self.rows.device)
        self.starts.view(-1)[taken] = starts
        if self.slices.fades:
            self.born.view(-1)[aged] = born
        self.window[which] = window.view(-1, 3)
        if self.priority is not None:
            self.priority.replace(seeds, [w.dropped for w in written], [w.taken for w in written])

    def newest(self, seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The last `count` observations (count, O) and actions (count, A) of the running episode, oldest first."""
        self._write_waiting([seed])
        index = torch.arange(self.written[seed] - count, self.written[seed]) % self.ring
        rows, split = self.rows[seed, index.to(self.rows.device)].cpu().numpy(), self.spec.observation_dim
        return rows[:, :split], rows[:, split:-2]

    def statistics(self, seed: int) -> dict[str, Tensor]:
        """Of the transitions kept: `mean_absolute_reward`, and the number of `terminations`. Scalars."""
        self._write_waiting(range(len(self)))
        kept = self.rows[seed, : min(self.written[seed], self.ring)]
        reward, flag = kept[:, -2].double(), kept[:, -1]  # the reward of a final row is 0
        return {
            "mean_absolute_reward": (reward.abs().sum() / (flag != FINAL).sum()).float(),
            "terminations": (flag == TERMINATED).sum().float(),
        }

    def memory(self) -> dict[str, Tensor]:
        """The tensors that `gather` and `Priorities.sample` read, each with a leading seed axis."""
        self._write_waiting(range(len(self)))
        memory = {"rows": self.rows, "starts": self.starts, "window": self.window}
        if self.priority is not None:
            memory |= {"priority": self.priority.values, "block_sums": self.priority.block_sums}
        if self.slices.fades:
            memory["born"] = self.born
        return memory


def _together(parts: Sequence[np.ndarray], device: torch.device) -> Sequence[Tensor]:
    """Whole numbers (n,) to a device, in one copy."""
    return torch.from_numpy(np.concatenate(parts)).to(device).split([len(part) for part in parts])


def sample(memory: dict[str, Tensor], slices: Slices, ring: int, uniform: Tensor) -> Tensor:
    """Places (B,) in one seed's `starts`, drawn as `slices` says; `uniform` (B,) float64 in [0, 1)."""
    if slices.fades:
        return sample_faded(memory, slices, ring, uniform)
    if slices.prioritised:
        return Priorities.sample(memory["priority"], memory["block_sums"], uniform)
    return sample_uniform(memory["window"], ring, uniform)


def sample_faded(memory: dict[str, Tensor], slices: Slices, ring: int, uniform: Tensor) -> Tensor:
    """Places (B,) drawn in proportion to priority times max(fade ** age, floor); age in decisions.

    Only blocks that hold the newest starts, not yet at the floor, are summed anew; the others' sums are known.
    """
    values, born = (memory[k].view(-1, Priorities.BLOCK) for k in ("priority", "born"))
    sums, (oldest, count, decisions) = memory["block_sums"], memory["window"].unbind()
    log_fade, floor = math.log(slices.fade), slices.fade_floor

    def faded(block: Tensor) -> Tensor:
        """(...) -> (..., BLOCK), float64."""
        age = (decisions - 1 - born[block]).double()
        return values[block].double() * torch.clamp(torch.exp(log_fade * age), min=floor)

    blocks = len(sums)
    fading = math.ceil(math.log(floor) / log_fade) if floor > 0 else ring  # decisions until the floor is reached
    recent = min(
        blocks, -(-(fading + slices.horizon) // Priorities.BLOCK) + 3
    )  # 3: either end, and where the ring ends
    newest = (oldest + count - 1 + slices.held_back) % ring // Priorities.BLOCK
    new = (newest - torch.arange(recent, device=uniform.device)) % blocks
    return Priorities.draw((floor * sums).scatter(0, new, faded(new).sum(-1)), faded, uniform)


def sample_uniform(window: Tensor, ring: int, uniform: Tensor) -> Tensor:
    """Places (B,) in one seed's `starts`, uniform over those available; `uniform` (B,) float64 in [0, 1)."""
    return (window[0] + (uniform * window[1]).long()) % ring


def gather(memory: dict[str, Tensor], places: Tensor, spec: TaskSpec, slices: Slices) -> Batch:
    """The slices that start at `places` (B,) of one seed's memory."""
    rows, starts = memory["rows"], memory["starts"]
    steps = torch.arange(slices.horizon + 1, device=rows.device)
    ring, split = rows.shape[0], spec.observation_dim
    if slices.cross_episodes:  # successive transitions, whatever the episode: iqrl.md Q4
        current = starts[(places + steps[:-1, None]) % ring]  # (H, B)
        taken, following = rows[current % ring], rows[(current + 1) % ring]
        observation = torch.cat([taken[:1], following])[..., :split]
        ends = torch.zeros_like(taken[..., -1])
        return Batch(observation, taken[..., split:-2], taken[..., -2], ends, ends)
    taken = rows[(starts[places] + steps[:, None]) % ring]  # (H + 1, B, width)
    flag = taken[:-1, :, -1]
    return Batch(
        taken[..., :split],
        taken[:-1, :, split:-2],
        taken[:-1, :, -2],
        (flag == TERMINATED).float(),
        (flag == TRUNCATED).float(),
    )


class Priorities:
    """Priorities of the starts of S seeds (LAP, td7.md), drawn by inverting their cumulative sum, exactly.

    A place without a start has priority 0 and is never drawn. Beside the values stand the sums of blocks of
    successive places, so that a draw or an update reads a few blocks and not the whole ring. Sums are in
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
        """Places of a seed's table: whole blocks, an even number of them, as the ring is a multiple of 4."""
        return 2 * cls.BLOCK * -(-ring // (2 * cls.BLOCK))

    def replace(self, seeds: Sequence[int], dropped: Sequence[np.ndarray], taken: Sequence[np.ndarray]) -> None:
        """Of each seed: starts that are no longer kept are never drawn, new ones get the highest priority seen.

        dropped, taken: places (n,) of either, for each of `seeds`.
        """
        row = self.values.shape[1]
        off, on = (np.concatenate([s * row + p for s, p in zip(seeds, ps, strict=True)]) for ps in (dropped, taken))
        owner = np.repeat(np.asarray(seeds, np.int64), [len(p) for p in taken])
        blocks = np.unique(np.concatenate([off, on]) // self.BLOCK)  # a row is of whole blocks
        off_, on_, owner_, blocks_ = _together([off, on, owner, blocks], self.values.device)
        values = self.values.view(-1)
        values[off_] = 0.0
        values[on_] = self.highest[owner_]
        self.block_sums.view(-1)[blocks_] = values.view(-1, self.BLOCK)[blocks_].double().sum(-1)

    def update(self, seeds: slice, places: Tensor, priority: Tensor) -> None:
        """New priorities (n, B) of the starts drawn, at `places` (n, B), for n successive seeds of the pack.

        Of a start drawn more than once the largest counts, whatever the order of writing.
        """
        values, sums = self.values[seeds], self.block_sums[seeds]
        values.scatter_(1, places, 0.0)
        values.scatter_reduce_(1, places, priority.to(values.dtype), "amax")
        blocks, lane = places // self.BLOCK, torch.arange(len(places), device=places.device)[:, None]
        sums.scatter_(1, blocks, values.view(len(places), -1, self.BLOCK)[lane, blocks].double().sum(-1))
        self.highest[seeds] = torch.maximum(self.highest[seeds], priority.amax(1))

    def reset_highest(self, seeds: slice) -> None:
        """Forget priorities that no start has any more (td7.md, step 6)."""
        self.highest[seeds] = self.values[seeds].amax(1)

    def save(self, seed: int) -> dict[str, Tensor]:
        return {"priority": self.values[seed].cpu().clone(), "highest": self.highest[seed].cpu().clone()}

    def load(self, seed: int, saved: Mapping[str, Tensor]) -> None:
        """Restore what `save` gave.

        Raises:
            ValueError: if it is of another size, or its priorities do not stand where the starts are.
        """
        values = saved["priority"].to(self.values.device)
        if values.shape != self.values[seed].shape or not torch.equal(values != 0, self.values[seed] != 0):
            raise ValueError("saved priorities do not belong to the transitions of this replay")
        self.values[seed] = values
        self.block_sums[seed] = values.view(-1, self.BLOCK).double().sum(-1)
        self.highest[seed] = saved["highest"].to(self.values.device)

    @classmethod
    def sample(cls, values: Tensor, block_sums: Tensor, uniform: Tensor) -> Tensor:
        """Places (B,) drawn in proportion to one seed's `values`; `uniform` (B,) float64 in [0, 1).

        The place drawn is the first at which the cumulative sum exceeds `uniform` times the total. Rounding
        never leads to a place of priority 0.
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
