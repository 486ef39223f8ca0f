"""Replay of a pack: each seed's transitions in order, each observation stored once.

A row is one float32 vector ``observation | action | reward | flag``; an episode of T decisions takes
T + 1 rows, the last of which holds its final observation only. Rows live on the learning device; the same
bytes are what a run's replay log keeps on disk (`iqrl.runs.replay_log`). Of a task observed as images, a row is
``action | reward | flag``, and its newest picture stands beside it (`iqrl.training.frames`).

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
    """Rows of one seed on their way into its tables, on the host.

    Attributes:
        place: the seed's, in the pack.
        rows, at: (n, width), and their indices (n,) in `Replay.rows`.
        begun: serial numbers of their episodes' first rows, (n,).
        starts, starts_at: serial numbers of the starts that these rows complete, and their indices in `starts`, (m,).
        born: how many decisions came before each of these starts, (m,).
        dropped: indices in `starts` of those that are no longer kept.
    """

    place: int
    rows: np.ndarray
    at: np.ndarray
    begun: np.ndarray
    starts: np.ndarray
    starts_at: np.ndarray
    born: np.ndarray
    dropped: np.ndarray


class Replay:
    """Ring of `capacity` transitions for each of S seeds.

    Args:
        spec: sizes of the task.
        seeds: S.
        slices: how the agent samples.
        capacity: transitions kept per seed; older ones are dropped.
        device: where rows live.
        frames_in: a folder for the file of pictures, as of `Frames`; otherwise they live where rows do.
    """

    def __init__(
        self,
        spec: TaskSpec,
        seeds: int,
        slices: Slices,
        capacity: int,
        device: torch.device | str = "cpu",
        frames_in: Path | None = None,
    ) -> None:
        self.spec, self.slices, self.capacity = spec, slices, capacity
        self.width = self._width(spec)
        self._split = self.width - spec.action_dim - 2  # of a row: where the action begins
        self.ring = self.ring_of(spec, slices, capacity)
        self.rows = torch.zeros(seeds, self.ring, self.width, device=device)
        self.frames = Frames(spec, seeds, self.ring, device, frames_in) if spec.frame_shape else None
        self.starts = torch.zeros(seeds, self.ring, dtype=torch.int64, device=device)  # rows' serial numbers
        on_host = self.starts.device.type == "cpu"
        self._starts = self.starts.numpy() if on_host else np.zeros((seeds, self.ring), np.int64)
        blank = (seeds, Priorities.length(self.ring) if slices.fades else 0)
        self.born = torch.zeros(blank, dtype=torch.int64, device=device)  # decisions before each start
        self.window = torch.zeros(seeds, 3, dtype=torch.int64, device=device)  # oldest start's index, count; decisions
        self.priority = Priorities(seeds, self.ring, device) if slices.prioritised else None
        self.written = [0] * seeds  # rows ever written: the serial number of the next row
        self._decisions = [0] * seeds  # of the rows written, those that are not final
        self._episode = [0] * seeds  # serial number of the current episode's first row
        self._first = [0] * seeds  # serial number of the oldest start, counting starts
        self._next = [0] * seeds  # and of the next one
        self._flag = [GOING] * seeds  # of the newest row
        self.patient = not on_host  # let rows wait
        self._waiting: list[list[np.ndarray]] = [[] for _ in range(seeds)]
        self._pictures_waiting: list[list[np.ndarray]] = [[] for _ in range(seeds)]

    def __len__(self) -> int:
        return self.rows.shape[0]

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
        """Bytes that one seed's full replay takes on the device."""
        rows = Replay.ring_of(spec, slices, capacity)
        row = 4 * Replay._width(spec) + 8 * (1 + slices.fades)  # numbers; `starts`, `born`
        frames = Frames.bytes_needed(spec, rows)
        return rows * row + frames + (Priorities.bytes_needed(rows) if slices.prioritised else 0)

    def available(self, place: int) -> int:
        """Number of slices that the seed at one place can sample from."""
        self._write_waiting(range(len(self)))  # of all: whoever asks after one asks after the others
        return self._available(place)

    def _available(self, place: int) -> int:
        return max(0, self._next[place] - self._first[place] - self.slices.held_back)

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
            self._write_waiting([place])
        return rows, pictures

    def extend(self, place: int, rows: np.ndarray, pictures: np.ndarray | None = None) -> None:
        """Append rows (n, width) and pictures that `add` made, such as those of a replay log."""
        self._await(place, rows, pictures)
        self._write_waiting([place])

    def _await(self, place: int, rows: np.ndarray, pictures: np.ndarray | None) -> None:
        self._waiting[place].append(rows)
        if pictures is not None:
            self._pictures_waiting[place].append(pictures)

    def _write_waiting(self, places: Iterable[int]) -> None:
        """Write what waits of the seeds at some places, in one copy."""
        block = max(1, min(self.ring, self.capacity) // 2)  # never overwrite what the same call writes
        while places := [place for place in places if self._waiting[place]]:
            new, pictures = [], []
            for place in places:
                new.append(self._locate(place, _first(self._waiting[place], block)))
                if self.frames is not None:
                    pictures.append(_first(self._pictures_waiting[place], block))
            self._write(new, pictures)

    def save(self, place: int) -> dict[str, Tensor]:
        """What of one seed's replay its rows do not tell: the priorities. On the CPU; empty without them."""
        self._write_waiting([place])
        return {} if self.priority is None else self.priority.save(place)

    def load(self, place: int, saved: Mapping[str, Tensor]) -> None:
        """Restore what `save` gave, after the rows have been appended again.

        Raises:
            ValueError: if it belongs to another replay.
        """
        if self.priority is not None:
            self.priority.load(place, saved)

    def _locate(self, place: int, rows: np.ndarray) -> NewRows:
        """Where rows of a seed go in its tables, and the starts that they complete."""
        serial, horizon = self.written[place], self.slices.horizon
        at = np.arange(serial, serial + len(rows)) % self.ring
        starts: list[int] = []
        finals: list[int] = []  # before each start
        begun: list[int] = []
        previous, final = self._flag[place], serial - self._decisions[place]
        for flag in rows[:, -1].tolist():
            begun.append(self._episode[place])
            if self.slices.cross_episodes:
                starts += [serial] if flag != FINAL else []
            elif serial - horizon >= self._episode[place]:  # completes the slice that started H before
                starts.append(serial - horizon)
            if flag == FINAL and previous == TERMINATED and not self.slices.cross_episodes:
                starts += range(max(self._episode[place], serial - horizon + 1), serial)
            finals += [final] * (len(starts) - len(finals))
            if flag == FINAL:
                self._episode[place], final = serial + 1, final + 1
            previous, serial = flag, serial + 1
        self.written[place], self._flag[place], self._decisions[place] = serial, previous, serial - final
        dropped, starts_at = self._update_starts(place, starts)
        found, born = np.array(starts, np.int64), np.array(starts, np.int64) - np.array(finals, np.int64)
        return NewRows(place, rows, at, np.array(begun, np.int64), found, starts_at, born, dropped)

    def _update_starts(self, place: int, new: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Drop starts that are too many or whose rows are written over, then add new ones: indices of both."""
        first, following = self._first[place], self._next[place]
        oldest = self.written[place] - self.ring + self.spec.stack - 1  # whose stack is whole
        while first < following and (
            self._starts[place, first % self.ring] < oldest or following + len(new) - first > self.capacity
        ):
            first += 1
        dropped = np.arange(self._first[place], first) % self.ring
        added = (following + np.arange(len(new))) % self.ring
        self._starts[place, added] = new
        self._first[place], self._next[place] = first, following + len(new)
        return dropped, added

    def _write(self, new: list[NewRows], pictures: list[np.ndarray]) -> None:
        """Take rows of several seeds to the device: one copy of numbers, one of indices into the tables laid flat."""
        places = [n.place for n in new]
        windows = [[self._first[p] % self.ring, self._available(p), self._decisions[p]] for p in places]
        parts = [
            np.concatenate([n.place * self.ring + n.at for n in new]),
            np.concatenate([n.place * self.ring + n.starts_at for n in new]),
            np.concatenate([n.starts for n in new]),
            np.concatenate([n.place * self.born.shape[1] + n.starts_at for n in new]),
            np.concatenate([n.born for n in new]),
            np.array(places),
            np.array(windows).reshape(-1),
            np.concatenate([n.begun for n in new]),
        ]
        rows_at, starts_at, starts, born_at, born, seeds, window, begun = to_device(parts, self.rows.device)
        rows = np.concatenate([n.rows for n in new])
        self.rows.view(-1, self.width)[rows_at] = torch.from_numpy(rows).to(self.rows.device)
        if self.frames is not None:
            self.frames.write(rows_at, np.concatenate(pictures), begun)
        self.starts.view(-1)[starts_at] = starts
        if self.slices.fades:
            self.born.view(-1)[born_at] = born
        self.window[seeds] = window.view(-1, 3)
        if self.priority is not None:
            self.priority.replace(places, [n.dropped for n in new], [n.starts_at for n in new])

    def newest(self, place: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The last `count` observations (count, O) and actions (count, A) of the running episode, oldest first.

        Of images, the newest picture of each observation, (count, C, height, width).
        """
        self._write_waiting([place])
        index = torch.arange(self.written[place] - count, self.written[place]).to(self.rows.device) % self.ring
        rows = self.rows[place, index].cpu().numpy()
        seen = rows[:, : self._split] if self.frames is None else self.frames.pictures[place, index].cpu().numpy()
        return seen, rows[:, self._split : -2]

    def update_priorities(self, places: slice, sampled: Tensor, priority: Tensor) -> None:
        """Of seeds side by side: new priorities (n, B) of the starts `sampled` (n, B); as of `Priorities`."""
        assert self.priority is not None
        self.priority.update(places, sampled, priority)

    def reset_highest(self, places: slice) -> None:
        """As of `Priorities`."""
        assert self.priority is not None
        self.priority.reset_highest(places)

    def statistics(self, place: int) -> dict[str, Tensor]:
        """Of the transitions kept: `mean_absolute_reward`, and the number of `terminations`. Scalars."""
        self._write_waiting(range(len(self)))
        kept = self.rows[place, : min(self.written[place], self.ring)]
        reward, flag = kept[:, -2].double(), kept[:, -1]  # the reward of a final row is 0
        return {
            "mean_absolute_reward": (reward.abs().sum() / (flag != FINAL).sum()).float(),
            "terminations": (flag == TERMINATED).sum().float(),
        }

    def tables(self) -> dict[str, Tensor]:
        """The tensors that `iqrl.training.sampling` reads, each with a leading axis of seeds."""
        self._write_waiting(range(len(self)))
        tables = {"rows": self.rows, "starts": self.starts, "window": self.window}
        if self.priority is not None:
            tables |= {"priority": self.priority.values, "block_sums": self.priority.block_sums}
        if self.slices.fades:
            tables["born"] = self.born
        return tables if self.frames is None else tables | self.frames.tables()


def _first(waiting: list[np.ndarray], count: int) -> np.ndarray:
    """Take the first `count` of what waits, at most."""
    whole = np.concatenate(waiting)
    waiting[:] = [whole[count:]] if len(whole) > count else []
    return whole[:count]
