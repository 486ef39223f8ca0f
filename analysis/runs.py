"""Run directories -> tidy tables, incrementally.

`load` reads every run directory below the given folders into three tables and never fails because of one of
them: a run that cannot be read, or only in part, is in the table `runs` with a status and a reason.

    runs         one row a run: what it is (agent, task, seed, configuration), how it ended, on what it ran
    evaluations  one row an evaluation: mean, spread and extremes of its episodes, wall-clock seconds, updates
    latents      one row a latent diagnostic

The tables are kept in `<folder>/.analysis/`. A run is read again only when the size or the
modification time of one of its files has changed.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from analysis.errors import InputError

CACHE_VERSION = 3  # raise it when a column changes its meaning
FILES = ("config.yaml", "provenance.json", "evaluations.csv", "latents.csv", "timing.csv", "DONE", "FAILED")
EVALUATION_COLUMNS = ("env_step", "episode", "episode_return", "length")
LATENT_COLUMNS = (
    "samples", "width", "rank_0.1", "rank_0.01", "rank_0.001", "condition_number",
    "active_codebook_mean", "active_codebook_min", "active_codebook_max", "dormant_percent", "dormant_count",
)  # fmt: skip
PARALLEL_FROM = 400  # runs to read from which a second process pays for its start

_YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same safe loader, in C where built so


def records(frame: pd.DataFrame) -> Iterator[Any]:
    """The rows of a frame as named tuples."""
    return iter(frame.itertuples())


@dataclass
class RunTables:
    """The three tables of one or more `runs/` folders. `key` (folder/run) joins them."""

    runs: pd.DataFrame
    evaluations: pd.DataFrame
    latents: pd.DataFrame


def load(folders: list[Path], cache: bool = True, processes: int | None = None) -> RunTables:
    """Read all run directories of `folders`.

    Raises:
        InputError: a folder does not exist.
    """
    parts = [_load_folder(folder, cache, processes) for folder in folders]
    return RunTables(
        runs=pd.concat([part.runs for part in parts], ignore_index=True),
        evaluations=pd.concat([part.evaluations for part in parts], ignore_index=True),
        latents=pd.concat([part.latents for part in parts], ignore_index=True),
    )


def _load_folder(folder: Path, cache: bool, processes: int | None) -> RunTables:
    if not folder.is_dir():
        raise InputError(f"runs={folder}: no such folder; expected one that holds run directories")
    signatures = _signatures(folder)
    cached = _read_cache(folder) if cache else None
    known = dict(zip(cached.runs["run"], cached.runs["signature"], strict=True)) if cached else {}
    changed = sorted(run for run, signature in signatures.items() if known.get(run) != signature)
    gone = known.keys() - signatures.keys()
    if cached and not changed and not gone:
        tables = cached
    else:
        fresh = _read_runs(folder, changed, signatures, processes)
        tables = _merge(cached, fresh, stale=set(changed) | gone) if cached else fresh
        if cache:
            _write_cache(folder, tables)
    for table in (tables.runs, tables.evaluations, tables.latents):
        table.insert(0, "key", _joined(f"{folder}/", table["run"]))
    tables.runs["folder"] = str(folder)
    return tables


def _joined(prefix: str, runs: pd.Series) -> pd.Series:
    """Prefix a column of few distinct names through its categories, not row by row."""
    names = runs.astype("category")
    return names.cat.rename_categories([prefix + str(name) for name in names.cat.categories]).astype("category")


def _signatures(folder: Path) -> dict[str, str]:
    """Size and modification time of the files of every run directory (one that holds a config.yaml)."""
    found = {}
    for entry in os.scandir(folder):
        if entry.name.startswith(".") or entry.name == "sweeps" or not entry.is_dir():
            continue
        parts = {}
        for file in os.scandir(entry.path):
            if file.name in FILES:
                status = file.stat()
                parts[file.name] = f"{file.name}:{status.st_size}:{status.st_mtime_ns}"
        if parts:
            found[entry.name] = " ".join(parts[name] for name in sorted(parts))
    return found


# ------------------------------------------------------------------------------------------------------------ the cache


def _cache_folder(folder: Path) -> Path:
    return folder / ".analysis"


def _read_cache(folder: Path) -> RunTables | None:
    """The cached tables, or None where there is none that this version can read."""
    place = _cache_folder(folder)
    try:
        index = json.loads((place / "index.json").read_text())
        if index["version"] != CACHE_VERSION:
            return None
        return RunTables(*(pd.read_parquet(place / index[name]) for name in RunTables.__annotations__))
    except Exception:  # absent, damaged or written by other versions of the libraries: it is only a cache
        return None


def _write_cache(folder: Path, tables: RunTables) -> None:
    """Replace the cache: new files, then at once the index that names them, so that two writers never mix."""
    place, token = _cache_folder(folder), secrets.token_hex(4)
    files = {name: f"{name}-{token}.parquet" for name in RunTables.__annotations__}
    try:
        place.mkdir(exist_ok=True)
        for name, file in files.items():
            getattr(tables, name).to_parquet(place / file, index=False)
        index = place / f"index-{token}.json"
        index.write_text(json.dumps({"version": CACHE_VERSION, **files}))
        index.replace(place / "index.json")
        for old in {path.name for path in place.iterdir()} - {"index.json", *files.values()}:
            (place / old).unlink(missing_ok=True)  # if another is writing it, its index names nothing: no cache
    except OSError:  # a read-only folder or a full disk: everything works without the cache, only slower
        pass


def _merge(cached: RunTables, fresh: RunTables, stale: set[str]) -> RunTables:
    def merged(name: str) -> pd.DataFrame:
        old, new = getattr(cached, name), getattr(fresh, name)
        kept = old[~old["run"].isin(stale)]
        if kept.empty or new.empty:
            return (new if kept.empty else kept).reset_index(drop=True)
        both = pd.concat([kept.astype({"run": "object"}), new.astype({"run": "object"})], ignore_index=True)
        return both if name == "runs" else both.astype({"run": "category"})

    return RunTables(merged("runs"), merged("evaluations"), merged("latents"))


# ------------------------------------------------------------------------------------------------------ reading one run


def _read_runs(folder: Path, names: list[str], signatures: dict[str, str], processes: int | None) -> RunTables:
    if processes is None:
        processes = min(os.cpu_count() or 1, 8) if len(names) >= PARALLEL_FROM else 1
    paths = [str(folder / name) for name in names]
    if processes > 1:
        with ProcessPoolExecutor(processes) as pool:
            results = list(pool.map(_read_run, paths, chunksize=64))
    else:
        results = [_read_run(path) for path in paths]
    rows = [row | {"signature": signatures[row["run"]]} for row, _, _ in results]
    return RunTables(
        runs=pd.DataFrame(rows, columns=[*_empty_row(""), "signature"]),
        evaluations=_stack(names, [evaluations for _, evaluations, _ in results], EVALUATION_TABLE),
        latents=_stack(names, [latents for _, _, latents in results], ("env_step", *LATENT_COLUMNS)),
    )


EVALUATION_TABLE = (
    "env_step", "episodes", "mean_return", "std_return", "min_return", "max_return", "length",
    "wall_seconds", "updates",
)  # fmt: skip


def _stack(names: list[str], arrays: list[np.ndarray], columns: tuple[str, ...]) -> pd.DataFrame:
    """Arrays (rows, columns), one a run -> one frame with the run's name in front."""
    codes = np.repeat(np.arange(len(names)), [len(array) for array in arrays])
    values = np.concatenate([*arrays, np.empty((0, len(columns)))])
    frame = pd.DataFrame(values, columns=list(columns))
    frame["env_step"] = frame["env_step"].astype("int64")
    runs: Any = pd.Categorical.from_codes(codes, categories=pd.Index(names, dtype=object))
    frame.insert(0, "run", runs)
    return frame


