"""The CSV files of a run: their columns, reading them, and appending to them."""

from __future__ import annotations

import contextlib
import errno
import numbers
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iqrl.runs.files import replace_text, warn

EVALUATION_COLUMNS = ["env_step", "episode", "episode_return", "length"]
TRAINING_COLUMNS = ["env_step", "episode", "updates", "episode_return"]
TIMING_COLUMNS = ["env_step", "wall_seconds", "updates"]
LATENT_COLUMNS = [
    "env_step",
    "samples",
    "width",
    "rank_0.1",
    "rank_0.01",
    "rank_0.001",
    "condition_number",
    "active_codebook_mean",
    "active_codebook_min",
    "active_codebook_max",
    "dormant_percent",
    "dormant_count",
    "effective_rank",
    "target_cosine",
    "prediction_cosine",
    "drift",
    "observation_r2",
    "reward_r2",
]
TABLES = {
    "evaluations.csv": EVALUATION_COLUMNS,
    "training.csv": TRAINING_COLUMNS,
    "latents.csv": LATENT_COLUMNS,
    "timing.csv": TIMING_COLUMNS,
}


class Damaged(ValueError):
    """A file of a run cannot be used; the message names the file and what is wrong."""


@dataclass(frozen=True)
class Rows:
    """The complete rows of a table.

    Attributes:
        columns: of its header; none where the file is absent or empty.
        lines: as they are in the file: fields separated by commas, as many as there are columns.
        torn: bytes of a last line without its end, which is no row.
    """

    columns: list[str]
    lines: list[str]
    torn: int = 0


def read_lines(path: Path | str) -> tuple[list[str], int]:
    """The complete lines of a file, and the bytes of a torn last one; none if it does not exist."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            *lines, torn = file.read().split("\n")
    except FileNotFoundError:
        return [], 0
    return lines, len(torn)


def read_rows(path: Path | str) -> Rows:
    """A table.

    Raises:
        Damaged: a row has other fields than the header.
    """
    lines, torn = read_lines(path)
    while lines and not lines[-1]:
        lines.pop()
    columns = lines[0].split(",") if lines else []
    commas = len(columns) - 1
    for i, line in enumerate(lines[1:]):
        if line.count(",") != commas:
            name, found = os.path.basename(path), line.count(",") + 1
            raise Damaged(f"{name}: line {i + 2} has {found} fields, its header {len(columns)}")
    return Rows(columns, lines[1:], torn)


def count_rows(path: Path) -> int:
    """Complete rows of a table, without its header."""
    return max(0, len(read_lines(path)[0]) - 1)


class Table:
    """A CSV file that rows are appended to.

    Opening keeps the first `rows` rows and drops what follows, in a new file that takes the old one's name.
    Columns that appear later are added at the end, blank in earlier rows.
    """

    def __init__(self, path: Path, columns: Sequence[str], rows: int) -> None:
        self.path = path
        found, torn = read_lines(path)
        if torn:
            warn(f"{path}: its last line is torn; dropped")
        lines = found[: rows + 1] if rows else []
        self.columns = lines[0].split(",") if lines else list(columns)
        self.rows = max(0, len(lines) - 1)
        if self.rows != rows:
            raise ValueError(f"{path}: {self.rows} rows, expected {rows}")
        self._open([",".join(self.columns), *lines[1:]])

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row at once. Raises OSError as `sync` does."""
        new = [c for c in row if c not in self.columns]
        if new:
            self._check()
            lines = read_lines(self.path)[0][1 : self.rows + 1]
            self.columns += new
            self.close()
            self._open([",".join(self.columns), *(line + "," * len(new) for line in lines)])
        line = ",".join(format_cell(row.get(c)) for c in self.columns) + "\n"
        data = line.encode()
        written = os.write(self.descriptor, data)
        if written != len(data):  # a disk that fills takes a part; the next attempt says why
            os.write(self.descriptor, data[written:])
        self.rows += 1

    def _open(self, lines: Sequence[str]) -> None:
        # Durable: the file that it replaces was, and checkpoints count on its rows.
        replace_text(self.path, "".join(line + "\n" for line in lines), durable=True)
        self.descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)

    def sync(self) -> None:
        """Make its rows durable.

        Raises:
            OSError: another file has the name since: an editor wrote it anew, say, and rows since then are in no file.
        """
        os.fsync(self.descriptor)
        self._check()

    def _check(self) -> None:
        own = os.fstat(self.descriptor)
        try:
            named = os.stat(self.path)
        except FileNotFoundError:
            named = None
        if named is None or (own.st_dev, own.st_ino) != (named.st_dev, named.st_ino):
            raise OSError(errno.ESTALE, "was replaced or removed while its run wrote to it", str(self.path))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.descriptor)


def format_cell(value: Any) -> str:
    """A CSV cell: floats by their shortest exact form, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):  # NumPy's, too
        return repr(float(value))
    return str(value)
