"""The arrays through which a pool of environments and its workers talk, in one piece of anonymous shared memory."""

import math
import os
import tempfile
from typing import Any

import numpy as np

from iqrl.environments.tasks import TaskSpec


class Slots:
    """The arrays that the pool and its workers share, in one buffer."""

    def __init__(self, buffer: Any, count: int, spec: TaskSpec):
        offset = 0
        for name, dtype, shape in self._fields(count, spec):
            array: np.ndarray = np.frombuffer(buffer, dtype, math.prod(shape), offset).reshape(shape)
            setattr(self, name, array)
            offset += _padded(array.nbytes)

    @staticmethod
    def size(count: int, spec: TaskSpec) -> int:
        """Bytes of the buffer."""
        fields = Slots._fields(count, spec)
        return sum(_padded(np.dtype(dtype).itemsize * math.prod(shape)) for _, dtype, shape in fields)

    @staticmethod
    def _fields(count: int, spec: TaskSpec) -> list[tuple[str, Any, tuple[int, ...]]]:
        return [
            # Every action of the current episode; pages are taken as it goes on.
            ("actions", np.float32, (count, spec.episode_decisions, spec.action_dim)),
            ("decisions", np.int32, (count,)),  # taken in the current episode; the pool counts
            ("active", np.bool_, (count,)),
            ("observations", spec.observation_dtype, (count, *spec.observation_shape)),
            ("rewards", np.float64, (count,)),
            ("terminated", np.bool_, (count,)),
            ("truncated", np.bool_, (count,)),
            ("success", np.bool_, (count, 2)),  # of `Environment.success`
        ]

    actions: np.ndarray
    decisions: np.ndarray
    active: np.ndarray
    observations: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    success: np.ndarray


def _padded(size: int) -> int:
    """Up to a whole number of cache lines."""
    return -(-size // 64) * 64


def anonymous_memory(size: int) -> int:
    """A file descriptor of `size` zero bytes that no name leads to."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("iqrl-environments", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
