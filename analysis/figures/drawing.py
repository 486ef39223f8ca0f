"""What all figures share: a canvas with its caption below it, curves with bands, and the values behind them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter

from analysis import style
from analysis.published import Published, agent_of
from analysis.statistics import COVERAGE, REPLICATES, Estimate, Statistic, interval, iqm, simulated
from analysis.studies import Arm, Study
from analysis.style import Look

CAPTION = "caption"  # marks the texts at the foot of a figure
CAPTION_SIZE = 0.78  # of the font size
ENV_STEPS = "Environment steps"
LONG_LEGEND = 8  # entries
FEW_PUBLISHED = 3  # algorithms, of which a legend says that they are published; of more the caption does


@dataclass(frozen=True)
class Context:
    """What a figure module is given."""

    study: Study
    style: style.Style
    replicates: int = REPLICATES
    published: Published | None = None
    caption: bool = True  # print the caption on the figure
    clean: bool = False  # print nothing below the axes and no question above: all words are in captions.md
    method: str = "percentile"  # of intervals, one of statistics.INTERVALS
    pvalues: bool = False  # in the table of differences

    @property
    def colours(self) -> dict[str, str]:
        return style.colours(self.study.listed, taken={look.colour for look in self.published_looks.values()})

    @property
    def markers(self) -> dict[str, str]:
        return style.markers(self.colours)

    @cached_property
    def published_looks(self) -> dict[str, Look]:
        """Published algorithm -> how it is drawn; of those with a run on a task of the study."""
        if self.published is None:
            return {}
        frame = self.published.frame
        algorithms = sorted(frame.loc[frame["task"].isin(self.study.tasks), "algorithm"].unique())
        return style.looks({name: agent_of(name) for name in algorithms})

    def interval(self, scores: list[np.ndarray], statistic: Statistic = iqm) -> Estimate:
        return interval(scores, statistic, self.replicates, method=self.method)

    def label(self, arm: str) -> str:
        return style.label(next(a for a in self.study.arms if a.name == arm))


@dataclass(frozen=True)
class Caption:
    """A figure's caption, and the height in inches that it takes at the foot of the figure."""

    text: str
    foot: float


@dataclass
class Drawing:
    """A finished figure, its caption, its numbers, and per axes the series that a report shows when pointed at."""

    figure: Figure
    caption: Caption
    data: pd.DataFrame  # the numbers that it draws
    hover: list[tuple[Axes, list[dict[str, Any]]]] = field(default_factory=list)


class Skip(Exception):
    """There is nothing to draw; the message says what is lacking."""


def canvas(
    context: Context,
    height: float,
    rows: int = 1,
    columns: int = 1,
    wide: bool = False,
    entries: int | None = None,
    **options: Any,
) -> tuple[Figure, np.ndarray]:
    """A figure and its axes (rows, columns). `height` is that of the body; `finish` adds room for the caption.

    It is as wide as the page where it is to be `wide`, or where its legend, of more than LONG_LEGEND entries, would
    take half of a column.
    """
    entries = len(context.study.arms) if entries is None else entries
    width = context.style.page if wide or entries > LONG_LEGEND else context.style.column
    figure = Figure(figsize=(width, height * context.style.font_size / 9), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def finish(context: Context, figure: Figure, caption: str, x_label: str = "") -> Caption:
    """Put the caption, the problems and the study's note below the figure; return them as one text.

    `x_label` is one label below all axes. What is missing and the study's note stand on the figure even
    where the caption does not (caption=off), but for clean=on. The figure is no higher than a page's text.
    """
    size = context.style.font_size * CAPTION_SIZE
    width, body = figure.get_size_inches()
    problems = problem_line(context.study)
    note = f"Note: {context.study.note}." if context.study.note else ""

    def wrap(text: str) -> list[str]:
        return wrapped(text, 0.97 * width * 72, context.style.family, size)

    lines = wrap(caption) if context.caption and not context.clean else []
    warning = [] if context.clean else wrap(problems) + wrap(note)
    line_height = size * 1.3 / 72
    foot = line_height * (len(lines) + len(warning)) + (0.08 if lines or warning else 0.0)
    body = min(body, context.style.height - foot)
    figure.set_size_inches(width, body + foot)
    share = foot / (body + foot)
    label = 1.5 * context.style.font_size / 72 / (body + foot) if x_label else 0.0  # its height, as a share
    if x_label:
        figure.text(0.5, share + label / 2, x_label, ha="center", va="center", fontsize=context.style.font_size)
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(rect=(0, share + label, 1, 1 - share - label))  # type: ignore[call-arg]
    options: dict[str, Any] = {
        "va": "top",
        "ha": "left",
        "fontsize": size,
        "linespacing": 1.3,
        "gid": CAPTION,
    }
    top = share - 0.06 / (body + foot)
    if lines:
        figure.text(0.01, top, "\n".join(lines), color="#404040", **options)
    if warning:
        top -= line_height * len(lines) / (body + foot)
        figure.text(0.01, top, "\n".join(warning), color="#B00020", **options)
    return Caption(" ".join(filter(None, [caption, problems, note])), foot)


@lru_cache(maxsize=4096)
def text_width(text: str, family: str, size: float) -> float:
    """In points."""
    font = FontProperties(family=family, size=size)
    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0])


