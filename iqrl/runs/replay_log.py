"""Rows of a run's replay on disk, append-only."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from iqrl.runs import files


class ReplayLog:
    """A run's replay log: each session writes a segment of its own.

    A checkpoint lists the segments and how many rows of each it counts on, so a resume copies nothing.
    """

    def __init__(self, folder: Path, token: int, width: int, segments: Sequence[Sequence[Any]]) -> None:
        self.folder, self.width = folder, width
        self.kept = [[str(name), int(rows)] for name, rows in segments]
        self.name = f"{token:08d}.f32"
        self.rows = 0
        folder.mkdir(exist_ok=True)
        self.file = open(folder / self.name, "wb", buffering=1 << 16)

    @property
    def segments(self) -> list[list[Any]]:
        """[name, rows] of every segment, in order."""
        return [*self.kept, [self.name, self.rows]] if self.rows else list(self.kept)

    def append(self, rows: np.ndarray) -> None:
        """Append rows (n, width) float32."""
        self.file.write(rows.astype("<f4", copy=False).tobytes())
        self.rows += len(rows)

    def sync(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.file.close()

    @staticmethod
    def check(folder: Path, segments: Sequence[Sequence[Any]], width: int) -> None:
        """Raises ValueError if a listed segment is missing or short."""
        for name, rows in segments:
            size = files.size(folder / name)
            if size < rows * width * 4:
                raise ValueError(f"{folder / name}: {size} bytes, expected {rows * width * 4}")

    @staticmethod
    def read(folder: Path, segments: Sequence[Sequence[Any]], width: int) -> np.ndarray:
        """All rows that the segments list: (n, width) float32."""
        parts = [np.fromfile(folder / n, "<f4", count=r * width).reshape(r, width) for n, r in segments]
        return np.concatenate(parts) if parts else np.zeros((0, width), np.float32)
