"""One run directory -> a row and two tables; a run that cannot be read, or only in part, says why."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import yaml

EVALUATION_COLUMNS = ("env_step", "episode", "episode_return", "length")
LATENT_COLUMNS = (
    "samples", "width", "rank_0.1", "rank_0.01", "rank_0.001", "condition_number",
    "active_codebook_mean", "active_codebook_min", "active_codebook_max", "dormant_percent", "dormant_count",
)  # fmt: skip
EVALUATION_TABLE = (
    "env_step", "episodes", "mean_return", "std_return", "min_return", "max_return", "length",
    "wall_seconds", "updates",
)  # fmt: skip

_YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same safe loader, in C where built so


def empty_row(run: str) -> dict[str, Any]:
    return {
        "run": run, "agent": "", "task": "", "seed": -1, "preset": "", "budget": -1,
        "every": -1, "episodes": -1,
        "status": "unreadable", "reason": "", "remarks": "", "env_step": -1, "identity": "", "config": "{}",
        "created": "", "hours": np.nan, "pack": 1, "device": "", "device_name": "", "precision": "",
        "host": "",
        "commit": "", "agent_file": "", "dirty": False, "command": "", "sessions": 0, "packages": "{}", "job_id": "",
    }  # fmt: skip


def read_run(path: str) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """One run directory -> (row of `runs`, evaluations (rows, 9), latents (rows, 12)). Never raises."""
    row = empty_row(os.path.basename(path))
    remarks: list[str] = []
    evaluations = np.empty((0, len(EVALUATION_TABLE)))
    latents = np.empty((0, 1 + len(LATENT_COLUMNS)))
    try:
        _read_config(path, row)
        _read_provenance(path, row, remarks)
        episodes = _read_csv(path, "evaluations.csv", EVALUATION_COLUMNS, remarks)
        timing = _read_csv(path, "timing.csv", ("env_step", "wall_seconds", "updates"), remarks)
        evaluations = _evaluations(
            _without_repeats(episodes, row["episodes"], remarks), timing, row["episodes"], remarks
        )
        _remark_returns(evaluations, row["task"], remarks)
        latents = _read_csv(path, "latents.csv", ("env_step", *LATENT_COLUMNS), remarks)
        _read_end(path, row)
    except _Unreadable as error:
        row.update(status="unreadable", reason=str(error))
    except Exception as error:  # whatever is in the directory, the other runs are still there
        row.update(status="unreadable", reason=f"{type(error).__name__}: {error}".splitlines()[0])
    if len(evaluations):
        row["env_step"] = int(evaluations[-1, 0])
        seconds = evaluations[:, 7][~np.isnan(evaluations[:, 7])]
        row["hours"] = float(seconds.max()) / 3600 if len(seconds) else np.nan
    row["remarks"] = "; ".join(remarks)
    return row, evaluations, latents


class _Unreadable(Exception):
    """A file of a run that makes the run unusable; the message names the file and what is wrong."""


def _read_config(path: str, row: dict[str, Any]) -> None:
    try:
        with open(os.path.join(path, "config.yaml"), "rb") as file:
            config = yaml.load(file, Loader=_YamlLoader)
    except FileNotFoundError:
        raise _Unreadable("config.yaml is missing") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _Unreadable(f"config.yaml is not YAML: {str(error).splitlines()[0]}") from None
    try:
        flat = flatten(config)
        row.update(agent=str(flat["agent.name"]), task=str(flat["task"]), seed=int(flat["seed"]))
        row.update(preset=str(flat.get("preset", "default")), budget=int(flat["train.env_steps"]))
        row.update(every=int(flat.get("eval.every", -1)), episodes=int(flat.get("eval.episodes", -1)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _Unreadable(f"config.yaml lacks a usable {error}") from None
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


def _read_provenance(path: str, row: dict[str, Any], remarks: list[str]) -> None:
    """Where and how it ran. A run without it is still a run: its numbers do not depend on it."""
    try:
        with open(os.path.join(path, "provenance.json"), "rb") as file:
            provenance = json.load(file)
        sessions = provenance.get("sessions") or [{}]
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
    except FileNotFoundError:
        remarks.append("provenance.json is missing")
    except (ValueError, AttributeError, TypeError, IndexError):
        remarks.append("provenance.json is damaged")


def _read_csv(path: str, name: str, columns: tuple[str, ...], remarks: list[str]) -> np.ndarray:
    """(rows, columns) as floats, blank = NaN; (0, columns) when the file is absent.

    A last line without its newline is left out and named. Columns are found by their header; more may follow.
    """
    empty = np.empty((0, len(columns)))
    try:
        with open(os.path.join(path, name), encoding="utf-8", errors="replace") as file:
            text = file.read()
    except FileNotFoundError:
        return empty
    if text and not text.endswith("\n"):
        text, _, torn = text.rpartition("\n")
        remarks.append(f"{name}: torn last line ({len(torn)} bytes) left out")
    lines = text.rstrip("\n").split("\n")
    header = lines[0].split(",")
    if header == [""]:
        return empty
    missing = [column for column in columns if column not in header]
    if missing and (columns[0] in missing or name == "evaluations.csv"):
        raise _Unreadable(f"{name}: no column {missing[0]!r} in its header")
    if len(lines) == 1:
        return empty
    commas = len(header) - 1
    bad = next((i for i, line in enumerate(lines) if line.count(",") != commas), None)
    if bad is not None:
        raise _Unreadable(f"{name}: line {bad + 1} has {lines[bad].count(',') + 1} fields, its header {len(header)}")
    try:
        fields = ",".join(lines[1:]).split(",")
        if "" in fields:
            fields = [field or "nan" for field in fields]
        values = np.array(list(map(float, fields))).reshape(-1, len(header))
    except ValueError as error:
        raise _Unreadable(f"{name}: {error}") from None
    table = np.full((len(values), len(columns)), np.nan)
    for i, column in enumerate(columns):
        if column in header:
            table[:, i] = values[:, header.index(column)]
    steps = table[:, 0]
    if not np.all(np.isfinite(steps)) or np.any(np.diff(steps) < 0):
        raise _Unreadable(f"{name}: env_step is not ascending")
    return table


def _without_repeats(episodes: np.ndarray, expected: int, remarks: list[str]) -> np.ndarray:
    """Episodes (rows, 4), each of an evaluation once (its first row), and none beyond the `expected` ones."""
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
    if task.startswith("gym:"):
        return
    lowest, highest = EVALUATION_TABLE.index("min_return"), EVALUATION_TABLE.index("max_return")
    beyond = (evaluations[:, lowest] < -1e-6) | (evaluations[:, highest] > 1000 + 1e-3)
    if beyond.any():
        remarks.append(f"evaluations.csv: a return outside [0, 1000] at env step {evaluations[beyond][0, 0]:.0f}")


def _evaluations(episodes: np.ndarray, timing: np.ndarray, expected: int, remarks: list[str]) -> np.ndarray:
    """Episodes (rows, 4) -> one row an evaluation, as EVALUATION_TABLE."""
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
        table[:, 7:] = np.where((timing[place, 0] == table[:, 0])[:, None], timing[place, 1:], np.nan)
    short = np.flatnonzero(counts < expected)
    if len(short):
        at = ", ".join(f"{table[i, 0]:.0f} ({counts[i]} of {expected} episodes)" for i in short[:3])
        remarks.append(f"evaluations.csv: incomplete evaluation left out at env step {at}")
    return table[counts >= expected]


def _read_end(path: str, row: dict[str, Any]) -> None:
    """How the run ended: done, torn (DONE promises longer files), failed, or unfinished."""
    try:
        with open(os.path.join(path, "DONE"), "rb") as file:
            promised = json.load(file).get("files", {})
        row.update(status="done", reason="")
        for name, size in promised.items():
            found = os.path.getsize(os.path.join(path, name)) if os.path.exists(os.path.join(path, name)) else 0
            if found < size:
                row.update(status="torn", reason=f"{name} has {found} bytes where DONE says {size}")
                return
        return
    except FileNotFoundError:
        pass
    except (ValueError, AttributeError):
        row.update(status="torn", reason="DONE is damaged")
        return
    try:
        with open(os.path.join(path, "FAILED"), "rb") as file:
            failure = json.load(file)
        row.update(status="failed", reason=str(failure.get("reason", "")).split("\n")[0])
    except FileNotFoundError:
        row["status"] = "unfinished"
    except (ValueError, AttributeError):
        row.update(status="failed", reason="FAILED is damaged")
