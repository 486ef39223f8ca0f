"""What the sign of the consistency loss asks for (docs/spec/iqrl.md section 10), by numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from iqrl.iqrl import consistency
from iqrl.quantisers import FSQ

torch.manual_seed(0)
LATENTS = torch.randn(6, 8, dtype=torch.float64)  # z_0 ... z_5 before f, along an episode


def rounded(x: Tensor) -> Tensor:
    """FSQ with odd levels: odd."""
    return FSQ((5, 3))(x).double()


BOUNDS = pytest.mark.parametrize("f", [torch.tanh, rounded], ids=["tanh", "fsq"])


def keep(before: Tensor, after: Tensor) -> Tensor:
    """d*: what has to be added to z for f to give the target exactly."""
    return after - before


@BOUNDS
def test_one_step_the_antipode_costs_what_the_target_costs(f: Callable[[Tensor], Tensor]) -> None:
    torch.testing.assert_close(f(-LATENTS), -f(LATENTS))
    z, goal = f(LATENTS[:-1]), f(LATENTS[1:])
    d = keep(z, LATENTS[1:])
    assert consistency(f(z + d), goal, "cosine", -1) == pytest.approx(-1)
    assert consistency(f(z + (-2 * z - d)), goal, "cosine", 1) == pytest.approx(-1)


@BOUNDS
def test_unrolled_dynamics_keep_the_side_of_antipodes(f: Callable[[Tensor], Tensor]) -> None:
    d = [keep(f(LATENTS[i]), LATENTS[i + 1]) for i in range(5)]
    z = f(LATENTS[0])
    z = f(z + (-2 * z - d[0]))  # changes the side
    for i in range(1, 5):
        z = f(z + (-d[i]))  # and keeps it: d(-zbar, a) = -d*(zbar, a)
        assert consistency(z, f(LATENTS[i + 1]), "cosine", 1).item() == pytest.approx(-1)


def test_a_constant_encoder_is_optimal_for_both() -> None:
    c = torch.tanh(LATENTS[0])
    stay = torch.atanh(c) - c  # f(c + stay) = c: for tanh, which has no fixed point but 0
    assert consistency(torch.tanh(c + stay), c, "cosine", -1).item() == pytest.approx(-1)
    z = c
    for d in (-2 * c - stay, *[-stay] * 4):
        z = torch.tanh(z + d)
        assert consistency(z, c, "cosine", 1).item() == pytest.approx(-1)


@pytest.mark.parametrize("sign", [-1, 1])
def test_while_dynamics_are_small_minus_brings_successive_latents_together(sign: int) -> None:
    x = LATENTS[:-1].clone().requires_grad_()
    goal = torch.tanh(LATENTS[1:])
    consistency(torch.tanh(x), goal, "cosine", sign).sum().backward()
    assert x.grad is not None
    before, after = (consistency(torch.tanh(v), goal, "cosine", 1) for v in (x.detach(), x.detach() - 0.01 * x.grad))
    assert bool((sign * (after - before) < 0).all())
