"""Sweep manifests, `runs/sweeps/NAME.json`: which run belongs to which arm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from analysis.display import from_manifest
from analysis.errors import InputError
from analysis.runs import RunTables
from analysis.studies import UNLISTED, Problem

MANIFEST: dict[str, type] = {"name": str, "arms": list, "runs": list}
MANIFEST_ARM: dict[str, type] = {"name": str, "agent": str}
MANIFEST_RUN: dict[str, type] = {"run": str, "arm": str, "task": str, "seed": int, "env_steps": int}


def _read_manifest(path: Path) -> dict[str, Any]:
    """One sweep manifest with all that `_from_manifest` asks of it.

    Raises:
        ValueError: it is not JSON, lacks a key or has one of another type, or a run is of an arm that it has not.
        OSError: it cannot be read.
    """
    manifest = json.loads(path.read_text())
    _require(manifest, MANIFEST, "the manifest")
    if manifest["name"] == UNLISTED:
        raise ValueError(f"name {UNLISTED!r} is that of the runs of no sweep")
    for i, arm in enumerate(manifest["arms"]):
        _require(arm, MANIFEST_ARM, f"arms[{i}]")
    arms = [arm["name"] for arm in manifest["arms"]]
    if len(set(arms)) < len(arms):
        raise ValueError(f"two arms of one name among {', '.join(arms)}")
    for i, run in enumerate(manifest["runs"]):
        _require(run, MANIFEST_RUN, f"runs[{i}]")
        if run["arm"] not in arms:
            raise ValueError(f"runs[{i}]: arm {run['arm']!r} is not among its arms")
    from_manifest(manifest.get("display", {}))
    return manifest


def _require(entry: Any, types: dict[str, type], where: str) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is not a mapping")
    for key, kind in types.items():
        if not isinstance(entry.get(key), kind):
            wrong = f"{key!r} is not of type {kind.__name__}" if key in entry else f"no key {key!r}"
            raise ValueError(f"{where}: {wrong}")


def read_manifests(folders: list[Path]) -> tuple[list[dict[str, Any]], list[Problem]]:
    """All sweep manifests below `folders`; one that cannot be read is a problem, not an end."""
    manifests, problems = [], []
    for folder in folders:
        for path in sorted((folder / "sweeps").glob("*.json")):
            try:
                manifests.append(_read_manifest(path))
            except (ValueError, OSError) as error:
                detail = str(error).splitlines()[0]
                problems.append(Problem("unreadable", f"sweeps/{path.name}", detail, "left out"))
    return manifests, problems


def progress(folders: list[Path], tables: RunTables, sweep: str | None = None) -> list[dict[str, Any]]:
    """How far each sweep, or the one that is named, is: name, done and runs, and the share of its env steps."""
    found = tables.runs.drop_duplicates("run").set_index("run")
    rows = []
    manifests, _ = read_manifests(folders)
    for name in dict.fromkeys(manifest["name"] for manifest in manifests):
        if sweep in (None, name):
            own = merged([manifest for manifest in manifests if manifest["name"] == name])
            budgets = {row["run"]: row["env_steps"] for row in own["runs"]}
            there = found[found.index.isin(budgets)]
            reached = sum(min(max(step, 0), budgets[run]) for run, step in there["env_step"].items())
            done = int((there["status"] == "done").sum())
            share = reached / max(sum(budgets.values()), 1)
            rows.append({"name": name, "done": done, "runs": len(budgets), "share": round(float(share), 4)})
    return rows


def merged(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    """One sweep's manifests from several folders, say of two clusters, as one: the first, with the runs of all.

    Raises:
        InputError: their arms differ.
    """
    first = manifests[0]
    for other in manifests[1:]:
        if other["arms"] != first["arms"]:
            arms = [", ".join(arm["name"] for arm in manifest["arms"]) for manifest in (first, other)]
            told = f"{arms[0]}; and {arms[1]}" if arms[0] != arms[1] else f"{arms[0]}, with other labels or agents"
            raise InputError(f"sweep={first['name']}: two of the given folders have it with different arms: {told}")
    runs = {(row["run"], row["arm"]): row for manifest in manifests for row in manifest["runs"]}
    return first | {"runs": list(runs.values())}
