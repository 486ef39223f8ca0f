"""Frames of a pack's replay: each picture is kept once, and observations are stacked when they are sampled."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from iqrl.environments.tasks import TaskSpec


class Frames:
    """The newest picture of every row of S seeds, (S, rows, C, height, width) uint8, on the learning device.

    A row's observation is its own picture and those of the rows before it, never of another episode: where these are
    too few, the episode's first picture stands in their place, as `iqrl.environments.image_task` has it.

    Args:
        spec: of a task observed as images.
        seeds: S.
        rows: of each seed's ring.
        folder: on a CPU, keep the pictures in a file there, which nobody sees and which ends with this process.

    Raises:
        OSError: if the file cannot be made as large as it may become.
    """

    def __init__(
        self, spec: TaskSpec, seeds: int, rows: int, device: torch.device | str, folder: Path | None = None
    ) -> None:
        assert spec.frame_shape is not None
        shape = (seeds, rows, *spec.frame_shape)
        if folder is not None:
            with tempfile.TemporaryFile(dir=folder) as file:
                os.posix_fallocate(file.fileno(), 0, math.prod(shape))  # a full disk is told now: later it is SIGBUS
                self.pictures = torch.from_numpy(np.memmap(file, np.uint8, "r+", shape=shape))
        elif torch.device(device).type == "cpu":  # pages that are not written yet take no memory
            self.pictures = torch.from_numpy(np.zeros(shape, np.uint8))
        else:
            self.pictures = torch.zeros(shape, dtype=torch.uint8, device=device)
        self.begun = torch.zeros(seeds, rows, dtype=torch.int64, device=device)  # serial of the episode's first row

    @staticmethod
    def bytes_needed(spec: TaskSpec, rows: int) -> int:
        """Bytes that one seed's frames take on the device; 0 of a task that is not observed as images."""
        return picture_bytes(spec, rows) + 8 * rows if spec.frame_shape else 0

    def write(self, rows: Tensor, pictures: np.ndarray, begun: Tensor) -> None:
        """Put pictures (n, C, height, width) and `begun` (n,) at indices (n,) into the tables laid flat."""
        self.pictures.flatten(0, 1)[rows] = torch.from_numpy(pictures).to(self.pictures.device)
        self.begun.view(-1)[rows] = begun

    def tables(self) -> dict[str, Tensor]:
        """What `stacked` reads, each with a leading axis of seeds."""
        return {"pictures": self.pictures, "begun": self.begun}


def picture_bytes(spec: TaskSpec, rows: int) -> int:
    """Bytes that the pictures alone of so many rows take."""
    return rows * math.prod(spec.frame_shape or (0,))


def newest_picture(spec: TaskSpec, observation: np.ndarray) -> np.ndarray:
    """The last (C, height, width) of a stack."""
    assert spec.frame_shape is not None
    return observation[-spec.frame_shape[0] :]


def stacked(tables: dict[str, Tensor], serial: Tensor, stack: int) -> Tensor:
    """Observations (..., stack * C, height, width) uint8 of one seed's rows, by serial numbers (...); oldest first."""
    pictures, begun = tables["pictures"], tables["begun"]
    back = torch.arange(stack - 1, -1, -1, device=serial.device)
    wanted = torch.maximum(serial[..., None] - back, begun[serial % len(begun)][..., None])
    return pictures[wanted % len(begun)].flatten(-4, -3)
