"""W&B offline runs of run directories: `<out>/wandb/offline-run-*`, for `wandb sync --append`.

Needs the package `wandb`, which is an optional extra. Nothing is sent anywhere. Every export with news
writes one more offline run under the id of the run directory, which holds only the new rows; synced in order,
they are one run. W&B's own step is the env step, so that rows of later exports come after earlier ones.
"""

from __future__ import annotations

import os
from pathlib import Path

from analysis.errors import InputError
from analysis.exports.rows import Row, config, fresh, remember, rows, runs_of


def export(folders: list[Path], out: Path, project: str = "self-predictive-rl") -> dict[str, int]:
    """Write what is new; returns the number of new rows by run.

    Raises:
        InputError: the package `wandb` is not installed.
    """
    try:
        import wandb
    except ImportError:
        raise InputError("wandb: this export needs the package: pip install wandb") from None
    os.environ.setdefault("WANDB_SILENT", "true")
    written = {}
    for run in runs_of(folders):
        place = out / "exported" / run.name
        found = rows(run)
        new = fresh(found, place)
        written[run.name] = sum(map(len, new.values()))
        if not written[run.name]:
            continue
        place.mkdir(parents=True, exist_ok=True)
        settings = config(run)
        session = wandb.init(
            project=project,
            id=run.name[-64:].replace("+", "_").replace("=", "_").replace(":", "_"),
            name=run.name,
            group=str(settings.get("task", "")),
            config=settings,
            dir=str(out),
            mode="offline",
            resume="allow",
            settings=wandb.Settings(console="off", x_disable_stats=True, x_disable_meta=True, silent=True),
        )
        session.define_metric("env_step")
        session.define_metric("*", step_metric="env_step")
        for step, values in _by_step(new):
            session.log({"env_step": step, **values}, step=step)
        session.finish()
        remember(found, place)
    return written


def _by_step(tables: dict[str, list[Row]]) -> list[Row]:
    """Rows of all files in the order of env steps, those of one env step together."""
    merged: dict[int, dict[str, float]] = {}
    for table in tables.values():
        for step, values in table:
            merged.setdefault(step, {}).update(values)
    return sorted(merged.items())
