"""Kept runs as tables: a folder that holds what figures need of a group of runs, in three files for all of them.

    runs.csv         one row a run: run, agent, task, seed, preset, status, reason, env_step, env_steps, commit, to look
                     at; then `config` and `provenance`, the complete records as JSON, which are what is read
    evaluations.csv  run, then the columns of a run's evaluations.csv, and wall_seconds and updates of its timing.csv
    latents.csv      run, then the columns of a run's latents.csv

`python -m benchmarks.keep` writes them; a folder may hold run directories beside them.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iqrl.runs.files import replace_text
from iqrl.runs.reader import Run
from iqrl.runs.tables import EVALUATION_COLUMNS, LATENT_COLUMNS, TIMING_COLUMNS, Damaged, Rows, read_rows

RUN_COLUMNS = [
    "run", "agent", "task", "seed", "preset", "status", "reason", "env_step", "env_steps", "commit", "config",
    "provenance",
]  # fmt: skip
CLOCKS = TIMING_COLUMNS[1:]
FILES = ("runs.csv", "evaluations.csv", "latents.csv")


@dataclass
class KeptRun:
    """A run of a group; its methods are those of `reader.Run`."""

    name: str
    cells: Mapping[str, str]
    tables: dict[str, Rows] = field(default_factory=dict)

    def config(self) -> dict[str, Any]:
        return _mapping(self.cells["config"], f"config of {self.name}")

    def provenance(self) -> dict[str, Any]:
        return _mapping(self.cells["provenance"], f"provenance of {self.name}")

    def rows(self, table: str) -> Rows:
        """None of training.csv, which is not kept."""
        return self.tables.get(table, Rows([], []))

    def ending(self) -> tuple[str, str]:
        status = self.cells["status"]
        return ("", "") if status == "unfinished" else (status, self.cells["reason"])


def runs_in(folder: Path) -> dict[str, Run | KeptRun]:
    """The runs of a folder by name: its run directories, in order, and those kept as tables.

    Raises:
        Damaged: a run is there in both ways, or a table cannot be read.
    """
    paths = sorted(entry.path for entry in os.scandir(folder) if not entry.name.startswith(".") and entry.is_dir())
    found: dict[str, Run | KeptRun] = {
        os.path.basename(path): Run(path) for path in paths if os.path.isfile(f"{path}/config.yaml")
    }
    for run in read_group(folder):
        if run.name in found:
            raise Damaged(f"{folder / 'runs.csv'}: {run.name} is a run directory there, too; expected one of the two")
        found[run.name] = run
    return found


def read_group(folder: Path) -> list[KeptRun]:
    """The runs that are kept in a folder as tables; none where it has no runs.csv.

    Raises:
        Damaged: naming the table that cannot be read.
    """
    path = folder / "runs.csv"
    if not path.is_file():
        return []
    csv.field_size_limit(1 << 24)  # a provenance of many sessions
    with open(path, encoding="utf-8", newline="") as file:
        cells = list(csv.DictReader(file, strict=True))
    made: dict[str, KeptRun] = {}
    for row in cells:
        if missing := [column for column in RUN_COLUMNS if row.get(column) is None]:
            raise Damaged(f"{path}: no {missing[0]} of {row.get('run')}; expected columns {', '.join(RUN_COLUMNS)}")
        if row["run"] in made:
            raise Damaged(f"{path}: {row['run']} is there twice")
        made[row["run"]] = KeptRun(row["run"], row)
    for name, columns, lines in _by_run(folder / "evaluations.csv", made):
        if missing := [column for column in CLOCKS if column not in columns]:
            raise Damaged(f"{folder / 'evaluations.csv'}: no column {missing[0]}")
        made[name].tables["evaluations.csv"], made[name].tables["timing.csv"] = _split(columns, lines)
    for name, columns, lines in _by_run(folder / "latents.csv", made):
        made[name].tables["latents.csv"] = Rows(columns, lines)
    return list(made.values())


def _by_run(path: Path, known: Iterable[str]) -> list[tuple[str, list[str], list[str]]]:
    """Name, columns and lines of each known run in a table, without the column `run`."""
    rows = read_rows(path)
    if rows.columns[:1] != ["run"] or rows.torn:
        raise Damaged(f"{path}: {'torn' if rows.torn else 'no column run'}")
    lines: dict[str, list[str]] = {name: [] for name in known}
    for line in rows.lines:
        name, _, rest = line.partition(",")
        if name in lines:  # else of one that was not kept to its end
            lines[name].append(rest)
    return [(name, rows.columns[1:], own) for name, own in lines.items()]


def _split(columns: Sequence[str], lines: Sequence[str]) -> tuple[Rows, Rows]:
    """A run's lines of evaluations.csv, without the clocks; and the timing.csv that these make."""
    at = [columns.index(name) for name in CLOCKS]
    kept = [i for i in range(len(columns)) if i not in at]
    episodes, timing = list[str](), dict[str, str]()
    for line in lines:
        cells = line.split(",")
        episodes.append(",".join(cells[i] for i in kept))
        if any(cells[i] for i in at):
            timing[cells[0]] = ",".join([cells[0], *(cells[i] for i in at)])
    return Rows([columns[i] for i in kept], episodes), Rows(TIMING_COLUMNS, list(timing.values()))


