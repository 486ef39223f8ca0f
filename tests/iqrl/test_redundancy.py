"""Remedies against collapse, restated entry by entry in NumPy."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from made_up import filled_replay, first_state, make, random_batch

from baselines.drq import DRQ
from baselines.mrq import MRQ
from baselines.tcrl import TCRL
from baselines.td7 import TD7
from iqrl.agent import Progress
from iqrl.iqrl import IQRL
from iqrl.redundancy import remedy_loss
from iqrl.training.engine import Engine


def loss(kind: str, z: torch.Tensor, variance: float = 1.0, covariance: float = 1.0) -> torch.Tensor:
    return remedy_loss(SimpleNamespace(remedy=kind, remedy_variance=variance, remedy_covariance=covariance), z)[
        "remedy_loss"
    ]


def restated(kind: str, z: np.ndarray) -> tuple[float, float]:
    """(variance term, covariance term), in loops."""
    count, width = z.shape
    hinge = np.mean([max(0.0, 1.0 - float(np.std(z[:, j], ddof=1))) for j in range(width)])
    if kind == "orthogonal":
        scaled = z / np.sqrt(np.mean(z**2))
        goal = np.eye(width)
        cells = [(scaled[:, i] @ scaled[:, j] / count - goal[i, j]) ** 2 for i in range(width) for j in range(width)]
        return 0.0, float(np.mean(cells))
    mean = z.mean(0) if kind == "vicreg" else np.zeros(width)
    cells = [
        (sum((z[b, i] - mean[i]) * (z[b, j] - mean[j]) for b in range(count)) / (count - 1)) ** 2
        for i in range(width)
        for j in range(width)
        if i != j
    ]
    return float(hinge), float(np.mean(cells))


@pytest.mark.parametrize("kind", ["r2r2", "vicreg", "orthogonal"])
def test_against_loops(kind: str) -> None:
    z = np.random.default_rng(0).normal(0.4, 0.7, (9, 5))
    variance, covariance = restated(kind, z)
    found = loss(kind, torch.from_numpy(z), 0.3, 0.7)
    assert float(found) == pytest.approx(0.3 * variance + 0.7 * covariance, rel=1e-5)


@pytest.mark.parametrize(
    ("cls", "networks"),
    [(IQRL, ["dynamics"]), (TCRL, ["dynamics"]), (TD7, ["g"]), (MRQ, ["g", "m"]), (DRQ, ["g", "m"])],
)
def test_decay_draws_the_matrices_of_the_dynamics_and_nothing_else_to_zero(cls: Any, networks: list[str]) -> None:
    with_it, without = (make(cls, remedy=kind, remedy_covariance=0.3) for kind in ("decay", "none"))
    entry = "world" if hasattr(with_it, "world") else "encoder"
    state, batch = first_state(with_it), random_batch(with_it.slices.horizon, with_it.slices.batch_size)
    target = {"world": "target", "encoder": "target_encoder"}[entry]

    def gradient(agent: Any) -> torch.Tensor:
        if cls is TD7:
            loss = partial(agent.encoder_loss, source=state["fixed_encoder"], batch=batch)
        elif entry == "world":
            loss = lambda flat: agent.representation_loss(flat, state[target], batch)[0]  # noqa: E731
        else:
            loss = lambda flat: agent.encoder_loss(flat, state[target], torch.tensor(1.0), batch)[0]  # noqa: E731
        return torch.func.grad(loss)(state[entry])

    group = with_it.groups()[entry]
    more = group.unpack(gradient(with_it) - gradient(without))
    for name, values in group.unpack(state[entry]).items():
        for k, v in values.items():
            expected = 0.3 * v if name in networks and k.endswith("weight") else torch.zeros_like(v)
            torch.testing.assert_close(more[name][k], expected, atol=2e-6, rtol=1e-4)


def test_what_each_is_indifferent_to() -> None:
    z = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    shifted = z + 3.0
    vicreg, r2r2, orthogonal = (partial(loss, kind) for kind in ("vicreg", "r2r2", "orthogonal"))
    assert vicreg(shifted) == pytest.approx(float(vicreg(z)), rel=1e-4)  # a constant costs nothing once it is taken off
    assert r2r2(shifted) > 10 * r2r2(z)
    assert orthogonal(7 * z) == pytest.approx(float(orthogonal(z)), rel=1e-5)


@pytest.mark.parametrize("kind", ["r2r2", "vicreg", "orthogonal"])
def test_a_collapsed_latent_costs_more_and_is_driven_apart(kind: str) -> None:
    g = torch.Generator().manual_seed(2)
    spread = torch.randn(128, 6, generator=g)
    line = spread[:, :1].expand(-1, 6) + 0.01 * torch.randn(128, 6, generator=g)
    assert loss(kind, line) > 2 * loss(kind, spread)
    z = line.clone().requires_grad_()
    for _ in range(200):
        (gradient,) = torch.autograd.grad(loss(kind, z), z)
        z = (z - 5.0 * gradient).detach().requires_grad_()
    share = [torch.linalg.svdvals(x.detach()) for x in (line, z)]
    assert share[1][1] / share[1][0] > 3 * share[0][1] / share[0][0]


def test_a_constant_latent_has_a_finite_gradient() -> None:
    z = torch.ones(8, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss("r2r2", z), z)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("cls", [IQRL, TCRL, TD7, MRQ, DRQ])
def test_every_self_predictive_agent_learns_otherwise_with_each_and_packed_as_alone(cls: type) -> None:
    def encoders(seeds: list[int], packed: bool = False, **settings: object) -> torch.Tensor:
        agent = make(cls, **settings)
        engine = Engine(agent, seeds, filled_replay(agent.slices, seeds), packed=packed)
        progress = [Progress(decisions=200, episodes=20) for _ in seeds]
        for _ in range(2):
            engine.update(range(len(seeds)), progress)
        name = "world" if "world" in engine.state else "encoder"
        return engine.state[name]

    without = encoders([3])
    found = {k: encoders([3], remedy=k, remedy_covariance=0.1) for k in ("r2r2", "vicreg", "orthogonal", "decay")}
    assert all(not torch.equal(without, other) for other in found.values())
    assert not torch.equal(found["r2r2"], found["vicreg"])
    pack = encoders([5, 3], packed=True, remedy="r2r2", remedy_covariance=0.1)
    assert torch.allclose(pack[1], found["r2r2"][0], atol=1e-5)
