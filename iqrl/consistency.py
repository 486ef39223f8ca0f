"""Temporal consistency: how far predicted latents are from their targets, and what each step of an unroll weighs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from iqrl.agent import Batch


def consistency(predicted: Tensor, goal: Tensor, metric: str, sign: int) -> Tensor:
    """Error of predicted latents (..., Z) against goals: mean square, or the cosine times `sign`."""
    if metric == "mse":
        return (predicted - goal).square().mean(-1)
    norms = [torch.clamp(torch.linalg.vector_norm(v, dim=-1), min=1e-6) for v in (predicted, goal)]
    return sign * (predicted * goal).sum(-1) / (norms[0] * norms[1])


def step_weights(config: Any, batch: Batch) -> Tensor:
    """rho^h m_{h,b} by iQRL's Config, over H if the horizon is averaged: (H, B)."""
    c, ended = config, batch.ended[: config.horizon]
    mask = {
        "after_end": batch.alive[: c.horizon],
        "released": 1.0 - ended,
        "minimal": torch.cumprod(1.0 - ended, 0),
        "none": torch.ones_like(ended),
    }[c.mask_mode]
    powers = c.rep_discount ** torch.arange(c.horizon, device=ended.device, dtype=ended.dtype)
    return powers[:, None] * mask / (c.horizon if c.rep_reduction == "mean" else 1)
