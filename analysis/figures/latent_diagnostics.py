"""What latents keep of the world, and how well the dynamics foretell them: a panel a quantity over env steps."""

from __future__ import annotations

import pandas as pd

from analysis.figures.drawing import ENV_STEPS, Context, Drawing, Skip, draw_panels, finish
from analysis.figures.latent_curves import bands, lacking, mean_curves, over

TITLE = "Latent diagnostics"
PANELS = {  # column of latents.csv (docs/spec/iqrl.md, section 7): title
    "effective_rank": "Effective rank",
    "target_cosine": "Cosine to next target",
    "prediction_cosine": "Cosine of prediction",
    "drift": "Drift",
    "observation_r2": "$R^2$ of observation",
    "reward_r2": "$R^2$ of reward",
}


def data(context: Context) -> pd.DataFrame:
    """Columns of `latent_curves.mean_curves`, and quantity."""
    frames = []
    for quantity in PANELS:
        try:
            frames.append(mean_curves(context, quantity).assign(quantity=quantity))
        except Skip:
            continue
    if not frames:
        raise Skip("no run has such a column in its latents.csv, or no task is shared by all arms that have one")
    return pd.concat(frames, ignore_index=True)


def draw(context: Context) -> Drawing:
    frame = data(context)
    figure, hover = draw_panels(context, frame, PANELS)
    shown, left_out = over(context, frame["quantity"].iloc[0])
    caption = (
        f"{TITLE}: mean over {shown}. Effective rank: exponential of the entropy of the singular values. Next target: "
        "the target encoder's latent one step on. Drift: distance of latent and target of one observation, over that "
        "of the latents of one step. $R^2$: of ridge regression from the latent. "
        f"Bands: {bands(context, frame['quantity'].iloc[0])}.{lacking(context, frame)}{left_out}"
    )
    return Drawing(figure, finish(context, figure, caption, x_label=ENV_STEPS), frame, hover)
