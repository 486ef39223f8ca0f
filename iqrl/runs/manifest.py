"""A sweep's manifest, `runs/sweeps/NAME.json`: which runs belong to which arm. Its one reader and writer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from iqrl.runs.files import replace_text

WHOLE: dict[str, type] = {"name": str, "arms": list, "runs": list}
ARM: dict[str, type] = {"name": str, "agent": str}
RUN: dict[str, type] = {"run": str, "arm": str, "agent": str, "task": str, "seed": int, "env_steps": int}


def read(path: Path) -> dict[str, Any]:
    """A manifest with every key that a reader asks for: name, scale, arms (name, agent) and runs (`RUN`).

    Raises:
        ValueError: it is not JSON, lacks a key or has one of another type, or a run is of an arm that it has not.
        OSError: it cannot be read.
    """
    manifest = json.loads(path.read_text(encoding="utf-8"))
    _require(manifest, WHOLE, "the manifest")
    for i, arm in enumerate(manifest["arms"]):
        _require(arm, ARM, f"arms[{i}]")
    arms = [arm["name"] for arm in manifest["arms"]]
    if len(set(arms)) < len(arms):
        raise ValueError(f"two arms of one name among {', '.join(arms)}")
    for i, run in enumerate(manifest["runs"]):
        _require(run, RUN, f"runs[{i}]")
        if run["arm"] not in arms:
            raise ValueError(f"runs[{i}]: arm {run['arm']!r} is not among its arms")
    return {"scale": "full", **manifest}


def _require(entry: Any, types: dict[str, type], where: str) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is not a mapping")
    for key, kind in types.items():
        if not isinstance(entry.get(key), kind):
            wrong = f"{key!r} is not of type {kind.__name__}" if key in entry else f"no key {key!r}"
            raise ValueError(f"{where}: {wrong}")


def read_all(runs: Path) -> tuple[dict[Path, dict[str, Any]], dict[Path, str]]:
    """Those of all sweeps in a folder of runs, in the order of their names; and why others cannot be read."""
    found, damaged = {}, {}
    for path in sorted((runs / "sweeps").glob("*.json")):
        try:
            found[path] = read(path)
        except (ValueError, OSError) as error:
            damaged[path] = str(error).splitlines()[0]
    return found, damaged


def write(runs: Path, content: dict[str, Any]) -> None:
    """Say which runs a sweep consists of, before any of them begins."""
    folder = runs / "sweeps"
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / f"{content['name']}.json", json.dumps(content, indent=0))
