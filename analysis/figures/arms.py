"""An ablation's answer: score at the budget an arm, beside latent rank and codebook use."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis import style
from analysis.figures.drawing import (
    Context,
    Drawing,
    Skip,
    arms_with,
    bootstrap_text,
    canvas,
    describe,
    finish,
    not_in,
)
from analysis.figures.latent_curves import aligned, shared_tasks
from analysis.scales import normalised_name
from analysis.statistics import Estimate, iqm, mean
from analysis.studies import Study

TITLE = "Score, rank and codebook use by arm"


def titles(study: Study, frame: pd.DataFrame) -> dict[str, str]:
    """Of the panels that have values, by quantity."""
    panels = {
        "score": f"IQM of {normalised_name(study.shared_tasks())}",
        "rank_0.01": "Latent rank",
        "active_codebook_mean": "Active codebook (%)",
    }
    return {quantity: title for quantity, title in panels.items() if quantity in set(frame["quantity"])}


def data(context: Context) -> pd.DataFrame:
    """One row an arm and panel: arm, quantity, point, low, high.

    An arm without a quantity has no row for it.
    """
    study = context.study
    if len(study.arms) < 2:
        raise Skip("one arm alone has nothing to be compared with")
    tasks = study.shared_tasks()
    if not tasks:
        raise Skip("no task with a known return scale is shared by all arms")
    rows = []
    for arm in study.arms:
        scores = study.scores(arm.name, np.array([study.mark]), tasks)
        rows.append(_row(arm.name, "score", context.interval(scores, iqm)))
    for quantity in (name for name in ("rank_0.01", "active_codebook_mean") if shared_tasks(context, name)):
        for arm in arms_with(context, quantity):
            steps, values = aligned(context, arm, quantity)
            at = np.searchsorted(steps, study.mark, side="right") - 1
            if len(steps) and at >= 0:
                last = [task[:, at : at + 1] for task in values]
                rows.append(_row(arm.name, quantity, context.interval(last, mean)))
    return pd.DataFrame(rows, columns=["arm", "quantity", "point", "low", "high"])


def _row(arm: str, quantity: str, estimate: Estimate) -> tuple[str, str, float, float, float]:
    return arm, quantity, float(estimate.point[0]), float(estimate.low[0]), float(estimate.high[0])


def draw(context: Context) -> Drawing:
    frame = data(context)
    study = context.study
    shown = titles(study, frame)
    figure, axes = canvas(
        context,
        height=0.8 + 0.2 * len(study.arms) + 0.25 * bool(study.question and not context.clean),
        columns=len(shown),
        wide=True,
        sharey=True,
    )
    places = np.arange(len(study.arms))[::-1]
    for ax, quantity in zip(axes[0], shown, strict=True):
        rows = frame[frame["quantity"] == quantity].set_index("arm")
        for place, arm in zip(places, study.arms, strict=True):
            if arm.name not in rows.index:
                ax.text(0.02, place, "no value", transform=ax.get_yaxis_transform(), va="center",
                        color="#606060", fontsize=context.style.font_size - 2)  # fmt: skip
                continue
            row, colour = rows.loc[arm.name], context.colours[arm.name]
            ax.plot([row["low"], row["high"]], [place, place], color=colour,
                    linewidth=3 * context.style.line_width, alpha=0.35, solid_capstyle="butt")  # fmt: skip
            ax.plot(row["point"], place, "o", color=colour, markersize=3 * context.style.line_width)
        ax.set_xlabel(shown[quantity])
        ax.set_yticks(places, [style.label(arm) for arm in study.arms])
        ax.set_ylim(-0.6, len(study.arms) - 0.4)
        ax.locator_params(axis="x", nbins=4)
        ax.tick_params(axis="y", length=0)
    if study.question and not context.clean:
        figure.suptitle(study.question, fontsize=context.style.font_size)
    caption = (
        f"{TITLE} at {style.steps(study.mark)} environment steps; {describe(study, study.shared_tasks())}. "
        f"Bars: {bootstrap_text(context)}. Rank at tolerance 0.01; rank and codebook are means over tasks."
        f"{not_in(study, study.shared_tasks())}"
    )
    for quantity in (name for name in shown if name != "score"):
        tasks = shared_tasks(context, quantity)
        if tasks != study.shared_tasks():  # an arm without a latent may lack a task that the others have
            caption += f" {shown[quantity]}: over {', '.join(map(study.task_label, tasks))}."
    return Drawing(figure, finish(context, figure, caption), frame)