def wrapped(text: str, room: float, family: str, size: float) -> list[str]:
    """Text in lines that are at most `room` points wide; a word that is wider is cut."""
    lines, line, used, space = list[str](), "", 0.0, text_width("x x", family, size) - text_width("xx", family, size)
    for word in text.split():
        width = text_width(word, family, size)
        if line and used + space + width > room:
            lines.append(line)
            line, used = "", 0.0
        while width > room:
            fits = max(1, int(len(word) * room / width) - 1)
            lines.append(word[:fits])
            word = word[fits:]
            width = text_width(word, family, size)
        line, used = (f"{line} {word}", used + space + width) if line else (word, width)
    return [*lines, line] if line else lines


def problem_line(study: Study, limit: int = 3) -> str:
    """Missing, short and left-out runs in one line; the first few by name, the rest by number."""
    shown = [problem for problem in study.problems if problem.kind != "remark"]
    if not shown:
        return ""
    named = "; ".join(f"{problem.run} ({problem.kind}, {problem.effect})" for problem in shown[:limit])
    more = f"; and {len(shown) - limit} more, see problems.csv" if len(shown) > limit else ""
    return f"Incomplete: {named}{more}."


def describe(
    study: Study, tasks: list[str] | None = None, by_task: bool = False, members: pd.DataFrame | None = None
) -> str:
    """Tasks, seeds and budget of a study, for a caption.

    by_task: each task's curves are drawn as far as its own runs go.
    members: the runs that are drawn; all of the study if None.
    """
    tasks = study.tasks if tasks is None else tasks
    labels = [study.task_label(task) for task in tasks]
    names = ", ".join(labels) if len(tasks) <= 4 else f"{labels[0]} to {labels[-1]}"
    members = study.members if members is None else members
    counts = members[members["task"].isin(tasks)].groupby(["arm", "task"]).size()
    low, high = counts.min(), counts.max()
    seeds = style.counted(high, "seed") if low == high else f"{low} to {high} seeds"
    budgets = sorted(set(study.members["budget"]))
    budget = " or ".join(style.steps(value) for value in budgets)
    text = f"{style.counted(len(tasks), 'task')} ({names}), {seeds} each, budget {budget} environment steps"
    episodes = by_arm(study, "episodes")
    text += f"; episodes an evaluation: {', '.join(episodes)}" if len(episodes) > 1 else ""
    places = [(arm, task) for arm in study.arms for task in (study.tasks if by_task else (None,))]
    cut = [
        f"{style.label(arm)}{f' on {study.task_label(task)}' if task else ''} to {style.steps(own['env_step'].min())}"
        for arm, task in places
        if len(own := study.of(arm.name, task)) and own["env_step"].min() < own["budget"].max()
    ]
    return text + (f"; shown up to the last common step: {', '.join(cut)}" if cut else "")


def by_arm(study: Study, column: str) -> list[str]:
    """A column of numbers of `Study.members`, in words: "10 (TCRL, MR.Q)", the largest first."""
    texts = []
    for value in sorted(set(study.members[column]), reverse=True):
        having = set(study.members.loc[study.members[column] == value, "arm"])
        texts.append(
            f"{style.steps(value)} ({', '.join(style.label(arm) for arm in study.arms if arm.name in having)})"
        )
    return texts


