"""Signature figure 1: interquartile mean of normalised return over env steps."""

from __future__ import annotations

import pandas as pd

from analysis.figures.drawing import (
    Context,
    Drawing,
    Skip,
    bootstrap_text,
    canvas,
    describe,
    draw_curves,
    finish,
    frame_of,
    legend_above,
    step_axis,
)  # fmt: skip
from analysis.statistics import iqm

TITLE = "Interquartile mean of normalised return"


def data(context: Context) -> pd.DataFrame:
    """One row an arm and env step: arm, env_step, point, low, high."""
    from analysis.statistics import interval

    study = context.study
    tasks = study.shared_tasks()
    if not tasks:
        raise Skip("no task with a known return scale is shared by all arms")
    frames = []
    for arm in study.arms:
        steps = study.grid(arm.name)
        frames.append(
            frame_of(arm.name, steps, interval(study.scores(arm.name, steps, tasks), iqm, context.replicates))
        )
    return pd.concat(frames, ignore_index=True)


def draw(context: Context) -> Drawing:
    frame = data(context)
    figure, axes = canvas(context, height=2.6)
    series = draw_curves(context, axes[0, 0], frame)
    step_axis(axes[0, 0])
    axes[0, 0].set_ylabel("IQM of normalised return")
    axes[0, 0].set_ylim(bottom=min(0.0, float(frame["low"].min()) if frame["low"].notna().any() else 0.0))
    legend_above(context, figure)
    tasks = context.study.shared_tasks()
    left_out = sorted(set(context.study.tasks) - set(tasks))
    caption = (
        f"{TITLE} (return / 1000), {describe(context.study, tasks)}. Bands: {bootstrap_text(context)}."
        + (f" Not in the mean, because an arm lacks them or their scale is unknown: {', '.join(left_out)}."
           if left_out else "")
    )  # fmt: skip
    return Drawing(figure, finish(context, figure, caption), [(axes[0, 0], series)])
