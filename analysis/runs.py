"""Runs, of run directories or kept as tables, -> tidy tables, incrementally.

`load` reads every run directory below the given folders into three tables and never fails because of one of
them: a run that cannot be read, or only in part, is in the table `runs` with a status and a reason.

    runs         one row a run: what it is (agent, task, seed, configuration), how it ended, on what it ran;
                 of several tasks, one a task (several_tasks.py)
    evaluations  one row an evaluation: mean, spread and extremes of its episodes, wall-clock seconds, updates
    latents      one row a latent diagnostic

The tables are kept in `<folder>/.analysis/`. A run is read again only when the size or the
modification time of one of its files has changed.
"""

from __future__ import annotations

import csv
import json
import os
import secrets
from collections.abc import Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import several_tasks
from analysis.errors import InputError
from analysis.run_folder import EVALUATION_TABLE, empty_row, read_run
from iqrl.runs import group
from iqrl.runs.group import KeptRun
from iqrl.runs.reader import Run
from iqrl.runs.tables import LATENT_COLUMNS, Damaged

CACHE_VERSION = 7  # raise it when a column changes its meaning
FILES = ("config.yaml", "provenance.json", "evaluations.csv", "latents.csv", "timing.csv", "DONE", "FAILED")
PARALLEL_FROM = 400  # runs to read from which a second process pays for its start


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
    """Read all runs of `folders`: run directories, and those that `python -m benchmarks.keep` has put into tables.

    Raises:
        InputError: a folder does not exist, or its tables of kept runs cannot be read.
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
    try:
        kept = {run.name: run for run in group.read_group(folder)}
    except (Damaged, csv.Error) as error:
        raise InputError(f"runs={folder}: {error}") from None
    signatures = _signatures(folder, kept)
    cached = _read_cache(folder) if cache else None
    known = dict(zip(cached.runs["run"], cached.runs["signature"], strict=True)) if cached else {}
    changed = sorted(run for run, signature in signatures.items() if known.get(run) != signature)
    gone = known.keys() - signatures.keys()
    if cached and not changed and not gone:
        tables = cached
    else:
        fresh = _read_runs([kept.get(name) or Run(folder / name) for name in changed], signatures, processes)
        tables = _merge(cached, fresh, stale=set(changed) | gone) if cached else fresh
        if cache:
            _write_cache(folder, tables)
    tables = RunTables(*several_tasks.by_task(tables.runs, tables.evaluations, tables.latents))
    for table in (tables.runs, tables.evaluations, tables.latents):
        table.insert(0, "key", _joined(f"{folder}/", table["run"]))
    tables.runs["folder"] = str(folder)
    return tables


def _joined(prefix: str, runs: pd.Series) -> pd.Series:
    """Prefix a column of few distinct names through its categories, not row by row."""
    names = runs.astype("category")
    return names.cat.rename_categories([prefix + str(name) for name in names.cat.categories]).astype("category")


def _signatures(folder: Path, kept: Collection[str]) -> dict[str, str]:
    """Size and modification time of the files of every run directory, and of the tables that hold the runs `kept`.

    Raises:
        InputError: a run is there in both ways.
    """
    parts = dict[str, str]()
    for name in group.FILES if kept else ():
        status = (folder / name).stat()
        parts[name] = f"{name}:{status.st_size}:{status.st_mtime_ns}"
    found = dict.fromkeys(kept, " ".join(parts.values()))
    for entry in os.scandir(folder):
        if entry.name.startswith(".") or entry.name == "sweeps" or not entry.is_dir():
            continue
        parts = {}
        for file in os.scandir(entry.path):
            if file.name in FILES:
                status = file.stat()
                parts[file.name] = f"{file.name}:{status.st_size}:{status.st_mtime_ns}"
        if "FAILED" in parts and (lease := Path(entry.path, "lease")).is_dir():
            parts["lease"] = f"lease:{lease.stat().st_mtime_ns}"  # claimed again, it is failed no more
        if parts and entry.name in kept:
            raise InputError(f"runs={folder}: {entry.name} is a folder and a row of its runs.csv; expected one")
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


def _read_runs(found: list[Run | KeptRun], signatures: dict[str, str], processes: int | None) -> RunTables:
    names = [run.name for run in found]
    if processes is None:
        processes = min(os.cpu_count() or 1, 8) if len(names) >= PARALLEL_FROM else 1
    if processes > 1:
        with ProcessPoolExecutor(processes) as pool:
            results = list(pool.map(read_run, found, chunksize=64))
    else:
        results = [read_run(run) for run in found]
    rows = [row | {"signature": signatures[row["run"]]} for row, _, _ in results]
    for row in rows:
        if row["status"] == "unfinished" and (
            "FAILED" in row["signature"] or "DONE" in row["signature"]
        ):  # being begun again: look again next time
            row["signature"] = ""
    return RunTables(
        runs=pd.DataFrame(rows, columns=[*empty_row(""), "signature"]),
        evaluations=_stack(names, [evaluations for _, evaluations, _ in results], EVALUATION_TABLE),
        latents=_stack(names, [latents for _, _, latents in results], tuple(LATENT_COLUMNS)),
    )


def _stack(names: list[str], arrays: list[np.ndarray], columns: tuple[str, ...]) -> pd.DataFrame:
    """Arrays (rows, columns), one a run -> one frame with the run's name in front."""
    codes = np.repeat(np.arange(len(names)), [len(array) for array in arrays])
    values = np.concatenate([*arrays, np.empty((0, len(columns)))])
    frame = pd.DataFrame(values, columns=list(columns))
    frame["env_step"] = frame["env_step"].astype("int64")
    runs: Any = pd.Categorical.from_codes(codes, categories=pd.Index(names, dtype=object))
    frame.insert(0, "run", runs)
    return frame
