"""Frames of a pack's replay: each picture is kept once, and observations are stacked when they are sampled."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from iqrl.environments.tasks import TaskSpec


class Frames:
    """The newest picture of every row of S seeds, (S, rows, C, height, width) uint8.

    They live on the learning device, or *apart* from it on the host: then stacks are gathered there (`stacks`).

    A row's observation is its own picture and those of the rows before it, never of another episode: where these are
    too few, the episode's first picture stands in their place, as `iqrl.environments.image_task` has it.

    Args:
        spec: of a task observed as images.
        seeds: S.
        rows: of each seed's ring.
        device: where they live.
        folder: on a CPU, keep the pictures in a file there, which nobody sees and which ends with this process.
        apart: the learning device is another one.

    Raises:
        OSError: if the file cannot be made as large as it may become.
    """

    def __init__(
        self,
        spec: TaskSpec,
        seeds: int,
        rows: int,
        device: torch.device | str,
        folder: Path | None = None,
        apart: bool = False,
    ) -> None:
        assert spec.frame_shape is not None
        self.stack, self.apart = spec.stack, apart
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
        device = self.pictures.device
        rows = rows.to(device)
        self.pictures.flatten(0, 1)[rows] = torch.from_numpy(pictures).to(device)
        self.begun.view(-1)[rows] = begun.to(device)

    def tables(self) -> dict[str, Tensor]:
        """What `stacked` reads, each with a leading axis of seeds; nothing if they are apart."""
        return {} if self.apart else {"pictures": self.pictures, "begun": self.begun}

    def stacks(self, places: Sequence[int], serial: Tensor, device: torch.device) -> Tensor:
        """`stacked` of the seeds at n places, (n, ..., stack * C, height, width), for pictures that are apart.

        They are put into memory that a GPU reads by itself, while this process goes on.

        Args:
            serial: (n, ...), on the host.
            device: where they go.
        """
        rows = self.begun.shape[1]
        wanted = [place * rows + _stack_rows(self.begun[place], own, self.stack) for place, own in zip(places, serial)]
        index = torch.stack(wanted)
        pinned = device.type == "cuda"
        found = torch.empty(index.numel(), *self.pictures.shape[2:], dtype=torch.uint8, pin_memory=pinned)
        torch.index_select(self.pictures.flatten(0, 1), 0, index.view(-1), out=found)
        return found.view(*index.shape, *found.shape[1:]).flatten(-4, -3).to(device, non_blocking=True)


def picture_bytes(spec: TaskSpec, rows: int) -> int:
    """Bytes that the pictures alone of so many rows take."""
    return rows * math.prod(spec.frame_shape or (0,))


def newest_picture(spec: TaskSpec, observation: np.ndarray) -> np.ndarray:
    """The last (C, height, width) of a stack."""
    assert spec.frame_shape is not None
    return observation[-spec.frame_shape[0] :]


def stacked(tables: dict[str, Tensor], serial: Tensor, stack: int) -> Tensor:
    """Observations (..., stack * C, height, width) uint8 of one seed's rows, by serial numbers (...); oldest first."""
    return tables["pictures"][_stack_rows(tables["begun"], serial, stack)].flatten(-4, -3)


def _stack_rows(begun: Tensor, serial: Tensor, stack: int) -> Tensor:
    """Indices (..., stack) of the pictures of one seed's rows."""
    back = torch.arange(stack - 1, -1, -1, device=serial.device)
    return torch.maximum(serial[..., None] - back, begun[serial % len(begun)][..., None]) % len(begun)
