"""Runs for a notebook of one's own: ``from analysis import load, study``.

tables = load("runs")                      # .runs, .evaluations, .latents, .training: tidy pandas frames
main = study(tables, "main")               # which runs count, as in every figure; main.problems says which do not
finals(main)                               # a row a run, at the compared env step
aggregate(finals(main), "score")           # IQM and 95% interval, an arm a row
curves(main, "score")                      # the same over env steps
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import building, runs, training
from analysis.display import Display
from analysis.errors import InputError
from analysis.several_tasks import one_agents, tasks_of
from analysis.statistics import REPLICATES, Statistic, Together, interval, iqm, like
from analysis.studies import Study


@dataclass
class Frames(runs.RunTables):
    """Tidy tables of run folders; the column `key` (folder/run) joins them. docs/analysis.md lists the columns."""

    folders: tuple[Path, ...]

    @cached_property
    def training(self) -> pd.DataFrame:
        """A row an episode of training: key, env_step, episode, updates, episode_return, losses, values."""
        return training.read(dict(zip(map(str, self.runs["key"]), map(tasks_of, self.runs["config"]), strict=True)))


def load(*folders: str | Path, cache: bool = True) -> Frames:
    """All runs of `folders`; none of them keeps the others from being read.

    Raises:
        InputError: a folder does not exist.
    """
    paths = tuple(map(Path, folders))
    found = runs.load(list(paths), cache)
    return Frames(found.runs, found.evaluations, found.latents, paths)


def study(
    tables: Frames,
    sweep: str | None = None,
    *,
    arms: Sequence[str] = (),
    tasks: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    baseline: str = "",
    short: str = "cut",
    at: int | None = None,
) -> Study:
    """One sweep, or the runs of no sweep ("runs"); by default the only study that there is.

    Args:
        arms, tasks: those to keep, in this order; all if empty.
        labels: of arms and tasks, by name.
        baseline: the arm that the others are compared with; by default the first.
        short: "cut" an arm where its shortest run ends, or "drop" short runs.
        at: the env step at which arms are compared; by default the last that all have reached.

    Raises:
        InputError: there is no such sweep, arm or task, no run to show, or more than one study to choose from.
    """
    display = Display(baseline, tuple(arms), tuple(tasks), labels or {})
    found, _ = building.build(tables, list(tables.folders), sweep, short, at, display)
    if len(found) > 1:
        raise InputError(f"several studies; expected one of {', '.join(own.name for own in found)}")
    return found[0]


def finals(own: Study, *quantities: str) -> pd.DataFrame:
    """A row a run at the compared env step: arm, task, seed, key, and `quantities` (default: mean_return, score).

    `score` is the normalised return. A quantity is a column of evaluations or latents.
    """
    at = np.array([own.mark])
    rows = [
        {"arm": arm.name, "task": task, "seed": seed, "key": key}
        | {name: own.runs(arm.name, task, name, at)[i, 0] for name in quantities or ("mean_return", "score")}
        for arm in own.arms
        for task in own.tasks
        for i, (key, seed) in enumerate(own.keys_and_seeds(arm.name, task))
    ]
    return pd.DataFrame(rows)


def aggregate(
    frame: pd.DataFrame,
    value: str,
    statistic: Statistic = iqm,
    method: str = "percentile",
    replicates: int = REPLICATES,
) -> pd.DataFrame:
    """A statistic over tasks and seeds with its 95% interval, an arm a row: arm, point, low, high, tasks, runs.

    Args:
        frame: a row a run, with columns arm, task and `value`, such as `finals` gives; if its `key` says that runs
            are of one agent on all tasks, they are resampled whole.
        statistic: one of analysis.statistics: iqm, mean, median, optimality_gap. Tasks count alike.
        method: of the interval: percentile, bca or t.
    """
    rows = []
    for arm, own in frame.groupby("arm", sort=False):
        tasks = [task for _, task in own.groupby("task", sort=False)]
        scores = [task[value].to_numpy(float)[:, None] for task in tasks]
        if "key" in own and one_agents([list(task["key"]) for task in tasks]):
            scores = Together(scores)
        made = interval(scores, statistic, replicates, method=method)
        rows.append((arm, made.point[0], made.low[0], made.high[0], len(scores), len(own)))
    return pd.DataFrame(rows, columns=["arm", "point", "low", "high", "tasks", "runs"])


def curves(
    own: Study,
    quantity: str,
    statistic: Statistic = iqm,
    method: str = "percentile",
    replicates: int = REPLICATES,
    tasks: Sequence[str] = (),
) -> pd.DataFrame:
    """`aggregate` at every env step of an arm's curve: arm, env_step, point, low, high.

    Args:
        tasks: which to be over; by default those with a known scale that all arms have.

    Raises:
        InputError: no arm has the quantity at any env step.
    """
    shared = list(tasks) or own.shared_tasks()
    frames = []
    for arm in own.arms:
        steps = own.grid(arm.name)
        values = own.values(arm.name, quantity, steps, shared)
        known = np.all([np.isfinite(task).all(axis=0) for task in values], axis=0) & (steps >= 0)
        if shared and known.any():
            some = like(values, (task[:, known] for task in values))
            made = interval(some, statistic, replicates, method=method)
            columns = {"point": made.point, "low": made.low, "high": made.high}
            frames.append(pd.DataFrame({"arm": arm.name, "env_step": steps[known], **columns}))
    if not frames:
        raise InputError(f"{quantity}: no arm has it at an env step of its curve on {', '.join(shared) or 'any task'}")
    return pd.concat(frames, ignore_index=True)
