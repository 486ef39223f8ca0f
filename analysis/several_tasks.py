"""A run of one agent on several tasks, as one run a task: so figures and statistics show it beside runs of one task.

Env steps, updates, budget and hours become the task's own: an N-th of the run's. `TASK of RUN` is the name of each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd


def name_of(task: str, run: str) -> str:
    return f"{task} of {run}"


def directory_of(key: str) -> str:
    """The run directory of a `key` (folder/run)."""
    folder, slash, run = key.rpartition("/")
    return folder + slash + run.rpartition(" of ")[2]


def one_agents(keys: Sequence[Sequence[str]]) -> bool:
    """Whether rows of several tasks, given by the `key` of each, are of the same runs: one agent learned all tasks."""
    first, *others = [[directory_of(key) for key in own] for own in keys] or [[]]
    return bool(first and others) and all(own == first for own in others)


def tasks_of(config: str) -> int:
    """How many tasks the run has of which a row of `by_task`'s runs is a part; 1 if it is none."""
    return json.loads(config).get("tasks", "").count(",") + 1


def by_task(
    runs: pd.DataFrame, evaluations: pd.DataFrame, latents: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The tables of `analysis.runs`, those of several tasks split; each part has the whole run's latents.

    The number of a row's task, the column `task` of the evaluations, is dropped: `runs` says it.
    """
    found = runs.index[runs["task"].str.contains(",")]
    rows, parts = [], {"evaluations": [evaluations], "latents": [latents]}
    for index in found:
        row = runs.loc[index].to_dict()
        tasks = row["task"].split(",")
        own, seen = evaluations[evaluations["run"] == row["run"]], latents[latents["run"] == row["run"]]
        for n, task in enumerate(tasks):
            name = name_of(task, row["run"])
            # The identity keeps its beginning, in which the run's name ends.
            part = {**row, "run": name, "task": task, "identity": f"{row['identity']} {task}"}
            part |= {k: row[k] // len(tasks) if row[k] > 0 else row[k] for k in ("budget", "every", "env_step")}
            part["hours"] = row["hours"] / len(tasks)
            part["config"] = json.dumps({**json.loads(row["config"]), "tasks": row["task"]}, sort_keys=True)
            rows.append(part)
            its = own[own["task"] == n]
            shares = {column: its[column] / len(tasks) for column in ("wall_seconds", "updates") if column in its}
            for kind, table in (("evaluations", its.assign(**shares)), ("latents", seen)):
                parts[kind].append(table.assign(run=name, env_step=table["env_step"] // len(tasks)))
    if rows:
        gone = set(runs.loc[found, "run"])
        runs = pd.concat([runs.drop(found), pd.DataFrame(rows, columns=runs.columns)], ignore_index=True)
        stacked = [pd.concat([t.astype({"run": object}) for t in parts[kind]], ignore_index=True) for kind in parts]
        evaluations, latents = (t[~t["run"].isin(gone)].astype({"run": "category"}) for t in stacked)
    return runs, evaluations.drop(columns="task"), latents


def listed_by_task(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs that a sweep's manifest lists, likewise."""
    return [part for row in rows for part in _parts(row)]


def _parts(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    tasks = str(row["task"]).split(",")
    if len(tasks) == 1:
        return [dict(row)]
    steps = {"env_steps": int(row["env_steps"]) // len(tasks)}
    return [{**row, "run": name_of(task, row["run"]), "task": task, **steps} for task in tasks]
