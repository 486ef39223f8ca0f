"""Performance profiles: the share of runs above each score."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis import statistics, style
from analysis.figures.drawing import (
    Context,
    Drawing,
    Skip,
    bootstrap_text,
    canvas,
    describe,
    finish,
    hover_series,
    legend_above,
    not_in,
)  # fmt: skip
from analysis.scales import normalised_name, said

TITLE = "Performance profiles"
THRESHOLDS = np.linspace(0.0, 1.0, 101)


def data(context: Context) -> pd.DataFrame:
    """One row an arm and threshold: arm, threshold, point, low, high."""
    study = context.study
    tasks = study.shared_tasks()
    if not tasks:
        raise Skip("no task with a known return scale is shared by all arms")
    frames = []
    for arm in study.arms:
        scores = study.scores(arm.name, np.array([study.mark]), tasks)
        estimate = context.interval(scores, statistics.profile(THRESHOLDS))
        columns = {"point": estimate.point, "low": estimate.low, "high": estimate.high}
        frames.append(pd.DataFrame({"arm": arm.name, "threshold": THRESHOLDS, **columns}))
    return pd.concat(frames, ignore_index=True)


def draw(context: Context) -> Drawing:
    frame = data(context)
    study = context.study
    figure, axes = canvas(context, height=2.6)
    ax = axes[0, 0]
    series = []
    for i, arm in enumerate(study.arms):
        rows, colour = frame[frame["arm"] == arm.name], context.colours[arm.name]
        ax.plot(rows["threshold"], rows["point"], color=colour, label=style.label(arm), markevery=(i, 12),
                marker=context.markers[arm.name],
                markersize=2.2 * context.style.line_width)  # fmt: skip
        ax.fill_between(rows["threshold"], rows["low"], rows["high"], color=colour, alpha=0.18, linewidth=0)
        series.append(hover_series(style.label(arm), colour, rows, x="threshold"))
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1.02)
    ax.set_xlabel(rf"{normalised_name(study.shared_tasks()).capitalize()} $\tau$")
    ax.set_ylabel(r"Share of runs with score > $\tau$")
    legend_above(context, figure)
    caption = (
        f"{TITLE} at {style.steps(study.mark)} environment steps ({said(study.shared_tasks())}), "
        f"{describe(study, study.shared_tasks())}. Bands: pointwise {bootstrap_text(context)}."
        f"{not_in(study, study.shared_tasks())}"
    )
    return Drawing(figure, finish(context, figure, caption), frame, [(ax, series)])
