"""What a representation looks like from inside: rank, what it says of the state, how it moves, codes, dormant units.

Definitions: iqrl.md section 7. Computed off the hot path, at every evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from iqrl.agent import Agent, Batch, State
from iqrl.multi_task import told, without_task

TOLERANCES = (0.1, 0.01, 0.001)
DORMANT_SHARE = 0.025
READ_SAMPLES = 4  # times Z: what a linear reading of the latent is fitted to and, a quarter of it, tested on
RIDGE = 1e-4  # of the mean variance of a latent entry


def matrix_rank(singular_values: Tensor, tolerance: float) -> int:
    """Number of singular values above max(t, t sigma_max): absolute and relative."""
    return int((singular_values > max(tolerance, tolerance * float(singular_values.max()))).sum())


def condition_number(singular_values: Tensor) -> float:
    """sigma_max / sigma_min, inf for a singular matrix."""
    low, high = float(singular_values.min()), float(singular_values.max())
    return high / low if low > 0.0 else float("inf")


def effective_rank(singular_values: Tensor) -> float:
    """exp of the entropy of the singular values' shares (Roy and Vetterli, 2007): 1 to their number."""
    share = singular_values / singular_values.sum()
    return float(torch.exp(-torch.xlogy(share, share).sum()))


def mean_cosine(a: Tensor, b: Tensor) -> float:
    """Mean cosine of paired vectors (M, Z)."""
    return float(torch.nn.functional.cosine_similarity(a.float(), b.float(), dim=-1, eps=1e-6).mean())


def mean_distance(a: Tensor, b: Tensor) -> float:
    """Mean Euclidean distance of paired vectors (M, Z)."""
    return float(torch.linalg.vector_norm(a.float() - b.float(), dim=-1).mean())


def linear_r2(latent: Tensor, target: Tensor) -> float | None:
    """How well a linear map of the latent gives the target, on samples that it was not fitted to.

    Ridge regression with an intercept on the first three quarters; R^2 on the last one, averaged over the target's
    entries. None if no entry varies.

    Args:
        latent: (M, Z), in random order.
        target: (M, K).
    """
    x, y = latent.double().cpu(), target.double().cpu()
    fit = 3 * len(x) // 4
    varies = (y[:fit].std(0) > 1e-6) & (y[fit:].std(0) > 1e-6)
    if not varies.any():
        return None
    x, y = x - x[:fit].mean(0), y[:, varies] - y[:fit, varies].mean(0)
    gram = x[:fit].T @ x[:fit]
    gram.diagonal().add_(RIDGE * gram.diagonal().mean() + 1e-12)
    error = y[fit:] - x[fit:] @ torch.linalg.solve(gram, x[:fit].T @ y[:fit])
    spread = y[fit:] - y[fit:].mean(0)
    return float((1.0 - error.square().sum(0) / spread.square().sum(0)).mean())


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
def diagnose(agent: Agent[Any], state: State, batch: Batch) -> dict[str, Any]:
    """A row of latents.csv, but for its env_step, from transitions of one seed.

    Args:
        batch: READ_SAMPLES Z transitions in random order; 1024 for an agent without a representation. Rank, codes and
            dormant units are those of the first Z observations, so that the matrix of latents is square.
    """
    row: dict[str, Any] = {}
    count = agent.latent_width() or batch.action.shape[1]
    observation, action = batch.observation[0, :count], batch.action[0, :count]
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
    if latent is not None:
        row["effective_rank"] = effective_rank(values)
        row |= _movement(agent, state, batch, latent)
        after = agent.latent(state, batch.observation[1])
        assert after is not None
        targets = {
            "observation_r2": without_task(agent.spec, batch.observation[1]),
            "reward_r2": batch.reward[0][:, None],
        }
        for name, target in targets.items():
            if target.is_floating_point() and (r2 := linear_r2(after, target)) is not None:
                row[name] = r2
    return row


def _movement(agent: Agent[Any], state: State, batch: Batch, latent: Tensor) -> dict[str, float]:
    """How latents, their targets and predictions lie to each other one transition on; of agents that have targets."""
    now, following = batch.observation[0, : len(latent)], batch.observation[1, : len(latent)]
    target, target_after = agent.target_latent(state, now), agent.target_latent(state, following)
    after = agent.latent(state, following)
    if target is None or target_after is None or after is None:
        return {}
    row = {
        "target_cosine": mean_cosine(latent, target_after),
        "drift": mean_distance(latent, target) / max(mean_distance(after, latent), 1e-12),
    }
    predicted = agent.predicted_latent(state, latent, batch.action[0, : len(latent)], *told(agent.spec, now))
    if predicted is not None:
        row["prediction_cosine"] = mean_cosine(predicted, target_after)
    return row
