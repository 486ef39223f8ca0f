"""Random numbers as a pure function of a small key and of a place: for noise too large to hand in.

An agent that wants tens of millions of numbers in a learning stage asks the engine for a key of random bits
(`Noise((2,), "bits")`) and expands it where the numbers are used. Compiled, they never reach memory: on a CPU that
is several times cheaper than drawing them. The same key gives the same bits eager, compiled, packed, on any device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def uniform(key: Tensor, shape: tuple[int, ...]) -> Tensor:
    """float32 numbers of `shape`, uniform over the 2^23 midpoints in (0, 1): never 0 and never 1.

    Args:
        key: (2,) int32 random bits.
    """
    place = torch.arange(math.prod(shape), dtype=torch.int32, device=key.device).view(shape)
    x = place + key[0]  # int32 arithmetic wraps around
    x = (x ^ _shift(x, 16)) * 0x21F0AAAD  # two rounds of multiply and xor-shift, the key's second half in between
    x = (x ^ _shift(x, 15)) * 0x735A2D97
    x = (x ^ _shift(x, 15)) + key[1]
    x = (x ^ _shift(x, 16)) * 0x7FEB352D
    x = (x ^ _shift(x, 15)) * 0x6C078965
    return (_shift(x ^ _shift(x, 16), 9).float() + 0.5) * 2.0**-23


def normal(key: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal float32 numbers of `shape` (Box and Muller's transform); key as in `uniform`."""
    u = uniform(key, (2, *shape))
    return torch.sqrt(-2.0 * torch.log(u[0])) * torch.cos((2.0 * math.pi) * u[1])


def _shift(x: Tensor, places: int) -> Tensor:
    """Logical shift to the right of int32."""
    return (x >> places) & ((1 << (32 - places)) - 1)
