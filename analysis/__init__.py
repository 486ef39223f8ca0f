"""From run directories to a paper: tables, statistics, figures, a report.

Reads only the files that runs leave behind, by `iqrl.runs.reader`, so it works on a laptop from a copy of `runs/`; it
needs neither torch nor a simulator. ``python -m analysis --help`` lists the commands.

The modules, in the order in which data passes through them:

    runs         run directories and kept runs -> tidy tables, with a cache
    manifests, building, audit, studies
                 tables + sweep manifests -> arms, aligned scores, and everything that is missing
    scales       what a task is judged by, and its normalisation
    statistics   aligned scores -> estimates with intervals
    published    result files of public repositories -> the same tidy rows, never pooled with own runs
    figures/     one module a figure: data and drawing apart
    tables       LaTeX, Markdown and CSV
    report       one HTML file
    frames       the tables, studies and statistics for a notebook: from analysis import load, study
    exports      TensorBoard and W&B
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """`load` and `study`, for notebooks; late, so that the command line answers at once."""
    if name in ("load", "study"):
        from analysis import frames

        return getattr(frames, name)
    raise AttributeError(f"module 'analysis' has no attribute {name!r}")
