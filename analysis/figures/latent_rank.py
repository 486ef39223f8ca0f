"""Signature figure 2: rank of the latent matrix over env steps."""

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

TITLE = "Latent rank"
QUANTITY = "rank_0.01"


def data(context: Context) -> pd.DataFrame:
    return mean_curves(context, QUANTITY)


def draw(context: Context) -> Drawing:
    frame = data(context)
    figure, axes = canvas(context, height=2.6)
    series = draw_curves(context, axes[0, 0], frame)
    step_axis(axes[0, 0])
    axes[0, 0].set_ylabel("Latent rank (tolerance $10^{-2}$)")
    axes[0, 0].set_ylim(bottom=0)
    legend_above(context, figure, arms=frame["arm"])
    latents = context.study.latents
    widths = sorted({int(width) for width in latents["width"].dropna().unique()})
    samples = latents["samples"].dropna()
    counts = {int(samples.min()), int(samples.max())}
    shown, left_out = over(context, QUANTITY)
    caption = (
        f"{TITLE}: singular values of the latent matrix above max(0.01, 0.01 of the largest), mean over "
        f"{shown}. Latent width {' or '.join(map(str, widths))}, "
        f"{' to '.join(map(str, sorted(counts)))} samples. "
        f"Bands: {bands(context, QUANTITY)}.{lacking(context, frame)}{left_out}"
    )
    return Drawing(figure, finish(context, figure, caption), frame, [(axes[0, 0], series)])