def _empty_row(run: str) -> dict[str, Any]:
    return {
        "run": run, "agent": "", "task": "", "seed": -1, "preset": "", "budget": -1,
        "every": -1, "episodes": -1,
        "status": "unreadable", "reason": "", "remarks": "", "env_step": -1, "identity": "", "config": "{}",
        "created": "", "hours": np.nan, "pack": 1, "device": "", "device_name": "", "precision": "",
        "host": "",
        "commit": "", "agent_file": "", "dirty": False, "command": "", "sessions": 0, "packages": "{}", "job_id": "",
    }  # fmt: skip


def _read_run(path: str) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """One run directory -> (row of `runs`, evaluations (rows, 9), latents (rows, 12)). Never raises."""
    row = _empty_row(os.path.basename(path))
    remarks: list[str] = []
    evaluations = np.empty((0, len(EVALUATION_TABLE)))
    latents = np.empty((0, 1 + len(LATENT_COLUMNS)))
    try:
        _read_config(path, row)
        _read_provenance(path, row, remarks)
        episodes = _read_csv(path, "evaluations.csv", EVALUATION_COLUMNS, remarks)
        timing = _read_csv(path, "timing.csv", ("env_step", "wall_seconds", "updates"), remarks)
        evaluations = _evaluations(episodes, timing, row["episodes"], remarks)
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
