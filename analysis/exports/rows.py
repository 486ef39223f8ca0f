"""What there is to export of a run, and how much of it has been exported already."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from analysis.errors import InputError

Row = tuple[int, dict[str, float]]  # env step, {"evaluation/mean_return": 812.3, ...}
STATE = "exported.json"


def run_folders(folders: list[Path]) -> Iterator[Path]:
    """Every run directory (one with a config.yaml) below `folders`.

    Raises:
        InputError: a folder does not exist, or two runs of the same name are in different folders.
    """
    seen: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"runs={folder}: no such folder; expected one that holds run directories")
        for path in sorted(folder.iterdir()):
            if not path.name.startswith(".") and (path / "config.yaml").is_file():
                if path.name in seen:
                    raise InputError(f"runs={path}: a run of this name is in {seen[path.name].parent} as well")
                seen[path.name] = path
                yield path


def config(run: Path) -> dict[str, Any]:
    """The resolved configuration, {} where it cannot be read."""
    try:
        loaded = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def rows(run: Path) -> dict[str, list[Row]]:
    """All complete rows of the run's CSV files, by file; a torn last line is not complete."""
    return {
        "evaluations.csv": _evaluations(_table(run / "evaluations.csv")),
        "training.csv": _prefixed("training", _table(run / "training.csv")),
        "latents.csv": _prefixed("latents", _table(run / "latents.csv")),
        "timing.csv": _prefixed("timing", _table(run / "timing.csv")),
    }


def _table(path: Path) -> list[dict[str, float]]:
    """The rows of a CSV file as numbers; blank fields are left out."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    lines = text[: text.rfind("\n") + 1].splitlines()
    if not lines:
        return []
    header = lines[0].split(",")
    table = []
    for line in lines[1:]:
        try:
            fields = {name: float(field) for name, field in zip(header, line.split(","), strict=True) if field}
        except ValueError:
            break  # a damaged line: what follows it cannot be trusted either
        if "env_step" not in fields:
            break
        table.append(fields)
    return table


def _prefixed(prefix: str, table: list[dict[str, float]]) -> list[Row]:
    return [
        (
            int(fields["env_step"]),
            {f"{prefix}/{name}": value for name, value in fields.items() if name != "env_step"},
        )
        for fields in table
    ]


def _evaluations(table: list[dict[str, float]]) -> list[Row]:
    """One row an evaluation: mean, least and greatest return, and mean length of its episodes.

    The newest evaluation counts only once a later one or the end of the run shows that it is whole; as episodes are
    written together, that is the case whenever its episodes are as many as the first evaluation's.
    """
    by_step: dict[int, list[dict[str, float]]] = {}
    for fields in table:
        by_step.setdefault(int(fields["env_step"]), []).append(fields)
    result = []
    expected = len(next(iter(by_step.values()), []))
    for step, episodes in by_step.items():
        if len(episodes) < expected:
            continue
        returns = [fields.get("episode_return", math.nan) for fields in episodes]
        lengths = [fields.get("length", math.nan) for fields in episodes]
        values = {
            "evaluation/mean_return": sum(returns) / len(returns),
            "evaluation/min_return": min(returns),
            "evaluation/max_return": max(returns),
            "evaluation/mean_length": sum(lengths) / len(lengths),
        }
        result.append((step, values))
    return result


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
