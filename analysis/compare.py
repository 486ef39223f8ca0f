"""Own results beside published ones, task by task, at fixed numbers of env steps."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis import style
from analysis.published import Published, agent_of, at
from analysis.runs import records
from analysis.scales import quantity, score_name
from analysis.statistics import is_recent, student_t
from analysis.studies import Study
from analysis.typesetting import Table

MARKS = (100_000, 500_000, 1_000_000)


def compare(study: Study, published: Published, marks: tuple[int, ...] = MARKS) -> pd.DataFrame:
    """One row an arm, task, mark and published algorithm.

    Columns: task, env_step, arm, own, own_low, own_high, own_seeds, algorithm, published, published_low,
    published_high (lowest and highest seed), published_seeds, same (it is the arm's own algorithm), verdict
    ("inside" the published seeds' range, "above", "below").
    """
    theirs = at(published.frame, marks)
    rows = []
    for arm in study.arms:
        for task in sorted(study.of(arm.name)["task"].unique()):
            count, steps = len(study.of(arm.name, task)), study.grid(arm.name, task)
            reached = [mark for mark in marks if mark <= steps[-1]]
            for mark in (mark for mark in reached if is_recent(steps[steps <= mark].max(initial=-1), mark)):
                own = student_t(study.runs(arm.name, task, quantity(task), np.array([mark])))
                here = theirs[(theirs["task"] == task) & (theirs["mark"] == mark)]
                for algorithm, seeds in here.groupby("algorithm")["episode_return"]:
                    low, high, value = seeds.min(), seeds.max(), own.point[0]
                    verdict = "below" if value < low else "above" if value > high else "inside"
                    same = agent_of(str(algorithm)) == arm.agent
                    own_part = (task, mark, arm.name, value, own.low[0], own.high[0], count)
                    rows.append((*own_part, algorithm, seeds.mean(), low, high, len(seeds), same, verdict))
    columns = [
        "task", "env_step", "arm", "own", "own_low", "own_high", "own_seeds", "algorithm", "published",
        "published_low", "published_high", "published_seeds", "same", "verdict",
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def table(study: Study, published: Published, frame: pd.DataFrame) -> Table:
    """The comparison as a table: the arm's own algorithm first, then the others."""
    labels = {arm.name: style.label(arm) for arm in study.arms}
    ordered = frame.sort_values(["env_step", "task", "arm", "same", "algorithm"], ascending=[True] * 3 + [False, True])
    rows = [
        [
            row.task, style.steps(row.env_step), labels[row.arm], f"{row.own:.0f} ({row.own_seeds})",
            f"{row.algorithm}{' *' if row.same else ''}",
            f"{row.published:.0f} [{row.published_low:.0f}, {row.published_high:.0f}] "
            f"({row.published_seeds})",
            row.verdict,
        ]
        for row in records(ordered)
    ]  # fmt: skip
    caption = (
        f"Own {score_name(frame.task)} (seeds) beside published ones: mean [lowest, highest seed] (seeds), and where "
        "the own mean lies. An asterisk marks the arm's own algorithm. Each value is the latest at or before the mark, "
        "at most 6% of it older (a published one also up to 1k environment steps after it). "
        + "; ".join(published.remarks)
        + "."
    )
    columns = ["Task", "Env steps", "Arm", "Own", "Algorithm", "Published", "Own is"]
    return Table("compare", caption, columns, rows, ordered, study=study.name)