def not_in(study: Study, tasks: list[str], members: pd.DataFrame | None = None) -> str:
    """Names the tasks of a study that a figure over `tasks` leaves out, and the arms for which it does.

    members: the runs that the figure could use; all of the study if None.
    """
    members = study.members if members is None else members
    arms = {arm.name: style.label(arm) for arm in study.arms if arm.name in set(members["arm"])}
    absent = []
    for task in (task for task in study.tasks if task not in tasks):
        have = set(members.loc[members["task"] == task, "arm"])
        without = [label for name, label in arms.items() if name not in have]
        listed = ", ".join(without) if len(without) <= 4 else f"{len(without)} of {len(arms)} arms"
        absent.append(f"{study.task_label(task)} ({f'no runs of {listed}' if without else 'its scale is unknown'})")
    return f" Left out of means over tasks: {', '.join(absent)}." if absent else ""


def bootstrap_text(context: Context, difference: bool = False, members: pd.DataFrame | None = None) -> str:
    """How the intervals were made; and how far they can be trusted.

    difference: of two arms, of which the bootstrap's percentiles stand for BCa too, and which were not simulated.
    members: the runs that are drawn; all of the study if None.
    """
    study = context.study
    members = study.members if members is None else members
    counts = members.groupby(["arm", "task"]).size()
    low, high = int(counts.min()), int(counts.max())
    shared = study.shared_tasks()
    whole = any(study.together(arm.name, shared) for arm in study.arms)
    tasks = 1 if whole else len(shared)
    if context.method == "t":
        text = "95% intervals by Student's t over seeds, on the stratified jackknife"
    else:
        kind = "BCa " if context.method == "bca" and not difference else ""
        replicates = style.counted(context.replicates, "replicate")
        text = f"95% stratified bootstrap {kind}intervals over seeds ({replicates})"
    text += "; none for an arm with one seed on a task" if low < 2 else ""
    if context.method != "t" and 1 < high and low < 5:
        text += "; with fewer than 5 seeds such intervals are too narrow"
    if context.method == "percentile" and not difference and high > 1 and (low < 5 or tasks <= 3):
        few = simulated(tasks, low)
        known = f"{style.counted(few[1], 'seed')} on {style.counted(few[0], 'task')}"
        text += f"; in simulations with {known} {COVERAGE[few]:.0%} of those of the IQM held the truth"
    text += "; an agent of several tasks is resampled with all of them" if whole else ""
    return text + ("; tasks count alike, whatever their seeds" if counts.groupby("arm").nunique().max() > 1 else "")


def frame_of(arm: str, steps: np.ndarray, estimate: Estimate, **columns: Any) -> pd.DataFrame:
    """Tidy rows of one curve: arm, env_step, point, low, high, and whatever else identifies it."""
    values = {"point": estimate.point, "low": estimate.low, "high": estimate.high}
    return pd.DataFrame({"arm": arm, "env_step": steps, **values, **columns})


