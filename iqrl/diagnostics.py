"""What a representation looks like from inside: rank, conditioning, codebook use, dormant units.

Definitions: iqrl.md section 7. Computed off the hot path, at every evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from iqrl.agent import Agent, State

TOLERANCES = (0.1, 0.01, 0.001)
DORMANT_SHARE = 0.025


def matrix_rank(singular_values: Tensor, tolerance: float) -> int:
    """Number of singular values above max(t, t sigma_max): absolute and relative."""
    return int((singular_values > max(tolerance, tolerance * float(singular_values.max()))).sum())


def condition_number(singular_values: Tensor) -> float:
    """sigma_max / sigma_min, inf for a singular matrix."""
    low, high = float(singular_values.min()), float(singular_values.max())
    return high / low if low > 0.0 else float("inf")


def active_codebook(indices: Tensor, codebook_size: int) -> tuple[float, float, float]:
    """Mean, least and largest share of the codebook in use over latent dimensions, in per cent.

    Args:
        indices: (M, d) code index of each latent dimension in M samples.
        codebook_size: number of codes |C|.
    """
    used = torch.zeros(indices.shape[1], codebook_size, dtype=torch.bool)
    used[torch.arange(indices.shape[1]).expand_as(indices), indices.cpu()] = True
    share = 100.0 * used.sum(1).double() / codebook_size
    return float(share.mean()), float(share.min()), float(share.max())


def dormant_units(layers: Sequence[Tensor]) -> tuple[float, int]:
    """Per cent and number of hidden units whose activity is at most DORMANT_SHARE of their layer's mean.

    A unit's activity is the batch mean of its positive part. Layers are (M, n), or (K, M, n) for an ensemble, whose
    members count as layers of their own.
    """
    dormant = total = 0
    for layer in layers:
        activity = torch.relu(layer.float()).mean(-2)
        score = activity / (activity.mean(-1, keepdim=True) + 1e-9)
        asleep = score <= DORMANT_SHARE
        dormant += int(asleep.sum())
        total += asleep.numel()
    return (100.0 * dormant / total if total else 0.0), dormant


@torch.no_grad()
def diagnose(agent: Agent[Any], state: State, observation: Tensor, action: Tensor) -> dict[str, Any]:
    """A row of latents.csv, but for its env_step, from M observations (M, O) and actions (M, A) of one seed."""
    row: dict[str, Any] = {}
    latent = agent.latent(state, observation)
    if latent is not None:
        row |= {"samples": latent.shape[0], "width": latent.shape[1]}
        # In float64, so that small singular values are the latent's and not the arithmetic's; for that, to the CPU.
        values = torch.linalg.svdvals(latent.double().cpu())
        row |= {f"rank_{t:g}": matrix_rank(values, t) for t in TOLERANCES}
        row["condition_number"] = condition_number(values)
        codes = agent.codes(state, latent)
        if codes is not None:
            names = ("active_codebook_mean", "active_codebook_min", "active_codebook_max")
            row |= dict(zip(names, active_codebook(*codes), strict=True))
    layers = agent.hidden(state, observation, action)
    if layers:
        row |= {"samples": observation.shape[0]}
        row["dormant_percent"], row["dormant_count"] = dormant_units(layers)
    return row
