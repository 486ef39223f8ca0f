"""Signature figure 1: interquartile mean of normalised scores over env steps."""

from __future__ import annotations

import pandas as pd

from analysis.figures.drawing import (
    FEW_PUBLISHED,
    Context,
    Drawing,
    Skip,
    bootstrap_text,
    canvas,
    describe,
    draw_curves,
    draw_published,
    finish,
    frame_of,
    legend_above,
    not_in,
    published_handle,
    sources,
    step_axis,
)
from analysis.published import common_scores
from analysis.scales import normalised_name, said
from analysis.statistics import iqm

TITLE = "Interquartile mean"


def data(context: Context) -> pd.DataFrame:
    """One row an arm and env step: arm, env_step, point, low, high."""
    study = context.study
    tasks = study.shared_tasks()
    if not tasks:
        raise Skip("no task with a known return scale is shared by all arms")
    frames = []
    for arm in study.arms:
        steps = study.grid(arm.name)
        estimate = context.interval(study.scores(arm.name, steps, tasks), iqm)
        frames.append(frame_of(arm.name, steps, estimate))
    return pd.concat(frames, ignore_index=True)


def published_data(context: Context) -> pd.DataFrame:
    """Algorithms that have every task of the figure: arm (= algorithm), env_step, point, low, high."""
    frames = [pd.DataFrame(columns=["arm", "env_step", "point", "low", "high"])]
    tasks, budget = context.study.shared_tasks(), context.study.members["budget"].max()
    for algorithm, rows in context.published.frame.groupby("algorithm") if context.published else ():
        steps, scores = common_scores(rows, tasks, budget)
        if len(steps):
            frames.append(frame_of(str(algorithm), steps, context.interval(scores, iqm)))
    return pd.concat(frames[1:] or frames, ignore_index=True)


def draw(context: Context) -> Drawing:
    frame, published = data(context), published_data(context)
    names = sorted(set(published["arm"]))
    figure, axes = canvas(context, height=2.6, entries=len(context.study.arms) + len(names))
    ax = axes[0, 0]
    series = draw_curves(context, ax, frame)
    series += draw_published(context, ax, published, ", published")
    suffix = ", published" if len(names) <= FEW_PUBLISHED else ""  # of many, the caption says it once
    dashed = [published_handle(context, name, name + suffix) for name in names]
    step_axis(ax)
    tasks = context.study.shared_tasks()
    name, how = normalised_name(tasks), said(tasks)
    ax.set_ylabel(f"IQM of {name}")
    ax.set_ylim(bottom=min(0.0, float(frame["low"].min()) if frame["low"].notna().any() else 0.0))
    legend_above(context, figure, dashed)
    scores = name if name == how else f"{name} ({how})"
    caption = f"{TITLE} of {scores}, {describe(context.study, tasks)}. Bands: {bootstrap_text(context)}."
    caption += not_in(context.study, tasks)
    if context.published and dashed:
        caption += " Dashed: published results on the same tasks, never pooled with own runs; "
        caption += "; ".join(context.published.remarks) + "."
    return Drawing(figure, finish(context, figure, caption), sources(frame, published), [(ax, series)])
