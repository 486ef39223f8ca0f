"""Does collapse cost return? Latent rank against score, a dot a run."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from scipy import stats

from analysis import style
from analysis.figures.drawing import (
    Context,
    Drawing,
    Skip,
    arms_with,
    canvas,
    describe,
    finish,
    legend_above,
    members_with,
)
from analysis.scales import normalised_name

TITLE = "Latent rank against score"


def data(context: Context) -> pd.DataFrame:
    """One row a run at the compared env step: arm, task, rank_percent (of the width), score."""
    study = context.study
    if not study.normalised_tasks:
        raise Skip("no task with a known return scale")
    mark = np.array([study.mark])
    frames = []
    for arm in arms_with(context, "rank_0.01"):
        for task in study.shared_tasks([arm]):
            rank, width, score = (study.runs(arm.name, task, q, mark)[:, 0] for q in ("rank_0.01", "width", "score"))
            frames.append(
                pd.DataFrame({"arm": arm.name, "task": task, "rank_percent": 100 * rank / width, "score": score})
            )
    frame = pd.concat(frames, ignore_index=True).dropna() if frames else pd.DataFrame()
    if frame.empty:
        raise Skip("no run has a latent rank at the compared env step")
    return frame


def within_task_correlation(frame: pd.DataFrame) -> float:
    """Spearman's correlation of rank and score after both are ranked within each task; NaN where nothing varies."""
    ranks = frame.groupby("task")[["rank_percent", "score"]].rank(pct=True)
    counts = frame.groupby("task")["score"].transform("size")
    ranks = ranks[counts >= 3]
    if len(ranks) < 3 or ranks["rank_percent"].nunique() < 2 or ranks["score"].nunique() < 2:
        return float("nan")
    return float(stats.pearsonr(ranks["rank_percent"], ranks["score"])[0])


def draw(context: Context) -> Drawing:
    frame = data(context)
    figure, axes = canvas(context, height=2.6)
    ax = axes[0, 0]
    handles = []
    for arm in context.study.arms:
        rows = frame[frame["arm"] == arm.name]
        if len(rows):
            marker, colour = context.markers[arm.name], context.colours[arm.name]
            size = (30 if len(frame) < 30 else 12 if len(frame) < 300 else 5) * (context.style.font_size / 9) ** 2
            ax.scatter(
                rows["rank_percent"],
                rows["score"],
                s=size,
                marker=marker,
                color=colour,
                alpha=0.6,
                linewidths=0,
            )
            handles.append(
                Line2D([], [], linestyle="", marker=marker, markersize=4, color=colour, label=style.label(arm))
            )
    ax.set_xlabel("Latent rank at tolerance $10^{-2}$ (% of latent width)")
    ax.set_ylabel(normalised_name(frame["task"]).capitalize())
    ax.set_xlim(0, 1.05 * frame["rank_percent"].max() or 1)
    legend_above(context, figure, handles, arms=())  # dots, not the lines of arms
    correlation = within_task_correlation(frame)
    known = f"Rank correlation within tasks: {correlation:.2f}." if np.isfinite(correlation) else ""
    mark, shown = style.steps(context.study.mark), sorted(set(frame["task"]))
    members = members_with(context, "rank_0.01")
    runs = describe(context.study, shown, members=members)
    caption = f"{TITLE} at {mark} environment steps, a dot a run; {runs}. {known}"
    return Drawing(figure, finish(context, figure, caption), frame, [(ax, [])])