def draw_curves(context: Context, axes: Axes, frame: pd.DataFrame, small: bool = False) -> list[dict[str, Any]]:
    """Lines and bands of a tidy frame (arm, env_step, point, low, high); returns the series behind them.

    `small` is for panels in a grid: thinner lines, no markers.
    """
    series = []
    for arm in context.study.arms:
        rows = frame[frame["arm"] == arm.name].sort_values("env_step")
        if rows.empty:
            continue
        colour = context.colours[arm.name]
        few = len(rows) <= 12
        width = context.style.line_width * (0.75 if small else 1.0)
        axes.plot(
            rows["env_step"], rows["point"], color=colour, label=style.label(arm),
            linewidth=width, marker=_marker(context, arm, small), markersize=2.2 * width,
            markevery=1 if few else max(1, len(rows) // 8), zorder=3,
        )  # fmt: skip
        axes.fill_between(rows["env_step"], rows["low"], rows["high"], color=colour, alpha=0.18, linewidth=0)
        series.append(hover_series(style.label(arm), colour, rows))
    return series


def draw_panels(
    context: Context, frame: pd.DataFrame, titles: dict[str, str]
) -> tuple[Figure, list[tuple[Axes, list[dict[str, Any]]]]]:
    """A panel a quantity of the frame (its column `quantity`), in the order of `titles`; and what `hover` holds."""
    names = [name for name in titles if (frame["quantity"] == name).any()]
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure, axes = canvas(context, height=0.7 + 1.6 * rows, rows=rows, columns=columns, wide=True)
    hover = []
    for ax, name in zip(axes.flat, names, strict=False):
        hover.append((ax, draw_curves(context, ax, frame[frame["quantity"] == name], small=columns > 1)))
        ax.set_title(titles[name])
        step_axis(ax, label=False)
        ax.locator_params(nbins=4)
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    legend_above(context, figure, arms=frame["arm"], small=columns > 1)
    return figure, hover


def _marker(context: Context, arm: Arm, small: bool) -> str:
    """None in small panels, but where arms are more than colours."""
    return "" if small and len(context.study.listed) <= len(style.SPARE) else context.markers[arm.name]


def draw_published(context: Context, axes: Axes, frame: pd.DataFrame, label: str) -> list[dict[str, Any]]:
    """Dashed lines of a tidy frame (arm = algorithm, env_step, point, low, high), with a dot at each point where these
    are few: between them nothing was published. Returns the series behind them, named by `label` after the algorithm.
    """
    series = []
    for algorithm, rows in frame.groupby("arm"):
        look = context.published_looks[str(algorithm)]
        width = 0.8 * context.style.line_width
        axes.plot(
            rows["env_step"], rows["point"], linestyle=look.dashes, color=look.colour, linewidth=width,
            marker="." if len(rows) <= 12 else "", markersize=3 * width,
        )  # fmt: skip
        series.append(hover_series(f"{algorithm}{label}", look.colour, rows))
    return series


def published_handle(context: Context, algorithm: str, label: str) -> Line2D:
    """The entry of a legend for a published algorithm."""
    look = context.published_looks[algorithm]
    return Line2D([], [], linestyle=look.dashes, color=look.colour, label=label)


def sources(own: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """Own and published numbers of one figure, told apart by the column `source`."""
    if published.empty:
        return own.assign(source="own")
    return pd.concat([own.assign(source="own"), published.assign(source="published")], ignore_index=True)


def hover_series(name: str, colour: str, rows: pd.DataFrame, x: str = "env_step") -> dict[str, Any]:
    """The numbers of one curve as the report's tooltip wants them."""

    def numbers(column: str) -> list[float | None]:
        return [float(f"{value:.5g}") if np.isfinite(value) else None for value in rows[column]]

    return {
        "label": name, "colour": colour, "x": numbers(x), "y": numbers("point"), "low": numbers("low"),
        "high": numbers("high"),
    }  # fmt: skip


def step_axis(axes: Axes, label: bool = True) -> None:
    """An x-axis of env steps: 0, 250k, 1M."""
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: style.steps(value)))
    axes.locator_params(axis="x", nbins=6)
    axes.set_xlim(left=0)
    if label:
        axes.set_xlabel(ENV_STEPS)


def legend_above(
    context: Context,
    figure: Figure,
    extra: list[Line2D] | None = None,
    arms: Iterable[str] | None = None,
    small: bool = False,
) -> None:
    """One legend for the whole figure, above the axes, so that it can cover no curve."""
    shown = None if arms is None else set(arms)
    handles = [
        Line2D([], [], color=context.colours[arm.name], label=style.label(arm),
               marker=_marker(context, arm, small), markersize=2.2 * context.style.line_width)
        for arm in context.study.arms
        if shown is None or arm.name in shown
    ] + (extra or [])  # fmt: skip
    size = context.style.font_size - 1
    room = 0.97 * figure.get_size_inches()[0] * 72
    lengths = [text_width(str(handle.get_label()), context.style.family, size) + 4 * size for handle in handles]
    rows = math.ceil(sum(lengths) / room)
    while rows < len(handles) and math.ceil(len(handles) / rows) * max(lengths) > room and rows > 1:
        rows += 1
    columns = math.ceil(len(handles) / rows)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + (rows - 1) * 1.4 * context.style.font_size / 72)
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, columnspacing=1.2, handlelength=1.8)


def arms_with(context: Context, quantity: str) -> list[Arm]:
    """Arms that have at least one value of a quantity."""
    present = set(members_with(context, quantity)["arm"])
    return [arm for arm in context.study.arms if arm.name in present]


def members_with(context: Context, quantity: str) -> pd.DataFrame:
    """The rows of `Study.members` of runs that have at least one value of a quantity; infinity is one."""
    study = context.study
    table = study.tables.evaluations if quantity in study.tables.evaluations.columns else study.tables.latents
    having = set(table.loc[table[quantity].notna(), "key"])
    return study.members[study.members["key"].isin(having)]
