"""What the figures of training.csv share: a panel a quantity over env steps, an arm a line."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from analysis.figures.drawing import (
    ENV_STEPS,
    Context,
    Drawing,
    Skip,
    describe,
    draw_panels,
    finish,
    frame_of,
    not_in,
)
from analysis.statistics import Estimate


def data(context: Context, wanted: Callable[[str], bool]) -> pd.DataFrame:
    """Median and quartiles over runs of every column of training.csv that is `wanted`: quantity, arm, env_step,
    point, low, high, runs.

    At each env step of an arm's curve, over the runs that have a value by then; a run gives its latest episode's.
    """
    study = context.study
    names = [name for name in study.training.columns if wanted(name)]
    frames = []
    for name in names:
        for arm in study.arms:
            steps = study.grid(arm.name)
            tasks = [task for task in study.common_tasks() if study.keys(arm.name, task)]
            values = [study.runs(arm.name, task, name, steps) for task in study.of_different_runs(arm.name, tasks)]
            pooled = np.concatenate([*values, np.empty((0, len(steps)))])
            pooled = pooled[np.isfinite(pooled).any(axis=1)]
            known = np.isfinite(pooled).all(axis=0) if len(pooled) else np.zeros(len(steps), bool)
            if known.any():
                low, middle, high = np.quantile(pooled[:, known], [0.25, 0.5, 0.75], axis=0)
                made = Estimate(middle, low, high)
                frames.append(frame_of(arm.name, steps[known], made, quantity=name, runs=len(pooled)))
    if not frames:
        raise Skip("no run has such a column in a training.csv, or no task is shared by all arms")
    return pd.concat(frames, ignore_index=True)


def draw(context: Context, title: str, what: str, wanted: Callable[[str], bool]) -> Drawing:
    frame = data(context, wanted)
    figure, hover = draw_panels(context, frame, {name: name.replace("_", " ") for name in frame["quantity"].unique()})
    tasks = context.study.common_tasks()
    runs = describe(context.study, tasks)
    caption = (
        f"{title}: {what}, by training.csv, each run's latest episode at or before an env step; median over runs of "
        f"{runs}. Bands: quartiles over runs, not a confidence interval. "
        "Agents have losses of their own: lines of different agents under one name need not compare."
        f"{not_in(context.study, tasks)}"
    )
    return Drawing(figure, finish(context, figure, caption, x_label=ENV_STEPS), frame, hover)
