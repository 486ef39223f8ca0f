"""Losses of training over env steps."""

from __future__ import annotations

import pandas as pd

from analysis.figures import training_curves
from analysis.figures.drawing import Context, Drawing

TITLE = "Losses"


def wanted(name: str) -> bool:
    return name.endswith("_loss")


def data(context: Context) -> pd.DataFrame:
    """Columns of `training_curves.data`."""
    return training_curves.data(context, wanted)


def draw(context: Context) -> Drawing:
    return training_curves.draw(context, TITLE, "losses of training", wanted)
