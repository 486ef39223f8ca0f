"""Rows of a run's replay on disk, append-only."""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from iqrl.runs import files

FRAMES_AT_ONCE = 1024  # read


class ReplayLog:
    """A run's replay log: each session writes a segment of its own.

    A segment is NAME.f32, rows of numbers, and of a task observed as images NAME.frames.gz, a picture a row: one
    stream, in which what stands still from one picture to the next takes no room. A checkpoint lists the segments, how
    many rows and compressed bytes of each it counts on, so a resume copies nothing.
    """

    def __init__(self, folder: Path, token: int, width: int, segments: Sequence[Sequence[Any]]) -> None:
        self.folder, self.width = folder, width
        self.kept = [[str(name), *map(int, counts)] for name, *counts in segments]
        self.name = f"{token:08d}.f32"
        self.rows = 0
        folder.mkdir(exist_ok=True)
        self.file = open(folder / self.name, "wb", buffering=1 << 16)
        self.frames: FrameFile | None = None

    @property
    def segments(self) -> list[list[Any]]:
        """[name, rows] of every segment, in order, or [name, rows, bytes of frames]; after `sync`."""
        if not self.rows:
            return list(self.kept)
        return [*self.kept, [self.name, self.rows, *([self.frames.size] if self.frames else [])]]

    def append(self, rows: np.ndarray, pictures: np.ndarray | None = None) -> None:
        """Append rows (n, width) float32, and their pictures (n, C, height, width) uint8."""
        self.file.write(rows.astype("<f4", copy=False).tobytes())
        self.rows += len(rows)
        if pictures is not None:
            self.frames = self.frames or FrameFile(frames_of(self.folder / self.name))
            self.frames.append(pictures)

    def sync(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        if self.frames:
            self.frames.sync()

    def close(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.file.close()
        if self.frames:
            self.frames.close()

    @staticmethod
    def check(folder: Path, segments: Sequence[Sequence[Any]], width: int) -> None:
        """Raises ValueError if a listed segment is missing or short."""
        for name, rows, *compressed in segments:
            expected = [(folder / name, rows * width * 4), *((frames_of(folder / name), size) for size in compressed)]
            for path, least in expected:
                if files.size(path) < least:
                    raise ValueError(f"{path}: {files.size(path)} bytes, expected {least}")

    @staticmethod
    def read(
        folder: Path, segments: Sequence[Sequence[Any]], width: int, frame_shape: tuple[int, ...] | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """All rows that the segments list, in blocks (n, width) float32, with their pictures (n, *frame_shape) if any.

        Raises:
            ValueError: frames are damaged.
        """
        for name, count, *_ in segments:
            rows = np.fromfile(folder / name, "<f4", count=count * width).reshape(count, width)
            if frame_shape is None:
                yield rows, None
                continue
            with gzip.open(frames_of(folder / name)) as file:
                for first in range(0, count, FRAMES_AT_ONCE):
                    block = rows[first : first + FRAMES_AT_ONCE]
                    yield block, _pictures(file, (len(block), *frame_shape), frames_of(folder / name))


class FrameFile:
    """Pictures in one gzip stream."""

    def __init__(self, path: Path) -> None:
        self.file = open(path, "wb", buffering=1 << 16)
        self.stream = gzip.GzipFile("", "wb", compresslevel=1, fileobj=self.file, mtime=0)
        self.size = 0  # bytes from which everything before the last `sync` can be read

    def append(self, pictures: np.ndarray) -> None:
        self.stream.write(pictures.tobytes())

    def sync(self) -> None:
        self.stream.flush()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.size = self.file.tell()

    def close(self) -> None:
        for file in (self.stream, self.file):
            with contextlib.suppress(OSError, ValueError):
                file.close()


def frames_of(segment: Path) -> Path:
    """Where the frames of a segment's rows are."""
    return segment.with_suffix(".frames.gz")


def _pictures(file: BinaryIO | gzip.GzipFile, shape: tuple[int, ...], path: Path) -> np.ndarray:
    try:
        return np.frombuffer(file.read(math.prod(shape)), np.uint8).reshape(shape)
    except (EOFError, gzip.BadGzipFile, zlib.error, ValueError) as error:
        raise ValueError(f"{path}: damaged ({type(error).__name__})") from None
