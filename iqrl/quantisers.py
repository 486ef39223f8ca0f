"""What makes codes of latents: finite scalar quantisation (spec page iqrl.md section 2) and its rivals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

FSQ_LEVELS: dict[str, Any] = {  # what a setting of levels accepts
    "low": 3,
    "high": 1024,
    "hint": "a level is at least 2, and 2 is degenerate under FSQ's bound: expected 3 or more",
}
EPS = 1e-3  # widens the bound a little, so that the outermost symbols can be reached


def per_channel(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The values as a tensor, made on the device: a copy from the host cannot be part of a CUDA graph."""
    place = torch.arange(len(values), device=device)
    made = torch.full((len(values),), values[0], dtype=dtype, device=device)
    for i, value in enumerate(values[1:], 1):
        made = torch.where(place == i, torch.full((), value, dtype=dtype, device=device), made)
    return made


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

    @property
    def basis(self) -> list[int]:
        """By how much a step of each channel changes a code's index."""
        return [math.prod(self.levels[:i]) for i in range(self.channels)]

    def _channelwise(self, values: Sequence[float], x: Tensor) -> Tensor | float:
        """A constant per channel, broadcast over (..., d, channels); a scalar where all levels are equal."""
        return values[0] if len(set(values)) == 1 else per_channel(values, x.dtype, x.device)

    def half_levels(self, x: Tensor) -> Tensor | float:
        """floor(L / 2) of each channel: what a symbol is divided by to lie in [-1, 1]."""
        return self._channelwise([float(level // 2) for level in self.levels], x)

    def bound(self, x: Tensor) -> Tensor:
        """b(x) = tanh(x + s) a - o, channelwise; x (..., d, channels).

        The tangent is 2 sigmoid(2x) - 1, to 2e-7: three times faster than torch's once compiled on a CPU.
        """
        shift, half, offset = (self._channelwise(v, x) for v in (self.shift, self.half_range, self.offset))
        return (2.0 * torch.sigmoid(2.0 * (x + shift)) - 1.0) * half - offset

    def initialise(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Entries of the state: none."""
        return {}

    def __call__(self, x: Tensor, codebook: Tensor | None = None) -> Tensor:
        """Flat latent (..., Z) -> normalised codes (..., Z) in [-1, 1], float32.

        The gradient passes the rounding unchanged (straight-through estimator).
        """
        grouped = x.float().reshape(*x.shape[:-1], -1, self.channels)
        b = self.bound(grouped)
        q = b + (torch.round(b) - b).detach()  # ties to even
        return (q / self.half_levels(b)).reshape(x.shape)

    def indices(self, codes: Tensor, codebook: Tensor | None = None) -> Tensor:
        """Normalised codes (..., Z) -> codebook index of each latent dimension (..., d), int64."""
        grouped = codes.float().reshape(*codes.shape[:-1], -1, self.channels)
        half = per_channel([level // 2 for level in self.levels], torch.int64, codes.device)
        basis = per_channel(self.basis, torch.int64, codes.device)
        return (torch.round(grouped * half + half).long() * basis).sum(-1)

    def classify(self, x: Tensor, codebook: Tensor | None = None) -> Tensor:
        """Flat latent (..., Z) -> index of the code that it becomes, of each latent dimension (..., d), int32.

        `indices` of the codes, but straight from the latent: compiled on a CPU, the rounding is then done once, not
        once for every class that an index is compared with.
        """
        grouped = x.float().reshape(*x.shape[:-1], -1, self.channels)
        half = per_channel([level // 2 for level in self.levels], torch.float32, x.device)
        basis = per_channel(self.basis, torch.float32, x.device)
        return ((torch.round(self.bound(grouped)) + half) * basis).sum(-1).int()

    def codebook(self, device: torch.device | str = "cpu") -> Tensor:
        """Every code, row i being the one of index i: (codebook_size, channels)."""
        index = torch.arange(self.codebook_size, device=device)
        digits = [index // b % level - level // 2 for b, level in zip(self.basis, self.levels, strict=True)]
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
    codebook_size: int = 0

    def initialise(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Entries of the state: none."""
        return {}

    def __call__(self, x: Tensor, codebook: Tensor | None = None) -> Tensor:
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

    def indices(self, codes: Tensor, codebook: Tensor | None = None) -> Tensor:
        """Raises ValueError: continuous latents have no codes."""
        raise ValueError(f"quantiser {self.kind!r} has no codes")


@dataclass(frozen=True)
class VQ:
    """Vector quantisation: one learned codebook, shared by every latent dimension (iqrl.md section 9).

    The codebook learns no gradients: a code is the moving average of the vectors that it was nearest to
    (`learn`). Its state is ``codebook`` (codes, channels) and the averages it is made of, ``codebook/count``
    (codes,) and ``codebook/total`` (codes, channels). Vectors are drawn to their codes by `commitment`.

    Attributes:
        codes: size of the codebook.
        channels: entries of the flat latent that form one vector, c.
        decay: of the moving averages.
        beta: weight of the commitment.
    """

    codes: int
    channels: int
    decay: float = 0.99
    beta: float = 0.25

    @property
    def codebook_size(self) -> int:
        return self.codes

    def initialise(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Entries of the state: codes uniform in [-1, 1], as if each had been met once."""
        codebook = torch.rand(self.codes, self.channels, generator=generator) * 2.0 - 1.0
        return {"codebook": codebook, "codebook/count": torch.ones(self.codes), "codebook/total": codebook.clone()}

    def __call__(self, x: Tensor, codebook: Tensor | None = None) -> Tensor:
        """Flat latent (..., Z) -> nearest codes (..., Z), float32, with a straight-through gradient."""
        assert codebook is not None
        x = x.float()
        return x - x.detach() + self.lookup(self.indices(x.detach(), codebook), codebook)

    def indices(self, codes: Tensor, codebook: Tensor | None = None) -> Tensor:
        """Nearest code of each latent dimension: (..., Z) -> (..., d), int64."""
        assert codebook is not None
        vectors = codes.float().reshape(-1, self.channels)
        # Less |vector|^2. The sum has a term per channel, two or so: far too few for a matrix product to be fast.
        distance = codebook.square().sum(-1) - 2.0 * (vectors[:, None] * codebook).sum(-1)
        return distance.argmin(-1).reshape(*codes.shape[:-1], -1)

    def classify(self, x: Tensor, codebook: Tensor | None = None) -> Tensor:
        """The same of latents that are not codes yet: (..., Z) -> (..., d), int32."""
        return self.indices(x, codebook).int()

    def lookup(self, indices: Tensor, codebook: Tensor) -> Tensor:
        """Codes of indices: (..., d) -> (..., Z)."""
        return codebook[indices].flatten(-2)

    def commitment(self, x: Tensor, codes: Tensor) -> Tensor:
        """beta times the mean squared distance of latents (..., Z) from their codes, which get no gradient: (...,)."""
        return self.beta * (x - codes.detach()).square().mean(-1)

    def learn(self, state: Mapping[str, Tensor], latents: Sequence[Tensor]) -> dict[str, Tensor]:
        """The entries of the state after meeting latents (..., Z) each.

        Counts are smoothed (1e-5 a code), so that a code that is never met shrinks instead of dividing by zero.
        """
        met = torch.zeros(self.codes, 1 + self.channels, device=state["codebook"].device)
        for x in latents:  # sums by a product with a one-hot matrix, whose order is fixed, unlike scattered additions
            vectors = x.detach().float().reshape(-1, self.channels)
            nearest = self.indices(vectors, state["codebook"])  # (n, 1)
            member = (nearest == torch.arange(self.codes, device=x.device)).float()  # (n, codes)
            met = met + member.t() @ torch.cat([torch.ones_like(vectors[:, :1]), vectors], -1)
        count = torch.lerp(met[:, 0], state["codebook/count"], self.decay)
        total = torch.lerp(met[:, 1:], state["codebook/total"], self.decay)
        n = count.sum()
        smooth = (count + 1e-5) / (n + self.codes * 1e-5) * n
        return {"codebook": total / smooth[:, None], "codebook/count": count, "codebook/total": total}


def make_quantiser(
    kind: str, levels: Sequence[int], vq_codes: int = 64, vq_beta: float = 0.25, vq_decay: float = 0.99
) -> FSQ | Continuous | VQ:
    """The quantiser called `kind`: "fsq", "vq" (with as many channels as there are levels) or one of `Continuous`."""
    if kind == "vq":
        return VQ(vq_codes, len(levels), vq_decay, vq_beta)
    fsq = FSQ(tuple(levels))
    return fsq if kind == "fsq" else Continuous(kind, fsq)
