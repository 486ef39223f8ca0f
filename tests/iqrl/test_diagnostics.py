"""Rank, conditioning, codebook use and dormant units against golden numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from made_up import first_state, make, random_batch
from torch import nn

from baselines.dcwm.agent import DCWM
from baselines.drq import DRQ
from baselines.mrq import MRQ
from baselines.tcrl import TCRL
from baselines.td3 import TD3
from baselines.td7 import TD7
from iqrl.agent import Agent, Batch
from iqrl.diagnostics import (
    active_codebook,
    condition_number,
    diagnose,
    dormant_units,
    effective_rank,
    linear_r2,
    matrix_rank,
)
from iqrl.iqrl import IQRL


def singular_values(matrix: torch.Tensor) -> torch.Tensor:
    return torch.linalg.svdvals(matrix.double())


def test_rank_and_condition_number() -> None:
    values = singular_values(torch.diag(torch.tensor([10.0, 1.0, 0.05, 0.005], dtype=torch.float64)))
    # max(t, 10 t) is 1, 0.1, 0.01; strictly greater, so that 1 is not above 1.
    assert [matrix_rank(values, t) for t in (0.1, 0.01, 0.001)] == [1, 2, 3]
    assert condition_number(values) == pytest.approx(2000)
    assert condition_number(singular_values(torch.diag(torch.tensor([1.0, 0.0])))) == math.inf


def test_effective_rank() -> None:
    assert effective_rank(torch.ones(7, dtype=torch.float64)) == pytest.approx(7)
    assert effective_rank(torch.tensor([3.0, 0.0, 0.0])) == pytest.approx(1)
    share = np.array([0.5, 0.3, 0.2])
    assert effective_rank(torch.tensor(40 * share)) == pytest.approx(math.exp(-(share * np.log(share)).sum()))


def test_the_tolerance_is_absolute_where_the_matrix_is_small() -> None:
    values = torch.tensor([0.5, 0.05, 0.005], dtype=torch.float64)
    assert [matrix_rank(values, t) for t in (0.1, 0.01, 0.001)] == [1, 2, 3]
    assert [matrix_rank(values * 0.1, t) for t in (0.1, 0.01, 0.001)] == [0, 1, 2]


def test_active_codebook_is_counted_per_latent_dimension() -> None:
    indices = torch.tensor([[0, 3], [0, 1], [2, 1], [0, 0]])
    assert active_codebook(indices, 4) == (62.5, 50.0, 75.0)
    assert active_codebook(torch.zeros(9, 3, dtype=torch.int64), 8) == (12.5, 12.5, 12.5)
    random = torch.randint(0, 10, (7, 5), generator=torch.Generator().manual_seed(0))
    shares = [100 * len(set(random[:, i].tolist())) / 10 for i in range(5)]
    assert active_codebook(random, 10) == (pytest.approx(np.mean(shares)), min(shares), max(shares))


def test_dormant_units() -> None:
    layer = torch.tensor([[1.0, -1.0, 0.02, 0.0], [3.0, -2.0, 0.0, 0.2]])
    activity = torch.relu(layer).mean(0)
    assert (activity / activity.mean()).tolist() == pytest.approx([3.791469, 0, 0.018957, 0.189573], abs=1e-5)
    assert dormant_units([layer]) == (50.0, 2)
    assert dormant_units([layer, torch.ones(2, 6)]) == (20.0, 2)  # pooled over layers
    assert dormant_units([]) == (0.0, 0)


def test_members_of_an_ensemble_are_layers_of_their_own() -> None:
    loud, quiet = torch.full((3, 4), 100.0), torch.full((3, 4), 0.001)
    assert dormant_units([torch.stack([loud, quiet])]) == (0.0, 0)
    assert dormant_units([torch.cat([loud, quiet], -1)]) == (50.0, 4)


def test_dormant_units_are_sought_in_every_hidden_layer_and_no_output_layer() -> None:
    agent = make(IQRL, mlp_dims=[12, 10], enc_mlp_dims=[9], num_critics=3)
    layers = agent.hidden(first_state(agent), torch.randn(16, 5), torch.rand(16, 2))
    widths = [(layer.shape[0] if layer.dim() == 3 else 1) * layer.shape[-1] for layer in layers]
    assert widths == [9, 12, 10, 36, 30, 12, 10]  # encoder, dynamics, critics, actor
    td3 = make(TD3, mlp_dims=[12, 10])
    layers = td3.hidden(first_state(td3), torch.randn(16, 5), torch.rand(16, 2))
    assert sum((layer.shape[0] if layer.dim() == 3 else 1) * layer.shape[-1] for layer in layers) == 3 * 22


def test_a_row_of_latents_csv() -> None:
    agent = make(IQRL)
    state = first_state(agent)
    batch = random_batch(1, 64, seed=1)
    observation = batch.observation[0, :16]
    row = diagnose(agent, state, batch)
    # The same in NumPy, from the encoder of plain layers.
    p = agent.world.unpack(state["world"])["encoder"]
    first, norm, last = nn.Linear(5, 16), nn.LayerNorm(16), nn.Linear(16, 16)
    first.weight.data, first.bias.data = p["0.weight"].t(), p["0.bias"]
    last.weight.data, last.bias.data = p["1.weight"].t(), p["1.bias"]
    z = last(nn.Mish()(norm(first(observation)))).detach().double().numpy()
    half, shift = 7 * 1.001 / 2, math.atanh(0.5 / (7 * 1.001 / 2))
    symbols = np.round(np.tanh(z + shift) * half - 0.5)
    values = np.linalg.svd(symbols / 4, compute_uv=False)
    assert (row["samples"], row["width"]) == (16, 16)
    for t in (0.1, 0.01, 0.001):
        assert row[f"rank_{t:g}"] == int((values > max(t, t * values[0])).sum())
    assert row["condition_number"] == pytest.approx(values[0] / values[-1], rel=1e-6)
    indices = (symbols[:, 0::2] + 4) + 8 * (symbols[:, 1::2] + 4)
    used = [100 * len(np.unique(indices[:, i])) / 64 for i in range(8)]
    assert row["active_codebook_mean"] == pytest.approx(np.mean(used))
    assert (row["active_codebook_min"], row["active_codebook_max"]) == (min(used), max(used))
    assert 0 <= row["dormant_percent"] <= 100


def test_what_is_not_defined_for_an_agent_is_left_out() -> None:
    td3, continuous = make(TD3), make(IQRL, quantizer="none")
    row = diagnose(td3, first_state(td3), random_batch(1, 8))
    assert row.keys() == {"samples", "dormant_percent", "dormant_count"} and row["samples"] == 8
    row = diagnose(continuous, first_state(continuous), random_batch(1, 64))
    assert "rank_0.01" in row and "active_codebook_mean" not in row


def test_how_latents_lie_to_their_targets() -> None:
    """Against single vectors, one after another; target and online encoder differ as after training."""
    agent = make(IQRL)
    state = dict(first_state(agent))
    state["target"] = state["target"] + 0.3 * torch.randn(
        state["target"].shape, generator=torch.Generator().manual_seed(2)
    )
    batch = random_batch(1, 64, seed=3)
    row = diagnose(agent, state, batch)
    world, bar = agent.world(state["world"]), agent.target(state["target"])
    target, prediction, moved, transition = [], [], [], []
    for i in range(agent.latent_width()):
        now, following, action = (
            batch.observation[0, i : i + 1],
            batch.observation[1, i : i + 1],
            batch.action[0, i : i + 1],
        )
        z, after = agent.encode(world, now), agent.encode(world, following)
        goal = agent.encode(bar, following)
        guess = agent.step(world, z, action)
        target.append(float((z @ goal.T) / (z.norm() * goal.norm())))
        prediction.append(float((guess @ goal.T) / (guess.norm() * goal.norm())))
        moved.append(float((z - agent.encode(bar, now)).norm()))
        transition.append(float((after - z).norm()))
    assert row["target_cosine"] == pytest.approx(np.mean(target), rel=1e-5)
    assert row["prediction_cosine"] == pytest.approx(np.mean(prediction), rel=1e-5)
    assert row["drift"] == pytest.approx(np.mean(moved) / np.mean(transition), rel=1e-5)


def losses(agent: Agent, state: dict[str, torch.Tensor], batch: Batch) -> float:  # type: ignore[type-arg]
    """The mean squared error of predicted latents, as the agent's own loss has it."""
    if isinstance(agent, TD7):
        return float(agent.encoder_loss(state["fixed_encoder"], state["average_encoder"], batch))
    if isinstance(agent, MRQ):
        seen = state["terminations_seen"]
        return float(agent.encoder_loss(state["encoder"], state["target_encoder"], seen, batch)[1]["dynamics_loss"])
    if isinstance(agent, TCRL):
        return float(agent.representation_loss(state["world"], state["target"], batch)[1]["consistency_loss"])
    return float(agent.model.loss(state["world"], agent.model.codebook(state), batch, None)[1]["consistency_loss"])