def add(folder: Path, run: Run | KeptRun, provenance: Mapping[str, Any]) -> None:
    """Put a run into a group, in place of what it holds of that run; the rows of all others stay as they are.

    Args:
        provenance: what to say of where and how it ran.

    Raises:
        Damaged: a file of the run, or of the group, cannot be used.
    """
    config, (state, reason) = run.config(), run.ending()
    evaluations, latents, timing = (run.rows(name) for name in ("evaluations.csv", "latents.csv", "timing.csv"))
    sessions = provenance.get("sessions") or [{}]
    row = {
        "run": run.name,
        "agent": config["agent"]["name"],
        "task": config["task"],
        "seed": config["seed"],
        "preset": config.get("preset", ""),
        "status": state if state in ("done", "failed", "torn") else "unfinished",
        "reason": reason,
        "env_step": evaluations.lines[-1].split(",")[0] if evaluations.lines else "",
        "env_steps": config["train"]["env_steps"],
        "commit": sessions[-1].get("commit") or "",
        "config": json.dumps(config),
        "provenance": json.dumps(provenance),
    }
    cells = [dict(zip(timing.columns, line.split(","), strict=True)) for line in timing.lines]
    clocks = {cell["env_step"]: cell for cell in cells}
    episodes = _cells(evaluations)
    for episode in episodes:
        episode |= {name: clocks.get(episode["env_step"], {}).get(name, "") for name in CLOCKS}
    folder.mkdir(parents=True, exist_ok=True)
    _replace_rows(folder / "evaluations.csv", run.name, [*EVALUATION_COLUMNS, *CLOCKS], episodes)
    _replace_rows(folder / "latents.csv", run.name, LATENT_COLUMNS, _cells(latents))
    _replace_rows(folder / "runs.csv", run.name, RUN_COLUMNS[1:], [row])  # last: it says which runs there are


def _cells(rows: Rows) -> list[dict[str, str]]:
    return [dict(zip(rows.columns, line.split(","), strict=True)) for line in rows.lines]


def _replace_rows(path: Path, run: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of one run in a table of several; columns that it lacks are added at its end, blank in other rows."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ",".join(["run", *columns]) + "\n"
    header, *lines, torn = text.split("\n")
    if torn:
        raise Damaged(f"{path}: its last line is torn")
    present = header.split(",")
    new = [c for c in dict.fromkeys([*columns, *(c for row in rows for c in row)]) if c not in [*present, "run"]]
    kept = [line + "," * len(new) for line in lines if not line.startswith(f"{run},")]
    out = io.StringIO()
    writer = csv.DictWriter(out, [*present, *new], lineterminator="\n")
    writer.writeheader()
    out.writelines(f"{line}\n" for line in kept)
    writer.writerows({**row, "run": run} for row in rows)
    replace_text(path, out.getvalue())


def _mapping(text: str, what: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise Damaged(f"{what} is no JSON mapping")
    return content
