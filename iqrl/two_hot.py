"""Two-hot codes of numbers over bins that are even after a logarithm (mrq.md section 2)."""

from __future__ import annotations

import torch
from torch import Tensor


def symexp_bins(count: int, limit: float, device: torch.device | str = "cpu") -> Tensor:
    """symexp of `count` evenly spaced points from -limit to limit: (count,), float32.

    Made on the device, since a copy from the host cannot be part of a CUDA graph.
    """
    steps = torch.arange(count, device=device, dtype=torch.float64)
    points = limit * (2.0 * steps - (count - 1)) / (count - 1)
    return (torch.sign(points) * torch.expm1(points.abs())).float()


def two_hot(reward: Tensor, bins: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the upper of the two bins around a reward, and its weight; the bin below has the rest.

    Linear in the reward itself. Rewards beyond the outermost bins count as these.
    """
    reward = torch.clamp(reward, bins[0], bins[-1])
    upper = torch.clamp((bins < reward[..., None]).sum(-1), min=1)
    low, high = bins[upper - 1], bins[upper]
    return upper, (reward - low) / (high - low)


def two_hot_cross_entropy(logits: Tensor, reward: Tensor, limit: float) -> Tensor:
    """Cross-entropy of logits (..., bins) against the two-hot code of rewards (...)."""
    bins = symexp_bins(logits.shape[-1], limit, logits.device)
    upper, weight = two_hot(reward, bins)
    log_p = torch.log_softmax(logits, -1)
    high = log_p.gather(-1, upper[..., None])[..., 0]
    low = log_p.gather(-1, upper[..., None] - 1)[..., 0]
    return -(weight * high + (1.0 - weight) * low)
