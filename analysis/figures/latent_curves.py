"""What the four latent-diagnostic figures share: one quantity of latents.csv over env steps, an arm a line."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.figures.drawing import (
    Context,
    Skip,
    arms_with,
    bootstrap_text,
    describe,
    frame_of,
    members_with,
    not_in,
)  # fmt: skip
from analysis.statistics import Estimate, mean
from analysis.studies import Arm


def aligned(context: Context, arm: Arm, quantity: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """Env steps and one (runs, steps) array a task; steps at which a run has no value yet are cut off the end.

    Of an arm that learns all the tasks with one agent there is one array, for that agent has one latent. Runs without
    a single value of the quantity are not in it; there are no steps where a task has no run with one yet.

    Raises:
        Skip: no task is shared by all arms that have the quantity.
    """
    study = context.study
    steps = study.grid(arm.name)
    shared = shared_tasks(context, quantity)
    if not shared:
        raise Skip(f"no task is shared by all arms that have {quantity}")
    shared = study.of_different_runs(arm.name, shared)
    tasks = [study.runs(arm.name, task, quantity, steps) for task in shared]
    tasks = [values[~np.isnan(values).all(axis=1)] for values in tasks]
    if not all(map(len, tasks)):
        return steps[:0], [values[:, :0] for values in tasks]
    known = np.all([~np.isnan(values).any(axis=0) for values in tasks], axis=0)
    return steps[known], [values[:, known] for values in tasks]


def shared_tasks(context: Context, quantity: str) -> list[str]:
    """Tasks on which all arms with the quantity have it: means over different tasks would not compare."""
    sets = [set(rows["task"]) for _, rows in members_with(context, quantity).groupby("arm")]
    shared = set.intersection(*sets) if sets else set()
    return [task for task in context.study.tasks if task in shared]


def over(context: Context, quantity: str) -> tuple[str, str]:
    """What a caption says of the tasks of a quantity: those it is a mean over, and those left out."""
    tasks, members = shared_tasks(context, quantity), members_with(context, quantity)
    return describe(context.study, tasks, members=members), not_in(context.study, tasks, members)


def mean_curves(context: Context, quantity: str) -> pd.DataFrame:
    """Mean of task means with its stratified bootstrap interval: arm, env_step, point, low, high, runs, tasks."""
    frames = []
    for arm in arms_with(context, quantity):
        steps, values = aligned(context, arm, quantity)
        if len(steps):
            estimate = context.interval(values, mean)
            frames.append(frame_of(arm.name, steps, estimate, runs=sum(map(len, values)), tasks=len(values)))
    return _all(frames, quantity)


def quartile_curves(context: Context, quantity: str) -> pd.DataFrame:
    """Median and quartiles over all runs, which infinite values cannot spoil; columns as `mean_curves`.

    Between two runs the median is their geometric mean. A quartile is the value of a run, the outer of the two next to
    it: between a finite and an infinite one there is nothing.
    """
    frames = []
    for arm in arms_with(context, quantity):
        steps, values = aligned(context, arm, quantity)
        if len(steps):
            pooled = np.log(np.concatenate(values))
            low = np.quantile(pooled, 0.25, axis=0, method="lower")
            high = np.quantile(pooled, 0.75, axis=0, method="higher")
            estimate = Estimate(*np.exp([np.median(pooled, axis=0), low, high]))
            frames.append(frame_of(arm.name, steps, estimate, runs=sum(map(len, values)), tasks=len(values)))
    return _all(frames, quantity)


def _all(frames: list[pd.DataFrame], quantity: str) -> pd.DataFrame:
    if not frames:
        raise Skip(f"no run has {quantity} at the env steps shown")
    return pd.concat(frames, ignore_index=True)


def lacking(context: Context, frame: pd.DataFrame) -> str:
    """Names the arms without a value: TD3 has no latent, nothing but FSQ a codebook, and older runs lack some."""
    without = [context.label(arm.name) for arm in context.study.arms if arm.name not in set(frame["arm"])]
    return f" No values of {', '.join(without)}." if without else ""


def bands(context: Context, quantity: str) -> str:
    """How the intervals of `mean_curves` were made."""
    members, tasks = members_with(context, quantity), shared_tasks(context, quantity)
    return bootstrap_text(context, members=members[members["task"].isin(tasks)])
