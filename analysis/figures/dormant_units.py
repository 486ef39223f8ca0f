"""Dormant units over env steps."""

from __future__ import annotations

import pandas as pd

from analysis.figures.drawing import (
    Context,
    Drawing,
    canvas,
    draw_curves,
    finish,
    legend_above,
    step_axis,
)  # fmt: skip
from analysis.figures.latent_curves import bands, lacking, mean_curves, over

TITLE = "Dormant units"


def data(context: Context) -> pd.DataFrame:
    return mean_curves(context, "dormant_percent")


def draw(context: Context) -> Drawing:
    frame = data(context)
    figure, axes = canvas(context, height=2.6)
    series = draw_curves(context, axes[0, 0], frame)
    step_axis(axes[0, 0])
    axes[0, 0].set_ylim(bottom=0)
    axes[0, 0].set_ylabel("Dormant units (%)")
    legend_above(context, figure, arms=frame["arm"])
    shown, left_out = over(context, "dormant_percent")
    caption = (
        f"{TITLE}: hidden units whose activation is at most 0.025 of their layer's mean, mean over "
        f"{shown}. Bands: {bands(context, 'dormant_percent')}.{lacking(context, frame)}{left_out}"
    )
    return Drawing(figure, finish(context, figure, caption), frame, [(axes[0, 0], series)])
