"""Four aggregates at the budget, with intervals: IQM, median, mean, optimality gap."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis import style
from analysis.figures.drawing import Context, Drawing, Skip, bootstrap_text, canvas, describe, finish, not_in
from analysis.scales import normalised_name, said
from analysis.statistics import AGGREGATES, several

TITLE = "Aggregate scores"


def data(context: Context) -> pd.DataFrame:
    """One row an arm and aggregate: arm, aggregate, point, low, high."""
    study = context.study
    tasks = study.shared_tasks()
    if not tasks:
        raise Skip("no task with a known return scale is shared by all arms")
    rows = []
    for arm in study.arms:
        scores = study.scores(arm.name, np.array([study.mark]), tasks)
        estimate = context.interval(scores, several(list(AGGREGATES.values())))
        for i, name in enumerate(AGGREGATES):
            rows.append((arm.name, name, estimate.point[i], estimate.low[i], estimate.high[i]))
    return pd.DataFrame(rows, columns=["arm", "aggregate", "point", "low", "high"])


def draw(context: Context) -> Drawing:
    frame = data(context)
    study = context.study
    names = list(AGGREGATES)
    grid = (1, 4) if context.style.column / context.style.font_size > 0.55 else (2, 2)
    figure, axes = canvas(
        context, height=grid[0] * (0.75 + 0.2 * len(study.arms)), rows=grid[0], columns=grid[1], sharey=True
    )
    places = np.arange(len(study.arms))[::-1]
    for ax, name in zip(axes.flat, names, strict=True):
        rows = frame[frame["aggregate"] == name].set_index("arm")
        for place, arm in zip(places, study.arms, strict=True):
            row, colour = rows.loc[arm.name], context.colours[arm.name]
            ax.barh(place, row["high"] - row["low"], left=row["low"], height=0.6, color=colour, alpha=0.35)
            ax.plot([row["point"]] * 2, [place - 0.3, place + 0.3], color=colour, solid_capstyle="butt")
        ax.use_sticky_edges = False
        ax.margins(x=0.06)
        ax.set_title(name)
        ax.set_yticks(places, [style.label(arm) for arm in study.arms])
        ax.grid(axis="y", visible=False)
        ax.locator_params(axis="x", nbins=4)
        ax.tick_params(axis="y", length=0)
    caption = (
        f"{TITLE} at {style.steps(study.mark)} environment steps ({said(study.shared_tasks())}), "
        f"{describe(study, study.shared_tasks())}. Bars: {bootstrap_text(context)}. "
        f"A higher IQM, median and mean and a lower optimality gap are better.{not_in(study, study.shared_tasks())}"
    )
    below = normalised_name(study.shared_tasks()).capitalize()
    return Drawing(figure, finish(context, figure, caption, x_label=below), frame)
