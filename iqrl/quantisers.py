"""What makes codes of latents: finite scalar quantisation (spec page iqrl.md section 2) and its rivals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

EPS = 1e-3  # widens the bound a little, so that the outermost symbols can be reached


@dataclass(frozen=True)
class FSQ:
    """Rounds each channel of a latent to one of a few levels; straight-through gradient, no parameters.

    A latent dimension owns `channels` neighbouring entries of the flat latent; together they form one code
    of an implicit codebook of size `prod(levels)`, the same for every latent dimension.

    Raises:
        ValueError: for a level below 3: with two levels the bound is degenerate (threshold near -3.8).
    """

    levels: tuple[int, ...]
    half_range: tuple[float, ...] = field(init=False)
    offset: tuple[float, ...] = field(init=False)
    shift: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not self.levels or any(level < 3 for level in self.levels):
            raise ValueError(f"FSQ levels {list(self.levels)}: every level is at least 3")
        half = tuple((level - 1) * (1 + EPS) / 2 for level in self.levels)
        offset = tuple(0.5 if level % 2 == 0 else 0.0 for level in self.levels)
        object.__setattr__(self, "half_range", half)
        object.__setattr__(self, "offset", offset)
        object.__setattr__(self, "shift", tuple(math.atanh(o / a) for o, a in zip(offset, half, strict=True)))

    @property
    def channels(self) -> int:
        return len(self.levels)

    @property
    def codebook_size(self) -> int:
        return math.prod(self.levels)

    def _channelwise(self, values: Sequence[float], x: Tensor) -> Tensor | float:
        """A constant per channel, broadcast over (..., d, channels); a scalar where all levels are equal."""
        return values[0] if len(set(values)) == 1 else torch.tensor(values, dtype=x.dtype, device=x.device)

    def half_levels(self, x: Tensor) -> Tensor | float:
        """floor(L / 2) of each channel: what a symbol is divided by to lie in [-1, 1]."""
        return self._channelwise([float(level // 2) for level in self.levels], x)

    def bound(self, x: Tensor) -> Tensor:
        """b(x) = tanh(x + s) a - o, channelwise; x (..., d, channels)."""
        shift, half, offset = (self._channelwise(v, x) for v in (self.shift, self.half_range, self.offset))
        return torch.tanh(x + shift) * half - offset

    def __call__(self, x: Tensor) -> Tensor:
        """Flat latent (..., Z) -> normalised codes (..., Z) in [-1, 1], float32.

        The gradient passes the rounding unchanged (straight-through estimator).
        """
        grouped = x.float().reshape(*x.shape[:-1], -1, self.channels)
        b = self.bound(grouped)
        q = b + (torch.round(b) - b).detach()  # ties to even
        return (q / self.half_levels(b)).reshape(x.shape)

    def indices(self, codes: Tensor) -> Tensor:
        """Normalised codes (..., Z) -> codebook index of each latent dimension (..., d), int64."""
        grouped = codes.float().reshape(*codes.shape[:-1], -1, self.channels)
        half = torch.tensor([level // 2 for level in self.levels], device=codes.device)
        basis = torch.tensor([math.prod(self.levels[:i]) for i in range(self.channels)], device=codes.device)
        return (torch.round(grouped * half + half).long() * basis).sum(-1)

    def codebook(self) -> Tensor:
        """Every code, row i being the one of index i: (codebook_size, channels)."""
        index = torch.arange(self.codebook_size)
        digits = [
            index // math.prod(self.levels[:i]) % level - level // 2 for i, level in enumerate(self.levels)
        ]
        return torch.stack([d / (level // 2) for d, level in zip(digits, self.levels, strict=True)], -1)


@dataclass(frozen=True)
class Continuous:
    """Latents that are not quantised, the arms that tell what quantising does.

    Attributes:
        kind: "none" (identity), "tanh" (bounded like FSQ but not rounded: b(x) / floor(L / 2)), "simnorm" (softmax
            over groups of 8, tdmpc2.md) or "l2" (unit norm of the whole latent).
    """

    kind: str
    bounds: FSQ

    def __call__(self, x: Tensor) -> Tensor:
        """(..., Z) -> (..., Z), float32."""
        x = x.float()
        if self.kind == "tanh":
            grouped = x.reshape(*x.shape[:-1], -1, self.bounds.channels)
            return (self.bounds.bound(grouped) / self.bounds.half_levels(grouped)).reshape(x.shape)
        if self.kind == "simnorm":
            return torch.softmax(x.reshape(*x.shape[:-1], -1, 8), -1).reshape(x.shape)
        if self.kind == "l2":
            return x / torch.clamp(torch.linalg.vector_norm(x, dim=-1, keepdim=True), min=1e-6)
        return x


def make_quantiser(kind: str, levels: Sequence[int]) -> FSQ | Continuous:
    """The quantiser called `kind`: "fsq" or one of `Continuous`."""
    fsq = FSQ(tuple(levels))
    return fsq if kind == "fsq" else Continuous(kind, fsq)
