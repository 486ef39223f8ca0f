"""N-step returns that never cross an episode's end."""

from __future__ import annotations

import torch
from torch import Tensor

from iqrl.agent import Batch


def n_step(batch: Batch, n: int, discount: float) -> tuple[Tensor, Tensor, Tensor]:
    """Discounted reward of the first K = min(n, steps to the end, inclusive) transitions (iqrl.md section 4).

    Returns:
        R (B,); the factor of the bootstrap value, gamma^K or 0 after a termination (B,); and the
        observation to bootstrap from, that after transition K - 1 (B, O), or an image.
    """
    powers = discount ** torch.arange(n, device=batch.reward.device, dtype=batch.reward.dtype)
    alive = batch.alive[:n]  # (n, B)
    total = (powers[:, None] * alive * batch.reward[:n]).sum(0)
    steps = alive.sum(0)  # K, as float
    terminated = (alive * batch.terminated[:n]).sum(0)
    factor = discount**steps * (1.0 - terminated)
    return total, factor, _pick(batch.observation[: n + 1], steps.long())


def n_step_iqrl_released(batch: Batch, n: int, discount: float) -> tuple[Tensor, Tensor, Tensor]:
    """The released iQRL and DC-MPC code's variant (iqrl.md Q2, Q3), returning what `n_step` does.

    For n = 1 the bootstrap is not discounted. For n > 1 the reward and the discount of an ending transition are
    dropped, though the bootstrap moves past it; a termination bootstraps all the same.
    """
    if n == 1:
        return batch.reward[0], 1.0 - batch.terminated[0], batch.observation[1]
    going = torch.cumprod(1.0 - batch.ended[:n], 0)  # 0 from the ending transition on
    powers = discount ** torch.arange(n, device=going.device, dtype=going.dtype)
    total = (powers[:, None] * going * batch.reward[:n]).sum(0)
    return total, discount ** going.sum(0), _pick(batch.observation[: n + 1], batch.alive[:n].sum(0).long())


def _pick(observation: Tensor, index: Tensor) -> Tensor:
    """observation (n + 1, B, ...) at index (B,) along the first axis."""
    index = index.view(1, -1, *[1] * (observation.dim() - 2))
    return observation.gather(0, index.expand(1, -1, *observation.shape[2:]))[0]
