"""Sweep manifests, `runs/sweeps/NAME.json`: which run belongs to which arm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from analysis.display import from_manifest
from analysis.errors import InputError
from analysis.runs import RunTables
from analysis.several_tasks import listed_by_task
from analysis.studies import UNLISTED, Problem
from iqrl.runs.manifest import read_all


def read_manifests(folders: list[Path]) -> tuple[list[dict[str, Any]], list[Problem]]:
    """All sweep manifests below `folders`; one that cannot be read is a problem, not an end."""
    manifests, damaged = [], dict[Path, str]()
    for folder in folders:
        found, why = read_all(folder)
        damaged |= why
        for path, content in found.items():
            try:
                if content["name"] == UNLISTED:
                    raise ValueError(f"name {UNLISTED!r} is that of the runs of no sweep")
                from_manifest(content.get("display", {}))
                manifests.append(content | {"runs": listed_by_task(content["runs"])})
            except ValueError as error:
                damaged[path] = str(error)
    problems = [Problem("unreadable", f"sweeps/{path.name}", why, "left out") for path, why in sorted(damaged.items())]
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
