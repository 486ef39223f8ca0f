"""Model predictive path integral control: a sequence of actions by weighted sampling (dcwm.md section 5).

Knows nothing of models: what a sequence is worth is a function that it is given. All of it is for one environment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from iqrl.agent import Noise, Tensors


@dataclass(frozen=True)
class MPPI:
    """The planner's settings.

    Attributes:
        horizon: T, actions in a sequence.
        action_dim: A.
        iterations: J.
        sampled: sequences drawn in each iteration, beside those proposed.
        elites: best sequences that an iteration learns from; 0 for all of them.
        min_std, max_std: limits of the standard deviation; the first iteration has the larger.
        temperature: tau_M, inverse.
        act_with_mean: the first action of the mean, not of an elite drawn by weight.
    """

    horizon: int
    action_dim: int
    iterations: int
    sampled: int
    elites: int
    min_std: float
    max_std: float
    temperature: float
    act_with_mean: bool

    def noise(self) -> dict[str, Noise]:
        """What `plan` wants."""
        samples = Noise((self.iterations, self.sampled, self.horizon, self.action_dim))
        return {"samples": samples} | ({} if self.act_with_mean else {"elite": Noise((), "uniform")})

    def first_mean(self) -> Tensor:
        """(T, A) for the first decision of an episode."""
        return torch.zeros(self.horizon, self.action_dim)

    def plan(
        self, value: Callable[[int, Tensor], Tensor], proposed: Tensor, mean: Tensor, noise: Tensors
    ) -> tuple[Tensor, Tensor]:
        """First action (A,) of a plan, and its mean (T, A), shifted for the next decision.

        Args:
            value: number of the iteration and sequences (n, T, A) to what they are worth, Phi (n,); NaN counts as 0.
            proposed: (P, T, A), sequences kept through all iterations.
            mean: (T, A), where the last plan left it.
        """
        std = torch.full_like(mean, self.max_std)
        for j in range(self.iterations):
            sequences = torch.cat([proposed, torch.clamp(mean + std * noise["samples"][j], -1.0, 1.0)])
            elites, weight, mean, std = self.refit(sequences, torch.nan_to_num(value(j, sequences), nan=0.0))
        following = torch.cat([mean[1:], torch.zeros_like(mean[:1])])
        if self.act_with_mean:
            return mean[0], following
        upto = torch.cumsum(weight, 0)  # an elite, by inverting the cumulative sum
        place = torch.clamp((upto <= noise["elite"] * upto[-1]).sum(), max=len(upto) - 1)
        return elites[:, 0].index_select(0, place[None])[0], following

    def refit(self, sequences: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Elites (E, T, A), their weights (E,), and mean and standard deviation (T, A) of the next iteration."""
        elites = sequences
        if self.elites:
            value, best = torch.topk(value, self.elites)
            elites = sequences.index_select(0, best)
        weight = torch.exp(self.temperature * (value - value.max()))
        weight = weight / weight.sum()
        share = (weight / (weight.sum() + 1e-9))[:, None, None]
        mean = (share * elites).sum(0)
        std = torch.sqrt((share * (elites - mean).square()).sum(0))
        return elites, weight, mean, torch.clamp(std, self.min_std, self.max_std)
