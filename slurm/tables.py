"""Progress and states as text: a table that redraws itself on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from iqrl.runs.reader import RunState
from slurm.states import STATES, State

if TYPE_CHECKING:  # they load PyTorch, which `status` does without
    from slurm.crew import Crew
    from slurm.packs import Pack

REDRAW_SECONDS = 1.0
LINES_SECONDS = 60.0  # between plain lines about a run


class Live:
    """Shows a crew at work: each run's step, speed, last return and time left."""

    def __init__(self, packs: Sequence[Pack], out: TextIO) -> None:
        self.out = out
        self.names = [name for pack in packs for name in pack.runs]
        self.budget = {name: pack.env_steps for pack in packs for name in pack.runs}
        self.terminal = out.isatty()
        self.drawn = 0  # lines of the table on the screen
        self.shown_at = time.monotonic() if not self.terminal else 0.0

    def announce(self, line: str) -> None:
        """A line that stays."""
        with self._heard():
            self._erase()
            print(f"{time.strftime('%H:%M:%S')}  {line}", file=self.out, flush=True)

    @contextlib.contextmanager
    def _heard(self) -> Iterator[None]:
        """A sweep goes on when nobody reads any more what it says: the pager was left, the terminal is gone."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.EIO):  # a disk may have room again
                with open(os.devnull, "w") as nowhere:
                    os.dup2(nowhere.fileno(), self.out.fileno())

    def show(self, crew: Crew, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self.shown_at < (REDRAW_SECONDS if self.terminal else LINES_SECONDS):
            return
        self.shown_at = now
        with self._heard():
            self._show(*self._rows(crew))

    def _show(self, rows: Sequence[tuple[str, ...]], counts: Mapping[str, int]) -> None:
        if not self.terminal:
            for row in rows:
                print(f"{time.strftime('%H:%M:%S')}  " + "  ".join(row), file=self.out)
            self.out.flush()
            return
        width, height = shutil.get_terminal_size()
        total = "  ".join(
            f"{counts[state]} {state}" for state in ("done", "failed", "training", "waiting") if counts[state]
        )
        lines = columns([("run", "step", "speed", "return", "left"), *rows])[: max(1, height - 3)]
        lines.append(f"{total}   (Ctrl-C saves and stops; the same command goes on)")
        self._erase()
        self.out.write("".join(line[: width - 1] + "\n" for line in lines))
        self.out.flush()
        self.drawn = len(lines)

    def finish(self, crew: Crew) -> None:
        with self._heard():
            self._erase()

    def _rows(self, crew: Crew) -> tuple[list[tuple[str, ...]], Counter[str]]:
        """A row for each run in training, and how many runs are in which state."""
        rows: list[tuple[str, ...]] = []
        counts: Counter[str] = Counter()
        for member in crew.members:
            if member.state == "waiting":
                counts["waiting"] += len(member.pack.runs)
                continue
            for name, files in zip(member.pack.runs, crew.files(member.pack), strict=True):
                state = {"done": "done", "failed": "failed"}.get(files.state, member.state)
                if state == "training":
                    rows.append(progress_row(name, files, self.budget[name]))
                counts[state] += 1
        return rows, counts

    def _erase(self) -> None:
        if self.drawn:
            self.out.write(f"\x1b[{self.drawn}A\x1b[J")
            self.drawn = 0


def progress_row(name: str, files: RunState, budget: int) -> tuple[str, ...]:
    """(run, step, speed, last return, time left) of a run in training."""
    budget = files.env_steps or budget
    step = f"{files.env_step:,}/{budget:,}"
    if not files.speed:
        return (name, step, files.doing or "starting", "", "")
    last = "" if files.last_return is None else f"return {files.last_return:.1f}"
    ahead = budget - files.env_step
    remaining = f"{duration(ahead / files.speed)} left" if ahead > 0 else "last updates"
    return (name, step, f"{files.speed:,.0f} steps/s", last, files.doing or remaining)


def duration(seconds: float) -> str:
    """Such as 40 s, 12 min, 3.4 h, 2.1 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"


def size(count: float) -> str:
    """Bytes, such as 3.4 GiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} bytes" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def columns(rows: Iterable[Sequence[str]]) -> list[str]:
    """Rows as lines with aligned columns; the first is left-aligned, the others right."""
    table = [tuple(row) for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def overview(title: str, groups: dict[tuple[str, str, str], list[State]]) -> list[str]:
    """A line for each (agent, task, arm) with how many of its runs are in which state."""
    used = [s for s in STATES if any(state.state == s for states in groups.values() for state in states)]
    rows: list[tuple[str, ...]] = [("arm", "agent", "task", *used)]
    for (agent, task, arm), states in groups.items():
        counts = Counter(state.state for state in states)
        rows.append((arm, agent, task, *(str(counts[s] or "") for s in used)))
    total = Counter(state.state for states in groups.values() for state in states)
    if len(groups) > 1:
        rows.append(("total", "", "", *(str(total[s]) for s in used)))
    return [title, *(f"  {line}" for line in columns(rows))]


def running(states: Sequence[State], budgets: dict[str, int]) -> list[str]:
    """A line for each run in training."""
    rows = [(*progress_row(s.run, s.files, budgets.get(s.run, 0)), s.job) for s in states if s.state == "running"]
    return [f"  {line}" for line in columns(rows)] if rows else []


def as_json(states: Sequence[State]) -> list[dict[str, Any]]:
    """States for programs."""
    return [
        {
            "run": s.run,
            "state": s.state,
            "env_step": s.files.env_step,
            "env_steps": s.files.env_steps,
            "env_steps_per_second": s.files.speed,
            "last_return": s.files.last_return,
            "seconds_left": s.seconds_left,
            "job": s.job or None,
            "log": str(s.log) if s.log else None,
            "reason": s.reason or None,
        }
        for s in states
    ]
