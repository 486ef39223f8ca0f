"""Score against the hours of device that it cost."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.figures.drawing import (
    Context,
    Drawing,
    Skip,
    bootstrap_text,
    canvas,
    describe,
    draw_curves,
    finish,
    frame_of,
    legend_above,
    not_in,
)  # fmt: skip
from analysis.scales import normalised_name
from analysis.statistics import iqm

TITLE = "Score against device hours"


def data(context: Context) -> pd.DataFrame:
    """One row an arm and env step: arm, env_step (here: hours), point, low, high.

    Hours are the median over runs of the wall-clock hours of the run up to that env step, divided by the
    seeds that shared the device.
    """
    study = context.study
    tasks = study.shared_tasks()
    if not tasks:
        raise Skip("no task with a known return scale is shared by all arms")
    frames = []
    for arm in study.arms:
        rows = study.members[study.members["arm"] == arm.name]
        steps = study.grid(arm.name)
        hours = np.concatenate([
            study.runs(arm.name, task, "wall_seconds", steps)
            / 3600
            / rows[rows["task"] == task].sort_values("seed", kind="stable")["pack"].to_numpy()[:, None]
            for task in tasks
        ])  # fmt: skip
        hours = hours[~np.isnan(hours).any(axis=1)]
        if len(hours):
            estimate = context.interval(study.scores(arm.name, steps, tasks), iqm)
            frames.append(frame_of(arm.name, np.median(hours, axis=0), estimate, runs=len(hours)))
    if not frames:
        raise Skip("no run has a complete timing.csv")
    return pd.concat(frames, ignore_index=True)


def draw(context: Context) -> Drawing:
    frame = data(context)
    study = context.study
    figure, axes = canvas(context, height=2.6)
    ax = axes[0, 0]
    series = draw_curves(context, ax, frame)
    devices = sorted(
        {name or device for name, device in zip(study.members["device_name"], study.members["device"], strict=True)}
    )
    kind = "GPU" if set(study.members["device"]) == {"cuda"} else "Device"
    ax.set_xlabel(f"{kind} hours per run")
    ax.set_xlim(left=0)
    ax.set_ylabel(f"IQM of {normalised_name(study.shared_tasks())}")
    ax.set_ylim(bottom=0)
    legend_above(context, figure, arms=frame["arm"])
    packs = sorted(set(study.members["pack"]))
    caption = (
        f"{TITLE}, {describe(study, study.shared_tasks())}. Hours: median over runs of the wall-clock time "
        "of a run, evaluations and compilation included, divided by the seeds that shared the device "
        f"({' or '.join(map(str, packs))}); on {', '.join(devices) or '?'}. "
        f"Bands: {bootstrap_text(context)}.{not_in(study, study.shared_tasks())}"
        + (" Runs of different devices are mixed: the hours do not compare." if len(devices) > 1 else "")
    )
    return Drawing(figure, finish(context, figure, caption), frame, [(ax, series)])
