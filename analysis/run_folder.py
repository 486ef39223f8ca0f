"""One run -> a row and two tables; a run that cannot be read, or only in part, says why."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.scales import SUITE, scale
from iqrl.runs.group import KeptRun
from iqrl.runs.reader import Run
from iqrl.runs.tables import EVALUATION_COLUMNS, LATENT_COLUMNS, TIMING_COLUMNS, Damaged

EVALUATION_TABLE = (
    "env_step", "episodes", "mean_return", "std_return", "min_return", "max_return", "length",
    "wall_seconds", "updates", "success_percent",
    "task",  # its number, of several
)  # fmt: skip


ENDED = ("done", "failed", "torn")  # states of `iqrl.runs.reader`; in any other a run is unfinished


def empty_row(run: str) -> dict[str, Any]:
    return {
        "run": run, "agent": "", "task": "", "seed": -1, "preset": "", "budget": -1,
        "every": -1, "episodes": -1,
        "status": "unreadable", "reason": "", "remarks": "", "env_step": -1, "identity": "", "config": "{}",
        "created": "", "hours": np.nan, "pack": 1, "device": "", "device_name": "", "precision": "",
        "host": "",
        "commit": "", "agent_file": "", "dirty": False, "command": "", "sessions": 0, "packages": "{}", "job_id": "",
    }  # fmt: skip


def read_run(run: Run | KeptRun) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """A run -> (row of `runs`, evaluations (rows, 11), latents (rows, 18)). Never raises."""
    row = empty_row(run.name)
    remarks: list[str] = []
    evaluations = np.empty((0, len(EVALUATION_TABLE)))
    latents = np.empty((0, len(LATENT_COLUMNS)))
    try:
        _describe(run.config(), row)
        _tell_provenance(run, row, remarks)
        tasks = row["task"].split(",")
        episodes = _numbers(run, "evaluations.csv", [*EVALUATION_COLUMNS, "success", "task"], remarks, tasks)
        timing = _numbers(run, "timing.csv", TIMING_COLUMNS, remarks)
        episodes = _without_repeats(episodes, row["episodes"] * len(tasks), remarks)
        of_task = [episodes[episodes[:, 5] == n] for n in range(len(tasks))] if len(tasks) > 1 else [episodes]
        evaluations = np.concatenate([_evaluations(own, timing, row["episodes"], remarks) for own in of_task])
        _remark_returns(evaluations, row["task"], remarks)
        latents = _numbers(run, "latents.csv", LATENT_COLUMNS, remarks)
        status, reason = run.ending()
        if status in ENDED:
            row.update(status=status, reason=reason)
        else:
            row["status"] = "unfinished"  # and why, by its provenance
    except Damaged as error:
        row.update(status="unreadable", reason=str(error))
    except Exception as error:  # whatever is in the directory, the other runs are still there
        row.update(status="unreadable", reason=f"{type(error).__name__}: {error}".splitlines()[0])
    if len(evaluations):
        row["env_step"] = int(evaluations[-1, 0])
        seconds = evaluations[:, 7][~np.isnan(evaluations[:, 7])]
        row["hours"] = float(seconds.max()) / 3600 if len(seconds) else np.nan
    row["remarks"] = "; ".join(remarks)
    return row, evaluations, latents


def _describe(config: dict[str, Any], row: dict[str, Any]) -> None:
    try:
        flat = flatten(config)
        row.update(agent=str(flat["agent.name"]), task=str(flat["task"]), seed=int(flat["seed"]))
        row.update(preset=str(flat.get("preset", "default")), budget=int(flat["train.env_steps"]))
        row.update(every=int(flat.get("eval.every", -1)), episodes=int(flat.get("eval.episodes", -1)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"config.yaml lacks a usable {error}") from None
    row["config"] = json.dumps(flat, sort_keys=True, default=str)


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping -> {"agent.horizon": 5, ...}; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _tell_provenance(run: Run | KeptRun, row: dict[str, Any], remarks: list[str]) -> None:
    """Where and how it ran. A run without it is still a run: its numbers do not depend on it."""
    try:
        provenance = run.provenance()
        sessions = provenance["sessions"] or [{}]
        last = sessions[-1]
        row.update(identity=str(provenance.get("identity", "")), created=str(provenance.get("created", "")))
        row.update(sessions=len(sessions), pack=int(last.get("pack") or 1), dirty=bool(last.get("dirty")))
        row["packages"] = json.dumps(last.get("packages") or {}, sort_keys=True)
        for name in ("device", "device_name", "precision", "host", "commit", "agent_file", "command", "job_id"):
            row[name] = str(last.get(name) or "")
        row["reason"] = {"interrupted": "interrupted", None: "running, or killed"}.get(last.get("ended"), "")
        if len({session.get("pack") for session in sessions}) > 1:
            remarks.append("pack size changed between sessions: hours per run are those of the last pack size")
        for key, name in (("precision", "precision"), ("commit", "code")):
            if len(said := dict.fromkeys(str(session[key])[:12] for session in sessions if session.get(key))) > 1:
                remarks.append(f"{name} changed between sessions: {', '.join(said)}")
    except Damaged as error:
        remarks.append(str(error))
    except (ValueError, TypeError):
        remarks.append("provenance.json is damaged")


def _numbers(
    run: Run | KeptRun, name: str, columns: list[str], remarks: list[str], tasks: Sequence[str] = ()
) -> np.ndarray:
    """(rows, columns) as floats, blank = NaN; (0, columns) when the file is absent.

    A last line without its newline is left out and named. Columns are found by their header; more may follow. In a
    column `task` the name of one of several `tasks` becomes its number.
    """
    rows = run.rows(name)
    if rows.torn:
        remarks.append(f"{name}: torn last line ({rows.torn} bytes) left out")
    header = rows.columns
    missing = [column for column in columns if column not in header] if header else []
    needed = EVALUATION_COLUMNS if name == "evaluations.csv" else columns[:1]  # success is some suites' alone
    if lacking := [column for column in missing if column in needed]:
        raise Damaged(f"{name}: no column {lacking[0]!r} in its header")
    if not rows.lines:
        return np.empty((0, len(columns)))
    try:
        fields = ",".join(rows.lines).split(",")
        if "task" in header:
            at = slice(header.index("task"), None, len(header))
            numbers = {"": "", **{task: str(n) for n, task in enumerate(tasks)}}
            fields[at] = [numbers.get(field, field) for field in fields[at]]  # another's is no number: damaged
        if "" in fields:
            fields = [field or "nan" for field in fields]
        values = np.array(list(map(float, fields))).reshape(-1, len(header))
    except ValueError as error:
        raise Damaged(f"{name}: {error}") from None
    table = np.full((len(values), len(columns)), np.nan)
    for i, column in enumerate(columns):
        if column in header:
            table[:, i] = values[:, header.index(column)]
    steps = table[:, 0]
    if not np.all(np.isfinite(steps)) or np.any(np.diff(steps) < 0):
        raise Damaged(f"{name}: env_step is not ascending")
    return table


def _without_repeats(episodes: np.ndarray, expected: int, remarks: list[str]) -> np.ndarray:
    """Episodes (rows, 6), each of an evaluation once (its first row), and none beyond the `expected` ones."""
    steps, counts = np.unique(episodes[:, 0], return_counts=True)
    more = steps[counts > expected]
    if expected < 1 or not len(more):
        return episodes
    _, first = np.unique(episodes[:, :2], axis=0, return_index=True)
    kept = np.isin(np.arange(len(episodes)), first) & (episodes[:, 1] < expected)
    at = ", ".join(f"{step:.0f}" for step in more[:3])
    remarks.append(
        f"evaluations.csv: more than {expected} episodes at env step {at}: repeated or further rows left out"
    )
    return episodes[kept]


def _remark_returns(evaluations: np.ndarray, task: str, remarks: list[str]) -> None:
    """DeepMind Control's rewards lie in [0, 1] and its episodes have 1000 env steps."""
    if scale(task) != SUITE:
        return
    lowest, highest = EVALUATION_TABLE.index("min_return"), EVALUATION_TABLE.index("max_return")
    beyond = (evaluations[:, lowest] < -1e-6) | (evaluations[:, highest] > 1000 + 1e-3)
    if beyond.any():
        remarks.append(f"evaluations.csv: a return outside [0, 1000] at env step {evaluations[beyond][0, 0]:.0f}")


