"""What there is to export of a run, and how much of it has been exported already."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from analysis.errors import InputError
from iqrl.runs import group
from iqrl.runs.group import KeptRun
from iqrl.runs.reader import Run
from iqrl.runs.tables import Damaged

Row = tuple[int, dict[str, float]]  # env step, {"evaluation/mean_return": 812.3, ...}
Fields = tuple[str, dict[str, float]]  # of a line: the task it is of, if it says so, and its numbers by column
STATE = "exported.json"


def runs_of(folders: list[Path]) -> Iterator[Run | KeptRun]:
    """Every run of `folders`.

    Raises:
        InputError: a folder does not exist, its tables cannot be read, or two folders have a run of one name.
    """
    seen: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"runs={folder}: no such folder; expected one that holds run directories")
        try:
            found = group.runs_in(folder)
        except (Damaged, csv.Error) as error:
            raise InputError(f"runs={folder}: {error}") from None
        for name, run in found.items():
            if name in seen:
                raise InputError(f"runs={folder / name}: a run of this name is in {seen[name]} as well")
            seen[name] = folder
            yield run


def config(run: Run | KeptRun) -> dict[str, Any]:
    """The resolved configuration, {} where it cannot be read."""
    try:
        return run.config()
    except Damaged:
        return {}


def rows(run: Run | KeptRun) -> dict[str, list[Row]]:
    """All complete rows of the run's tables, by file; none of one that is damaged, which is named on stderr."""
    return {
        "evaluations.csv": _evaluations(_table(run, "evaluations.csv")),
        "training.csv": _prefixed("training", _table(run, "training.csv")),
        "latents.csv": _prefixed("latents", _table(run, "latents.csv")),
        "timing.csv": _prefixed("timing", _table(run, "timing.csv")),
    }


def _table(run: Run | KeptRun, name: str) -> list[Fields]:
    """The rows of a table; blank fields are left out."""
    try:
        table = run.rows(name)
        split = [dict(zip(table.columns, line.split(","), strict=True)) for line in table.lines]
        found = [
            (row.pop("task", ""), {column: float(field) for column, field in row.items() if field}) for row in split
        ]
        if not all("env_step" in numbers for _, numbers in found):
            raise ValueError("a row without an env_step")
    except ValueError as error:  # Damaged, too
        print(f"warning: {run.name}/{name}: {error}; left out", file=sys.stderr)
        return []
    return found


def _prefixed(prefix: str, table: list[Fields]) -> list[Row]:
    """One row a line. Only the return of a training episode is its task's own, where there are several."""
    return [
        (
            int(fields["env_step"]),
            {
                f"{prefix}/{task}/{name}" if task and name == "episode_return" else f"{prefix}/{name}": value
                for name, value in fields.items()
                if name != "env_step"
            },
        )
        for task, fields in table
    ]


def _evaluations(table: list[Fields]) -> list[Row]:
    """One row an evaluation, of its episodes: mean, least and greatest return, mean length, and the share that succeed.

    Of a run of several tasks these are each task's, as evaluation/TASK/mean_return. A task may not say what succeeds.
    The newest evaluation counts only once a later one or the end of the run shows that it is whole; as episodes are
    written together, that is the case whenever its episodes are as many as the first evaluation's.
    """
    by_step: dict[int, list[Fields]] = {}
    for task, fields in table:
        by_step.setdefault(int(fields["env_step"]), []).append((task, fields))
    result = []
    expected = len(next(iter(by_step.values()), []))
    for step, episodes in by_step.items():
        if len(episodes) < expected:
            continue
        values: dict[str, float] = {}
        for name in dict.fromkeys(task for task, _ in episodes):
            values |= _of_task(name, [fields for task, fields in episodes if task == name])
        result.append((step, values))
    return result


def _of_task(task: str, episodes: list[dict[str, float]]) -> dict[str, float]:
    prefix = f"evaluation/{task}/" if task else "evaluation/"
    returns = [fields.get("episode_return", math.nan) for fields in episodes]
    lengths = [fields.get("length", math.nan) for fields in episodes]
    successes = [fields["success"] for fields in episodes if "success" in fields]
    values = {
        f"{prefix}mean_return": fmean(returns),
        f"{prefix}min_return": min(returns),
        f"{prefix}max_return": max(returns),
        f"{prefix}mean_length": fmean(lengths),
    }
    return values | ({f"{prefix}success": fmean(successes)} if successes else {})


def fresh(found: dict[str, list[Row]], place: Path) -> dict[str, list[Row]]:
    """The rows that `place` has not been given yet.

    A file that has become shorter is exported from its start.
    """
    try:
        done = json.loads((place / STATE).read_text())
    except (FileNotFoundError, ValueError):
        done = {}
    return {
        name: table[int(done.get(name, 0)) :] if int(done.get(name, 0)) <= len(table) else table
        for name, table in found.items()
    }


def remember(found: dict[str, list[Row]], place: Path) -> None:
    """Note that all of `found` has been exported."""
    (place / STATE).write_text(json.dumps({name: len(table) for name, table in found.items()}))
