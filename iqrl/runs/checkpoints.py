"""Checkpoints of a run: checkpoint/<decisions>-<updates>-<crc32>.pt, written whole or not at all."""

from __future__ import annotations

import io
import os
import pickle
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from iqrl.runs import reader
from iqrl.runs.files import sync_folder, warn
from iqrl.runs.replay_log import ReplayLog
from iqrl.runs.tables import count_rows

KEPT = 2  # of a run: the newest, and the one before it


def save(run: Path, key: tuple[int, int], content: Mapping[str, Any], token: int, check: Callable[[], None]) -> None:
    """Make a checkpoint durable, then drop all but this one and the one before it.

    Args:
        key: (decisions, updates), which orders checkpoints.
        content: plain data and tensors.
        token: the lease's, for the name of the file while it is written.
        check: raises if the run is another process's, once the file is written.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = buffer.getvalue()
    folder = run / "checkpoint"
    folder.mkdir(exist_ok=True)
    temporary = folder / f".writing-{token}"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        check()
        newest = temporary.rename(folder / f"{key[0]:010d}-{key[1]:010d}-{zlib.crc32(data):08x}.pt")
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(folder)
    # Others with this key are from before an evaluation or a row; larger keys are of a past that could not be
    # resumed, and would outlive all that comes from here.
    kept = [newest, *[old for other, old in reader.checkpoints(run) if other < key][: KEPT - 1]]
    for _, old in reader.checkpoints(run):
        if old not in kept:
            old.unlink(missing_ok=True)


def usable(run: Path, row_width: int, needs_replay: bool = True) -> Iterator[tuple[tuple[int, int], dict[str, Any]]]:
    """Keys and contents of the checkpoints that `load` takes, newest first; warns of each other one.

    Raises:
        OSError: a file is there and cannot be read: it may be whole, so nothing must be done as if it were not.
    """
    for key, file in reader.checkpoints(run):
        try:
            content = load(file, row_width, needs_replay)
        except (ValueError, FileNotFoundError) as error:
            warn(f"{error}; going back to the checkpoint before it")
            continue
        yield key, content


def load(file: Path, row_width: int, needs_replay: bool = True) -> dict[str, Any]:
    """A checkpoint, if it and everything that it counts on are whole; to look at it, no replay is needed.

    Raises:
        ValueError: naming what is damaged.
        OSError: a file cannot be read.
    """
    run, data = file.parents[1], file.read_bytes()
    if f"{zlib.crc32(data):08x}" != file.stem[-8:]:
        raise ValueError(f"{file}: damaged (its checksum does not fit)")
    try:  # what else it raises is no damage: the memory is short, say
        content: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # something else than tensors and plain data; in many lines
        raise ValueError(f"{file}: damaged ({type(error).__name__})") from None
    for name, rows in content["rows"].items() if needs_replay else ():
        present = count_rows(run / name)
        if present < rows:
            raise ValueError(f"{run / name}: {present} rows, but {file.name} was made after {rows}")
    if needs_replay:
        ReplayLog.check(run / "replay", content["replay"], row_width)
    return content
