"""Losses that keep a latent from collapsing (spec page remedies.md).

On the latents z (B, Z) of one batch, or on the dynamics' weights. An agent adds `remedy_loss` to its representation's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from iqrl.agent import Metrics
from iqrl.networks import BoundNetwork

# What an agent's Config says of its three settings, `remedy: str = setting("none", **REMEDY)` and so on. At their
# defaults they leave the identity of a run as it is.
REMEDY: dict[str, Any] = {
    "doc": "against collapse of the latent (remedies.md)",
    "choices": ("none", "r2r2", "vicreg", "orthogonal", "decay"),
    "omit_default_from_identity": True,
}
VARIANCE: dict[str, Any] = {
    "doc": "weight of its variance term (r2r2, vicreg)", "low": 0.0, "omit_default_from_identity": True,
}  # fmt: skip
COVARIANCE: dict[str, Any] = {
    "doc": "weight of its covariance or orthogonality term, or decay", "low": 0.0, "omit_default_from_identity": True,
}  # fmt: skip


def variance_hinge(z: Tensor) -> Tensor:
    """Mean over entries of max(0, 1 - std), std over the batch with B - 1."""
    return torch.relu(1.0 - torch.sqrt(z.var(0) + 1e-8)).mean()


def mean_square_off_diagonal(z: Tensor, centred: bool) -> Tensor:
    """Mean square of the entries off the diagonal of z^T z / (B - 1), with the batch's mean taken off first or not."""
    x = z - z.mean(0) if centred else z
    moments = x.t() @ x / (len(x) - 1)
    width = moments.shape[0]
    return (moments.square().sum() - moments.diagonal().square().sum()) / (width * (width - 1))


def decay(networks: Sequence[BoundNetwork]) -> Tensor:
    """Half the sum of squares of their matrices: times a weight c, L2 weight decay c."""
    matrices = [v.float() for net in networks for k, v in net.parameters.items() if k.endswith("weight")]
    return torch.stack([matrix.square().sum() for matrix in matrices]).sum() / 2.0


def orthogonality(z: Tensor) -> Tensor:
    """Mean square of z^T z / B - I, of latents scaled to a mean square of 1."""
    x = z / torch.sqrt(z.square().mean() + 1e-8)
    moments = x.t() @ x / len(x)
    return (moments - torch.eye(len(moments), device=z.device, dtype=z.dtype)).square().mean()


def remedy_loss(config: Any, z: Tensor, *dynamics: BoundNetwork) -> Metrics:
    """The weighted loss by a Config's three settings; empty without a remedy.

    Args:
        z: online latents (B, Z), both at least 2.
        dynamics: the networks that predict the next latents.
    """
    z = z.float()
    if config.remedy == "none":
        return {}
    if config.remedy == "decay":
        return {"remedy_loss": config.remedy_covariance * decay(dynamics)}
    if config.remedy == "orthogonal":
        return {"remedy_loss": config.remedy_covariance * orthogonality(z)}
    moments = mean_square_off_diagonal(z, centred=config.remedy == "vicreg")
    return {"remedy_loss": config.remedy_variance * variance_hinge(z) + config.remedy_covariance * moments}
