"""The critic's estimates and targets over env steps."""

from __future__ import annotations

import pandas as pd

from analysis.figures import training_curves
from analysis.figures.drawing import Context, Drawing

TITLE = "Values"


def wanted(name: str) -> bool:
    return name in ("q_mean", "target_mean")


def data(context: Context) -> pd.DataFrame:
    """Columns of `training_curves.data`."""
    return training_curves.data(context, wanted)


def draw(context: Context) -> Drawing:
    what = "mean of the critic's estimates on its batches, and of their targets"
    return training_curves.draw(context, TITLE, what, wanted)
