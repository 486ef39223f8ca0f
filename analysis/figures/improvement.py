"""Probability that one arm beats another, for every pair."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from analysis import statistics, style
from analysis.figures.drawing import Context, Drawing, Skip, bootstrap_text, canvas, describe, finish
from analysis.runs import records
from analysis.studies import Arm, Study

TITLE = "Probability of improvement"
MOST_PAIRS = 28  # eight arms; with more, each is compared with the first one only


def compared(study: Study) -> list[tuple[Arm, Arm]]:
    """Pairs to show: all; against the reference alone where one is chosen, or all would be too many to read."""
    arms, reference = study.arms, study.reference
    if reference.name != study.display.baseline and len(arms) * (len(arms) - 1) // 2 <= MOST_PAIRS:
        return [(first, second) for i, first in enumerate(arms) for second in arms[i + 1 :]]
    return [(reference, second) for second in arms if second != reference]


def data(context: Context) -> pd.DataFrame:
    """One row a pair: first, second, point, low, high."""
    study = context.study
    if len(study.arms) < 2:
        raise Skip("one arm alone cannot be compared")
    mark = np.array([study.mark])
    rows = []
    for first, second in compared(study):
        tasks = study.shared_tasks([first, second])
        if not tasks:
            continue
        scores = [study.scores(arm.name, mark, tasks) for arm in (first, second)]
        x, y = (statistics.like(own, (task[:, 0] for task in own)) for own in scores)
        estimate = statistics.probability_of_improvement(x, y, context.replicates)
        rows.append((first.name, second.name, estimate.point[0], estimate.low[0], estimate.high[0], len(tasks)))
    if not rows:
        raise Skip("no two arms share a task with a known return scale")
    return pd.DataFrame(rows, columns=["first", "second", "point", "low", "high", "tasks"])


def draw(context: Context) -> Drawing:
    frame = data(context)
    study = context.study
    figure, axes = canvas(context, height=0.7 + 0.19 * len(frame))
    ax = axes[0, 0]
    places = np.arange(len(frame))[::-1]
    for place, row in zip(places, records(frame), strict=True):
        colour = context.colours[row.first]
        ax.barh(place, row.high - row.low, left=row.low, height=0.6, color=colour, alpha=0.35)
        if np.isnan(row.low):
            ax.plot(row.point, place, "o", color=colour, clip_on=False, markersize=3 * context.style.line_width,
                    markerfacecolor="w")  # fmt: skip
        ax.plot([row.point] * 2, [place - 0.3, place + 0.3], color=colour, solid_capstyle="butt")
    ax.axvline(0.5, color="#404040", linewidth=0.8, linestyle="--")
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.6, len(frame) - 0.4)
    ax.set_yticks(places, [context.label(arm) for arm in frame["first"]])
    other = ax.secondary_yaxis("right")
    other.set_yticks(places, [context.label(arm) for arm in frame["second"]])
    for axis in (ax, other):
        axis.tick_params(axis="y", length=0)
    other.spines["right"].set_visible(False)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("P(left beats right)")
    intervals = bootstrap_text(replace(context, method="percentile"), difference=True)
    caption = (
        f"{TITLE} at {style.steps(study.mark)} environment steps: probability that a run of the arm on the "
        f"left scores higher than one of the arm on the right on the same task, mean over shared tasks, ties "
        f"counted half; {describe(study, study.normalised_tasks)}. Bars: {intervals}."
        + (" Circles: one seed, or the same in every resample: no interval." if frame["low"].isna().any() else "")
    )
    return Drawing(figure, finish(context, figure, caption), frame)