def _evaluations(episodes: np.ndarray, timing: np.ndarray, expected: int, remarks: list[str]) -> np.ndarray:
    """Episodes (rows, 6) of one task -> one row an evaluation, as EVALUATION_TABLE."""
    if not len(episodes):
        return np.empty((0, len(EVALUATION_TABLE)))
    steps = episodes[:, 0]
    starts = np.flatnonzero(np.diff(steps, prepend=-1.0))
    counts = np.diff(starts, append=len(steps))
    returns, lengths = episodes[:, 2], episodes[:, 3]
    mean = np.add.reduceat(returns, starts) / counts
    square = np.add.reduceat((returns - np.repeat(mean, counts)) ** 2, starts)
    table = np.empty((len(starts), len(EVALUATION_TABLE)))
    table[:, 0], table[:, 1], table[:, 2] = steps[starts], counts, mean
    table[:, 3] = np.sqrt(square / np.maximum(counts - 1, 1))
    table[:, 4], table[:, 5] = np.minimum.reduceat(returns, starts), np.maximum.reduceat(returns, starts)
    table[:, 6] = np.add.reduceat(lengths, starts) / counts
    table[:, 7:] = np.nan
    if len(timing):
        place = np.minimum(np.searchsorted(timing[:, 0], table[:, 0]), len(timing) - 1)
        table[:, 7:9] = np.where((timing[place, 0] == table[:, 0])[:, None], timing[place, 1:], np.nan)
    table[:, 9] = 100.0 * np.add.reduceat(episodes[:, 4], starts) / counts
    table[:, 10] = episodes[starts, 5]
    short = np.flatnonzero(counts < expected)
    if len(short):
        at = ", ".join(f"{table[i, 0]:.0f} ({counts[i]} of {expected} episodes)" for i in short[:3])
        remarks.append(f"evaluations.csv: incomplete evaluation left out at env step {at}")
    return table[counts >= expected]
