"""Rows of training.csv, losses and values by episode: read only where a figure or a notebook asks for them."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping

import numpy as np
import pandas as pd

from analysis.several_tasks import directory_of
from iqrl.runs.tables import Damaged, read_rows


def read(runs: Mapping[str, int]) -> pd.DataFrame:
    """The training rows of runs, by their `key` (folder/run): key, env_step, and each column that one of them has.

    Runs kept as tables have none. A file that is damaged is named on stderr, and has none either.

    Args:
        runs: how many tasks each learns, by key. Env steps are those of one.
    """
    by_header: dict[tuple[str, ...], list[tuple[str, list[str]]]] = {}
    for key in runs:
        try:
            rows = read_rows(f"{directory_of(key)}/training.csv")
        except Damaged as error:
            print(f"{key}: {error}", file=sys.stderr)
            continue
        if rows.lines and "env_step" in rows.columns:
            by_header.setdefault(tuple(rows.columns), []).append((key, rows.lines))
    frames = []
    for columns, found in by_header.items():  # all files of one header at once
        text = "\n".join(line for _, lines in found for line in lines)
        frame = pd.read_csv(io.StringIO(text), names=list(columns), header=None, low_memory=False)
        frame = frame.apply(pd.to_numeric, errors="coerce")
        lengths = [len(lines) for _, lines in found]
        frame.insert(0, "key", np.repeat([key for key, _ in found], lengths))
        frame["env_step"] //= np.repeat([runs[key] for key, _ in found], lengths)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["key", "env_step"])