@pytest.mark.parametrize(
    ("cls", "settings", "target"),
    [
        (TCRL, {"horizon": 1, "rep_metric": "mse"}, "target"),
        (MRQ, {"enc_horizon": 1}, "target_encoder"),
        (DRQ, {"enc_horizon": 1}, "target_encoder"),
        (TD7, {"enc_target": "ema"}, "average_encoder"),
        (DCWM, {"horizon": 1, "dynamics": "deterministic", "consistency": "mse", "quantizer": "none"}, ""),
    ],
)
def test_predictions_and_targets_are_those_of_the_loss(
    cls: type[Agent],
    settings: dict[str, object],
    target: str,  # type: ignore[type-arg]
) -> None:
    agent = make(cls, **settings)
    state = dict(first_state(agent))
    if target:
        noise = torch.randn(state[target].shape, generator=torch.Generator().manual_seed(2))
        state[target] = state[target] + 0.3 * noise
    batch = random_batch(1, 64, seed=3, ends=0.0)
    latent = agent.latent(state, batch.observation[0])
    predicted = agent.predicted_latent(state, latent, batch.action[0])
    goal = agent.target_latent(state, batch.observation[1])
    assert float((predicted - goal).square().mean()) == pytest.approx(losses(agent, state, batch), rel=1e-5)
    row = diagnose(agent, state, batch)
    assert -1 < row["prediction_cosine"] < 1 and (row["drift"] > 0) == bool(target)


def test_what_can_be_read_linearly_is_tested_on_other_samples() -> None:
    g = torch.Generator().manual_seed(4)
    latent = torch.randn(400, 6, generator=g)
    noise = torch.randn(400, 3, generator=g)
    exact = latent @ torch.randn(6, 3, generator=g) + 5.0
    assert linear_r2(latent, exact) == pytest.approx(1, abs=1e-4)
    assert linear_r2(latent, exact[:, :1] + 2 * exact[:, :1].std() * noise[:, :1]) == pytest.approx(0.2, abs=0.1)
    assert abs(linear_r2(latent, noise) or 1) < 0.1  # the other quarter: fitted ones would give more
    wide = torch.randn(64, 48, generator=g)  # as many entries as samples to fit: all of the noise can be fitted
    assert (linear_r2(wide, noise[:64]) or 1) < 0.0
    assert linear_r2(latent, torch.ones(400, 2)) is None
    constant = torch.cat([exact, torch.ones(400, 1)], 1)
    assert linear_r2(latent, constant) == pytest.approx(1, abs=1e-4)  # entries that never vary do not count
