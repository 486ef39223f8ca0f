"""Signature figure 3: share of codebook entries in use over env steps."""

from __future__ import annotations

import pandas as pd
from matplotlib.lines import Line2D

from analysis.figures.drawing import (
    Context,
    Drawing,
    arms_with,
    canvas,
    draw_curves,
    finish,
    legend_above,
    step_axis,
)  # fmt: skip
from analysis.figures.latent_curves import aligned, bands, lacking, mean_curves, over

TITLE = "Active codebook"


def data(context: Context) -> pd.DataFrame:
    """Columns of `mean_curves` for the mean over latent dimensions."""
    return mean_curves(context, "active_codebook_mean")


def extremes(context: Context, quantity: str) -> pd.DataFrame:
    """The least (or most) used latent dimension, mean of task means: arm, env_step, point."""
    frames = []
    for arm in arms_with(context, quantity):
        steps, values = aligned(context, arm, quantity)
        if len(steps):
            means = sum(task.mean(axis=0) for task in values) / len(values)
            frames.append(pd.DataFrame({"arm": arm.name, "env_step": steps, "point": means}))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["arm", "env_step", "point"])


def draw(context: Context) -> Drawing:
    frame = data(context)
    figure, axes = canvas(context, height=2.6)
    ax = axes[0, 0]
    series = draw_curves(context, ax, frame)
    drawn = [frame.assign(quantity="active_codebook_mean")]
    for quantity in ("active_codebook_min", "active_codebook_max"):
        drawn.append(extremes(context, quantity).assign(quantity=quantity))
        for arm, rows in drawn[-1].groupby("arm", sort=False):
            ax.plot(rows["env_step"], rows["point"], ":", color=context.colours[str(arm)], linewidth=0.9)
    step_axis(ax)
    ax.set_ylim(0, 102)
    ax.set_ylabel("Active codebook (%)")
    dotted = Line2D([], [], linestyle=":", color="#606060", linewidth=0.9, label="least and most used dimension")
    legend_above(context, figure, [dotted], arms=frame["arm"])
    shown, left_out = over(context, "active_codebook_mean")
    caption = (
        f"{TITLE}: share of the codes of each latent dimension that occur in the diagnostic batch, mean "
        f"over latent dimensions and over {shown}. "
        f"Bands: {bands(context, 'active_codebook_mean')}.{lacking(context, frame)}{left_out}"
    )
    return Drawing(figure, finish(context, figure, caption), pd.concat(drawn, ignore_index=True), [(ax, series)])
