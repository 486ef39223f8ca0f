"""One panel a task: its score over env steps, an arm a line; published curves dashed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from analysis import style
from analysis.figures.drawing import (
    ENV_STEPS,
    FEW_PUBLISHED,
    Context,
    Drawing,
    canvas,
    describe,
    draw_curves,
    draw_published,
    finish,
    frame_of,
    legend_above,
    published_handle,
    sources,
    step_axis,
)  # fmt: skip
from analysis.published import LATE
from analysis.scales import score_name
from analysis.statistics import FEWEST_RUNS, student_half_width, student_t

TITLE = "Score by task"
FEW_SEEDS = 5  # up to here each run is drawn as well
LOWEST = 0.95  # inches that a panel needs, with its title, at 9 points
FOOT = 1.4  # inches left for legend and caption


def data(context: Context) -> pd.DataFrame:
    """One row a task, arm and env step: task, arm, env_step, point, low, high, runs."""
    study = context.study
    frames = []
    for task in study.tasks:
        for arm, steps, values in study.returns(task):
            frames.append(frame_of(arm.name, steps, student_t(values), task=task, runs=len(values)))
    return pd.concat(frames, ignore_index=True)


def runs_data(context: Context) -> pd.DataFrame:
    """Every run, which with few seeds says more than an interval: task, arm, run, env_step, point."""
    study = context.study
    frames = []
    for task in study.tasks:
        for arm, steps, runs in study.returns(task):
            for key, values in zip(study.keys(arm.name, task), runs, strict=True):
                frames.append(
                    pd.DataFrame({"task": task, "arm": arm.name, "run": key, "env_step": steps, "point": values})
                )
    return pd.concat(frames, ignore_index=True)


def published_data(context: Context) -> pd.DataFrame:
    """Published means over seeds up to the budget: task, arm (the algorithm), env_step, point, low, high, seeds."""
    if context.published is None:
        return pd.DataFrame(columns=["task", "arm", "env_step", "point", "low", "high", "seeds"])
    budget = context.study.members["budget"].max()
    frame = context.published.frame
    frame = frame[frame["task"].isin(context.study.tasks) & (frame["env_step"] <= budget + LATE)]
    rows = (
        frame.groupby(["task", "algorithm", "env_step"])["episode_return"].agg(["mean", "std", "count"]).reset_index()
    )
    complete = rows["count"] == rows.groupby(["task", "algorithm"])["count"].transform("max")
    rows = rows[complete]
    half = [student_half_width(std, count) for std, count in zip(rows["std"], rows["count"], strict=True)]
    return pd.DataFrame({
        "task": rows["task"], "arm": rows["algorithm"], "env_step": rows["env_step"], "point": rows["mean"],
        "low": rows["mean"] - half, "high": rows["mean"] + half, "seeds": rows["count"],
    })  # fmt: skip


def draw(context: Context) -> Drawing:
    frame, published = data(context), published_data(context)
    study = context.study
    wanted = 4 if context.style.page > 5 else 3
    columns = min(wanted, len(study.tasks))
    scale = context.style.font_size / 9
    room = context.style.height / scale - 0.6 - FOOT
    while (rows := math.ceil(len(study.tasks) / columns)) * LOWEST > room:
        columns += 1
    figure, axes = canvas(
        context,
        height=0.6 + min(1.35 if columns > 2 else 2.0, max(room / rows, LOWEST)) * rows,
        rows=rows,
        columns=columns,
        wide=True,
        sharex=True,
    )
    hover: list[tuple[Any, list[dict[str, Any]]]] = []
    singles = runs_data(context) if study.seeds[1] <= FEW_SEEDS else frame.iloc[:0].assign(run="")
    for ax, task in zip(axes.flat, study.tasks, strict=False):
        series = draw_curves(context, ax, frame[frame["task"] == task], small=columns > 2)
        single = singles[singles["task"] == task]
        for _, own in single.groupby("run", sort=False):
            colour = context.colours[own["arm"].iloc[0]]
            ax.plot(own["env_step"], own["point"], color=colour, linewidth=0.5, alpha=0.7, zorder=2)
        series += draw_published(context, ax, published[published["task"] == task], " (published)")
        label = study.task_label(task)
        ax.set_title(label, fontsize=context.style.font_size - (1 if len(label) < 20 and columns <= 4 else 2))
        step_axis(ax, label=False)
        ax.locator_params(axis="x", nbins=3 if columns > 2 else 5)
        ax.set_ylim(*_limits(frame[frame["task"] == task], published[published["task"] == task], single["point"]))
        ax.locator_params(axis="y", nbins=5)
        hover.append((ax, series))
    for ax in axes.flat[len(study.tasks) :]:
        ax.set_visible(False)
    for column in range(columns):  # with a last row not full, the lowest panel of each column carries the numbers
        lowest = max(i for i in range(column, len(study.tasks), columns))
        axes.flat[lowest].tick_params(labelbottom=True)
    figure.supylabel(score_name(study.tasks).capitalize(), fontsize=context.style.font_size)
    seeds = published.groupby("arm")["seeds"].max()
    legend_above(context, figure, [
        published_handle(context, str(name), f"{name}, published ({style.counted(count, 'seed')})"
                         if len(seeds) <= FEW_PUBLISHED else str(name))
        for name, count in seeds.items()
    ], small=columns > 2)  # fmt: skip
    caption = (
        f"{TITLE}: mean over seeds of an evaluation's {score_name(study.tasks)}, {describe(study, by_task=True)}. "
        "Bands: Student's t 95% intervals over seeds"
        + ("; no band is drawn where an arm has one or two seeds on a task" if study.seeds[0] < FEWEST_RUNS else "")
        + (". Thin lines: single runs." if study.seeds[1] <= FEW_SEEDS else ".")
        + (" Dashed: published results, never pooled with own runs; "
           + "; ".join(context.published.remarks) + "."
           if context.published and len(published) else "")
    )  # fmt: skip
    numbers = sources(pd.concat([frame, singles.assign(runs=1)], ignore_index=True), published)
    return Drawing(figure, finish(context, figure, caption, x_label=ENV_STEPS), numbers, hover)


def _limits(frame: pd.DataFrame, published: pd.DataFrame, single: pd.Series) -> tuple[float, float]:
    """Returns and percentages have bounds, whatever Student's t makes of few seeds; Gymnasium's returns have none."""
    points = np.array([*frame["point"], *published["point"], *single], dtype=float)
    lowest, highest = float(np.nanmin(points)), float(np.nanmax(points))
    widest = float(np.nanmax([*frame["high"], highest]))
    bound = 1000.0 if highest <= 1000.0 else widest
    return min(0.0, lowest * 1.05), max(highest * 1.05, min(widest, bound), 1e-9)
