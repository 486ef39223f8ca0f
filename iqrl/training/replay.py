"""Replay of a pack: each seed's transitions in order, each observation stored once.

A row is one float32 vector ``observation | action | reward | flag``; an episode of T decisions takes
T + 1 rows, the last of which holds its final observation only. Rows live on the learning device; the same
bytes are what a run's replay log keeps on disk (`iqrl.runs.replay_log`). Of a task observed as images, a row is
``action | reward | flag``, and its newest picture stands beside it (`iqrl.training.frames`).

Each task of each seed has a ring of its own, so that batches can be balanced over them: that of seed s and task n of N
is ring s N + n. To others a *place* is a seed's. A row tells its task by the last number of its observation, so a
seed's replay log holds its episodes as they came.

Off the CPU, rows wait on the host until something reads the replay, and go to the device together: those of all seeds,
and of an agent that learns after each episode, the episode, are one copy.

`starts` lists, oldest first, the rows at which a slice may start. A slice of H transitions may start at a
row once H more rows of its episode exist; rows closer than that to a *termination* are starts too (the
agent masks what follows it), rows close to a truncation never are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from iqrl.agent import Slices
from iqrl.environments.tasks import TaskSpec
from iqrl.training.frames import Frames, newest_picture
from iqrl.training.priorities import Priorities, to_device

GOING, TERMINATED, TRUNCATED, FINAL = 0.0, 1.0, 2.0, 3.0


@dataclass(frozen=True)
class NewRows:
    """Rows on their way into a ring's tables, on the host.

    Attributes:
        ring: its number.
        rows, at: (n, width), and their indices (n,) in `Replay.rows`.
        begun: serial numbers of their episodes' first rows, (n,).
        starts, starts_at: serial numbers of the starts that these rows complete, and their indices in `starts`, (m,).
        born: how many decisions came before each of these starts, (m,).
        dropped: indices in `starts` of those that are no longer kept.
    """

    ring: int
    rows: np.ndarray
    at: np.ndarray
    begun: np.ndarray
    starts: np.ndarray
    starts_at: np.ndarray
    born: np.ndarray
    dropped: np.ndarray


class Replay:
    """Rings of `capacity` transitions, for each of S seeds one of each task.

    Args:
        spec: sizes of the task.
        seeds: S.
        slices: how the agent samples.
        capacity: transitions kept in a ring; older ones are dropped.
        device: where rows live.
        frames: where pictures live: on the "device", in "memory" of the host, or in a file of a folder.
    """

    def __init__(
        self,
        spec: TaskSpec,
        seeds: int,
        slices: Slices,
        capacity: int,
        device: torch.device | str = "cpu",
        frames: Literal["device", "memory"] | Path = "device",
    ) -> None:
        self.spec, self.slices, self.capacity = spec, slices, capacity
        self.width = self._width(spec)
        self._split = self.width - spec.action_dim - 2  # of a row: where the action begins
        self.ring = self.ring_of(spec, slices, capacity)
        self.tasks = spec.task_count
        rings = seeds * self.tasks
        self.rows = torch.zeros(rings, self.ring, self.width, device=device)
        self.frames: Frames | None = None
        if spec.frame_shape and frames == "device":
            self.frames = Frames(spec, rings, self.ring, device)
        elif spec.frame_shape:
            folder = frames if isinstance(frames, Path) else None
            apart = frames == "memory" or self.rows.device.type != "cpu"  # a CPU reads files as its memory
            self.frames = Frames(spec, rings, self.ring, "cpu", folder, apart)
        self.starts = torch.zeros(rings, self.ring, dtype=torch.int64, device=device)  # rows' serial numbers
        on_host = self.starts.device.type == "cpu"
        self.starts_on_host = self.starts.numpy() if on_host else np.zeros((rings, self.ring), np.int64)
        blank = (rings, Priorities.length(self.ring) if slices.fades else 0)
        self.born = torch.zeros(blank, dtype=torch.int64, device=device)  # decisions before each start
        self.window = torch.zeros(rings, 3, dtype=torch.int64, device=device)  # oldest start's index, count; decisions
        self.priority = Priorities(rings, self.ring, device) if slices.prioritised else None
        self.written = [0] * rings  # rows ever written: the serial number of the next row
        self._decisions = [0] * rings  # of the rows written, those that are not final
        self._episode = [0] * rings  # serial number of the current episode's first row
        self._first = [0] * rings  # serial number of the oldest start, counting starts
        self._next = [0] * rings  # and of the next one
        self._flag = [GOING] * rings  # of the newest row
        self._newest = [place * self.tasks for place in range(seeds)]  # ring of each seed's newest row
        self.patient = not on_host  # let rows wait
        self._waiting: list[list[np.ndarray]] = [[] for _ in range(rings)]
        self._pictures_waiting: list[list[np.ndarray]] = [[] for _ in range(rings)]

    def __len__(self) -> int:
        return len(self._newest)

    @property
    def apart(self) -> bool:
        """Whether pictures live on the host and rows do not: `sampling.gather_apart` gives observations."""
        return self.frames is not None and self.frames.apart

    def _rings(self, place: int) -> range:
        """Of the seed at one place: a ring a task."""
        return range(place * self.tasks, (place + 1) * self.tasks)

    @staticmethod
    def _width(spec: TaskSpec) -> int:
        """Numbers of a row."""
        return (0 if spec.frame_shape else spec.observation_dim) + spec.action_dim + 2

    @staticmethod
    def ring_of(spec: TaskSpec, slices: Slices, capacity: int) -> int:
        """Rows kept: a margin for final rows and for the slice being written over.

        Final rows are as many as episodes, and an episode that terminates may be of one decision. No smaller than an
        episode, which a resume reads to play it again. Of images, the oldest stack's earlier pictures come on top.
        A multiple of 4, or of 16 of images, so that every seed's tables begin at a multiple of 16 bytes: compiled code
        copies inputs that do not, all of them, at every call.
        """
        finals = capacity if spec.terminates else capacity // spec.episode_decisions
        rows = max(capacity, spec.episode_decisions) + finals + slices.horizon + 2 + (spec.stack - 1)
        multiple = 16 if spec.frame_shape else 4
        return -(-rows // multiple) * multiple

    @staticmethod
    def bytes_needed(spec: TaskSpec, slices: Slices, capacity: int) -> int:
        """Bytes that one full ring takes on the device."""
        rows = Replay.ring_of(spec, slices, capacity)
        row = 4 * Replay._width(spec) + 8 * (1 + slices.fades)  # numbers; `starts`, `born`
        frames = Frames.bytes_needed(spec, rows)
        return rows * row + frames + (Priorities.bytes_needed(rows) if slices.prioritised else 0)

    def available(self, place: int) -> int:
        """Number of slices that the seed at one place can sample from; of several tasks, the one with the fewest."""
        self._write_waiting()  # of all: whoever asks after one asks after the others
        return min(self._available(ring) for ring in self._rings(place))

    def _available(self, ring: int) -> int:
        return max(0, self._next[ring] - self._first[ring] - self.slices.held_back)

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
        """Append one transition of the seed at one place of the pack.

        Returns:
            (1 or 2, width) float32, the rows written: two at an episode's end; and of images their newest pictures,
            (1 or 2, C, height, width) uint8.
        """
        seen = [observation, next_observation] if terminated or truncated else [observation]
        rows, pictures = np.zeros((len(seen), self.width), np.float32), None
        split = self._split
        rows[0, split:-2], rows[0, -2] = action, reward
        rows[0, -1] = TERMINATED if terminated else TRUNCATED if truncated else GOING
        rows[1:, -1] = FINAL
        if self.frames is None:
            rows[:, :split] = seen
        else:
            pictures = np.stack([newest_picture(self.spec, o) for o in seen])
        self._await(place, rows, pictures)
        if not self.patient:
            self._write_waiting(self._rings(place))
        return rows, pictures

    def extend(self, place: int, rows: np.ndarray, pictures: np.ndarray | None = None) -> None:
        """Append rows (n, width) and pictures that `add` made, such as those of a replay log."""
        self._await(place, rows, pictures)
        self._write_waiting(self._rings(place))

    def _await(self, place: int, rows: np.ndarray, pictures: np.ndarray | None) -> None:
        for n, ring in enumerate(self._rings(place)):
            own = rows[:, self._split - 1] == n if self.spec.tasks else slice(None)
            if len(its := rows[own]):
                self._waiting[ring].append(its)
                if pictures is not None:
                    self._pictures_waiting[ring].append(pictures[own])
        if self.spec.tasks and len(rows):
            self._newest[place] = self._rings(place)[int(rows[-1, self._split - 1])]

    def _write_waiting(self, rings: Iterable[int] | None = None) -> None:
        """Write what waits to go into some rings, or into all, in one copy."""
        rings = range(len(self.rows)) if rings is None else rings
        block = max(1, min(self.ring, self.capacity) // 2)  # never overwrite what the same call writes
        while rings := [ring for ring in rings if self._waiting[ring]]:
            new, pictures = [], []
            for ring in rings:
                new.append(self._locate(ring, _first(self._waiting[ring], block)))
                if self.frames is not None:
                    pictures.append(_first(self._pictures_waiting[ring], block))
            self._write(new, pictures)

    def save(self, place: int) -> dict[str, Tensor]:
        """What of one seed's replay its rows do not tell: the priorities. On the CPU; empty without them.

        Of several tasks, each entry has a leading axis of these.
        """
        if self.priority is None:
            return {}
        self._write_waiting(self._rings(place))
        saved = [self.priority.save(ring) for ring in self._rings(place)]
        return {k: torch.stack([part[k] for part in saved]) for k in saved[0]} if self.spec.tasks else saved[0]

    def load(self, place: int, saved: Mapping[str, Tensor]) -> None:
        """Restore what `save` gave, after the rows have been appended again.

        Raises:
            ValueError: if it belongs to another replay.
        """
        if self.priority is not None:
            for n, ring in enumerate(self._rings(place)):
                self.priority.load(ring, {k: v[n] for k, v in saved.items()} if self.spec.tasks else saved)

    def _locate(self, ring: int, rows: np.ndarray) -> NewRows:
        """Where rows go in a ring's tables, and the starts that they complete."""
        serial, horizon = self.written[ring], self.slices.horizon
        at = np.arange(serial, serial + len(rows)) % self.ring
        starts: list[int] = []
        finals: list[int] = []  # before each start
        begun: list[int] = []
        previous, final = self._flag[ring], serial - self._decisions[ring]
        for flag in rows[:, -1].tolist():
            begun.append(self._episode[ring])
            if self.slices.cross_episodes:
                starts += [serial] if flag != FINAL else []
            elif serial - horizon >= self._episode[ring]:  # completes the slice that started H before
                starts.append(serial - horizon)
            if flag == FINAL and previous == TERMINATED and not self.slices.cross_episodes:
                starts += range(max(self._episode[ring], serial - horizon + 1), serial)
            finals += [final] * (len(starts) - len(finals))
            if flag == FINAL:
                self._episode[ring], final = serial + 1, final + 1
            previous, serial = flag, serial + 1
        self.written[ring], self._flag[ring], self._decisions[ring] = serial, previous, serial - final
        dropped, starts_at = self._update_starts(ring, starts)
        found, born = np.array(starts, np.int64), np.array(starts, np.int64) - np.array(finals, np.int64)
        return NewRows(ring, rows, at, np.array(begun, np.int64), found, starts_at, born, dropped)

    def _update_starts(self, ring: int, new: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Drop starts that are too many or whose rows are written over, then add new ones: indices of both."""
        first, following = self._first[ring], self._next[ring]
        oldest = self.written[ring] - self.ring + self.spec.stack - 1  # whose stack is whole
        while first < following and (
            self.starts_on_host[ring, first % self.ring] < oldest or following + len(new) - first > self.capacity
        ):
            first += 1
        dropped = np.arange(self._first[ring], first) % self.ring
        added = (following + np.arange(len(new))) % self.ring
        self.starts_on_host[ring, added] = new
        self._first[ring], self._next[ring] = first, following + len(new)
        return dropped, added

    def _write(self, new: list[NewRows], pictures: list[np.ndarray]) -> None:
        """Take rows of several rings to the device: one copy of numbers, one of indices into the tables laid flat."""
        rings = [n.ring for n in new]
        windows = [[self._first[r] % self.ring, self._available(r), self._decisions[r]] for r in rings]
        parts = [
            np.concatenate([n.ring * self.ring + n.at for n in new]),
            np.concatenate([n.ring * self.ring + n.starts_at for n in new]),
            np.concatenate([n.starts for n in new]),
            np.concatenate([n.ring * self.born.shape[1] + n.starts_at for n in new]),
            np.concatenate([n.born for n in new]),
            np.array(rings),
            np.array(windows).reshape(-1),
            np.concatenate([n.begun for n in new]),
        ]
        rows_at, starts_at, starts, born_at, born, owners, window, begun = to_device(parts, self.rows.device)
        rows = np.concatenate([n.rows for n in new])
        self.rows.view(-1, self.width)[rows_at] = torch.from_numpy(rows).to(self.rows.device)
        if self.frames is not None:
            self.frames.write(rows_at, np.concatenate(pictures), begun)
        self.starts.view(-1)[starts_at] = starts
        if self.slices.fades:
            self.born.view(-1)[born_at] = born
        self.window[owners] = window.view(-1, 3)
        if self.priority is not None:
            self.priority.replace(rings, [n.dropped for n in new], [n.starts_at for n in new])

    def newest(self, place: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The last `count` observations (count, O) and actions (count, A) of the running episode, oldest first.

        Of images, the newest picture of each observation, (count, C, height, width).
        """
        ring = self._newest[place]
        self._write_waiting([ring])
        index = torch.arange(self.written[ring] - count, self.written[ring]) % self.ring
        rows = self.rows[ring, index].cpu().numpy()
        seen = rows[:, : self._split] if self.frames is None else self.frames.pictures[ring, index].cpu().numpy()
        return seen, rows[:, self._split : -2]

    def update_priorities(self, places: slice, sampled: Tensor, priority: Tensor) -> None:
        """Of seeds side by side: new priorities (n, B) of the starts `sampled` (n, B); as of `Priorities`.

        Of several tasks, each ring gets the part of a batch that was drawn from it.
        """
        assert self.priority is not None
        parts = (torch.tensor_split(x, self.tasks, dim=1) for x in (sampled, priority))
        for n, (own, its) in enumerate(zip(*parts, strict=True)):
            self.priority.update(slice(places.start * self.tasks + n, places.stop * self.tasks, self.tasks), own, its)

    def reset_highest(self, places: slice) -> None:
        """As of `Priorities`."""
        assert self.priority is not None
        self.priority.reset_highest(slice(places.start * self.tasks, places.stop * self.tasks))

    def statistics(self, place: int) -> dict[str, Tensor]:
        """Of the transitions kept: `mean_absolute_reward`, and the number of `terminations`. Scalars.

        The former is the tasks' on average, for batches have as many of each.
        """
        self._write_waiting()
        rewards, ends = [], []
        for ring in self._rings(place):
            kept = self.rows[ring, : min(self.written[ring], self.ring)]
            reward, flag = kept[:, -2].double(), kept[:, -1]  # the reward of a final row is 0
            rewards.append((reward.abs().sum() / (flag != FINAL).sum()).float())
            ends.append((flag == TERMINATED).sum().float())
        return {"mean_absolute_reward": torch.stack(rewards).mean(), "terminations": torch.stack(ends).sum()}

    def tables(self) -> dict[str, Tensor]:
        """The tensors that `iqrl.training.sampling` reads, with a leading axis of seeds; then of tasks, if several."""
        self._write_waiting()
        tables = {"rows": self.rows, "starts": self.starts, "window": self.window}
        if self.priority is not None:
            tables |= {"priority": self.priority.values, "block_sums": self.priority.block_sums}
        if self.slices.fades:
            tables["born"] = self.born
        if self.frames is not None:
            tables |= self.frames.tables()
        return {k: v.unflatten(0, (-1, self.tasks)) for k, v in tables.items()} if self.spec.tasks else tables


def _first(waiting: list[np.ndarray], count: int) -> np.ndarray:
    """Take the first `count` of what waits, at most."""
    whole = np.concatenate(waiting)
    waiting[:] = [whole[count:]] if len(whole) > count else []
    return whole[:count]
