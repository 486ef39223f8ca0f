"""What training writes about itself beside its evaluations: training.csv, and how far each run is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from iqrl.agent import Progress
from iqrl.training.pack import Pack, Run

REPORT_SECONDS = 2.0  # between progress files
WATCHED_SECONDS = 60.0  # between lines of whoever watches


class Reporter:
    """Reports on the runs of a pack.

    Args:
        watched: gets a line a minute, of how far things are.
    """

    def __init__(self, pack: Pack, watched: Callable[[str], None]) -> None:
        self.pack, self.watched = pack, watched
        self.reported_at = self.watched_at = time.monotonic()
        self.rate_points: list[tuple[float, int, int]] = []  # time, decisions and updates of the first living run
        self.rate_of: Progress | None = None
        self.compiling = ""

    def watch(self, what: str) -> None:
        """Say what is being compiled meanwhile; "" once it is."""
        self.compiling, self.rate_points = what, []  # speeds from before tell nothing of what follows
        if what:
            self.pack.announce(f"{self._names()}  {what}")
        for run in self.pack.living:
            with run.isolated():
                self.report(run)

    def write_episodes(self) -> None:
        """Write a row of training.csv for every run whose training episode has ended."""
        for run in self.pack.living:
            if run.reported != run.progress.episodes:
                with run.isolated():
                    self._write_episode(run)

    def _write_episode(self, run: Run) -> None:
        metrics = self.pack.engine.metrics(run.place)
        row: dict[str, Any] = {
            "env_step": run.env_step,
            "episode": run.progress.episodes - 1,
            "updates": run.progress.updates,
            "episode_return": run.last_return,
        }
        if task := self.pack.spec.task_name(run.progress.episodes - 1):
            row["task"] = task
        if run.last_success is not None:
            row["success"] = int(run.last_success)
        if taken := [name for name in metrics if name in row or set(name) & set(",\n")]:
            raise ValueError(f"a metric is called {taken[0]!r}, which is no name for a column of its own")
        run.directory.append("training.csv", {**row, **metrics})
        run.reported = run.progress.episodes
        bad = [k for k, v in metrics.items() if not np.isfinite(v)]
        if bad:
            raise FloatingPointError(f"{bad[0]} is {metrics[bad[0]]} at env step {run.env_step}")

    def tick(self) -> None:
        """Write the progress files and the line of whoever watches, where it is time."""
        now = time.monotonic()
        if now - self.reported_at >= REPORT_SECONDS:
            self.reported_at = now
            if self.pack.living:
                first = self.pack.living[0].progress
                before = self.rate_points if self.rate_of is first else []  # else of a run that has ended
                self.rate_points, self.rate_of = [*before[-30:], (now, first.decisions, first.updates)], first
            for run in self.pack.living:
                with run.isolated():
                    self.report(run)
        if now - self.watched_at >= WATCHED_SECONDS and self.pack.living:
            self.watched_at = now
            self.watched(self._pace_line())

    def report(self, run: Run) -> None:
        """Write how far a run is."""
        steps_per_second, updates_per_second = self._rates()
        run.directory.report(
            {
                "env_step": run.env_step,
                "env_steps": self.pack.budget * run.action_repeat,
                "updates": run.progress.updates,
                "pending": run.progress.pending,
                "last_return": run.last_return,
                "env_steps_per_second": steps_per_second,
                "updates_per_second": updates_per_second,
                "wall_seconds": self.pack.wall_seconds(run),
                "doing": self.compiling or ("" if run.progress.updates else "warm-up"),
            }
        )

    def _rates(self) -> tuple[float, float]:
        """Env steps and updates a second, of late."""
        points = self.rate_points or [(0.0, 0, 0)]
        (t0, d0, u0), (t1, d1, u1) = points[0], points[-1]
        elapsed = max(t1 - t0, 1e-9)
        return (d1 - d0) * self.pack.spec.action_repeat / elapsed, (u1 - u0) / elapsed

    def _pace_line(self) -> str:
        first = self.pack.living[0]
        steps, total = first.env_step, self.pack.budget * first.action_repeat
        speed, _ = self._rates()
        going = speed > 0 and steps < total  # the last updates take no steps
        left = f"{(total - steps) / speed / 60:,.0f} min left" if going and first.progress.updates else "warm-up"
        pace = f"  {speed:,.0f} steps/s  {left}" if going else ""
        return f"{self._names()}  step {steps:>9,} of {total:,}{pace}"

    def _names(self) -> str:
        first, *others = self.pack.living
        return f"{first.name} and {len(others)} more" if others else first.name
