"""Condition number of the latent matrix over env steps."""

from __future__ import annotations

import numpy as np
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
from analysis.figures.latent_curves import lacking, over, quartile_curves

TITLE = "Condition number of the latent matrix"
LARGEST = 1e16  # singular values are float64's: beyond this the smallest is rounding


def data(context: Context) -> pd.DataFrame:
    return quartile_curves(context, "condition_number")


def draw(context: Context) -> Drawing:
    frame = data(context)
    figure, axes = canvas(context, height=2.6)
    beyond = (frame[["point", "low", "high"]].replace(np.inf, np.nan) > LARGEST).any(axis=None)
    finite = frame.replace([np.inf], np.nan)
    finite[["point", "low", "high"]] = finite[["point", "low", "high"]].clip(upper=LARGEST)
    series = draw_curves(context, axes[0, 0], finite)
    step_axis(axes[0, 0])
    axes[0, 0].set_yscale("log")
    axes[0, 0].set_ylabel("Condition number")
    legend_above(context, figure, arms=frame["arm"])
    infinite = sorted({context.label(arm) for arm in frame.loc[np.isinf(frame["point"]), "arm"]})
    shown, left_out = over(context, "condition_number")
    caption = (
        f"{TITLE}: median over runs of {shown}. Bands: quartiles over runs, not a "
        f"confidence interval.{lacking(context, frame)}{left_out}"
        + (f" Where the line of {', '.join(infinite)} is interrupted, the median is infinite." if infinite else "")
        + (" Values above 1e16, which are rounding, are drawn there." if beyond else "")
    )
    return Drawing(figure, finish(context, figure, caption), frame, [(axes[0, 0], series)])
