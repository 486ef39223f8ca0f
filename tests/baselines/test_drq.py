"""DR.Q against spec page drq.md: sizes, plain restatements of what it adds to MR.Q, and each switch back to MR.Q."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from packs import initial_state, make_agent, make_engine, random_batch, random_noise, update

from baselines import drq, mrq
from iqrl.environments.tasks import TaskSpec

BACK = (  # every difference to MR.Q, taken back
    "encoder_hidden_dim=0", "done_weight=0.1", "infonce_weight=0", "enc_lr=1e-4", "enc_weight_decay=1e-4",
    "scale_rewards=true", "value_weight_decay=1e-4", "value_clip=20", "policy_weight_decay=1e-4",
    "pre_activation_weight=1e-5", "fade=1",
)  # fmt: skip


def test_parameter_counts() -> None:
    agent = make_agent("drq", preset="default", spec=TaskSpec("", 24, 6, 2, 500, False, "easy"))
    assert (agent.encoder.count, agent.value.count, agent.policy.count) == (2_789_330, 1_576_962, 528_390)


def test_what_differs_from_mrq_is_what_the_tests_take_back() -> None:
    ours, theirs = (dataclasses.asdict(module.Config()) for module in (drq, mrq))
    assert {k for k in ours if ours[k] != theirs[k]} == {word.partition("=")[0] for word in BACK}


def plain_infonce(predicted: np.ndarray, goal: np.ndarray, temperature: float) -> np.ndarray:
    """(B, D), (B, D) -> (B,)."""
    losses = []
    for b in range(len(predicted)):
        cosines = [
            sum(x * y for x, y in zip(predicted[b], g, strict=True)) / np.linalg.norm(predicted[b]) / np.linalg.norm(g)
            for g in goal
        ]
        likelihoods = np.exp(np.array(cosines) / temperature)
        losses.append(-np.log(likelihoods[b] / likelihoods.sum()))
    return np.array(losses)


def test_infonce() -> None:
    predicted, goal = torch.randn(3, 16, 5, generator=torch.Generator().manual_seed(0)), torch.randn(3, 16, 5)
    expected = [
        plain_infonce(p.double().numpy(), g.double().numpy(), 0.2) for p, g in zip(predicted, goal, strict=True)
    ]
    np.testing.assert_allclose(mrq.infonce(predicted, goal, 0.2), expected, rtol=1e-4)
    zero = mrq.infonce(torch.zeros(1, 4, 5), goal[:1, :4], 0.1)  # no direction: every goal is as likely
    np.testing.assert_allclose(zero, np.log(4), rtol=1e-6)


@pytest.mark.parametrize("released", [False, True])
def test_infonce_in_the_encoder_loss(released: bool) -> None:
    """The term alone, put together from MR.Q's own unroll; some episodes end within the slices."""
    word = f"agent.released_infonce_mask={str(released).lower()}"
    agent = make_agent("drq", word, "agent.dyn_weight=0", "agent.reward_weight=0")
    state, batch, steps = initial_state(agent), random_batch(agent), agent.config.enc_horizon
    state["target_encoder"] = state["target_encoder"] + 0.1 * torch.randn_like(state["target_encoder"])
    mask = batch.alive[:steps].numpy()
    assert 0 < mask.mean() < 1
    loss, parts = agent.encoder_loss(state["encoder"], state["target_encoder"], torch.tensor(1.0), batch)
    online, bar = agent.encoder(state["encoder"]), agent.target(state["target_encoder"])
    z, expected = agent.embed_state(online, batch.observation[0]), 0.0
    for i in range(steps):
        m = online.m(agent.embed_action(online, z, batch.action[i]))
        z = m[:, 1 : 1 + agent.config.zs_dim]
        goal = agent.embed_state(bar, batch.observation[i + 1])
        losses = plain_infonce(z.detach().double().numpy(), goal.double().numpy(), 0.1)
        expected += losses.mean() * mask[i].mean() if released else (losses * mask[i]).mean()
    assert float(parts["infonce_loss"]) == pytest.approx(expected, rel=1e-4)
    assert float(loss) == pytest.approx(0.1 * expected, rel=1e-4)


def test_targets_without_scale() -> None:
    scaled, plain = make_agent("drq", "agent.scale_rewards=true"), make_agent("drq")
    state, batch, noise = initial_state(plain), random_batch(plain), random_noise(plain, "update_rl")
    y = plain.target_value(state | {"reward_scale": torch.tensor(0.3)}, batch, noise)
    ones = {"reward_scale": torch.tensor(1.0), "target_reward_scale": torch.tensor(1.0)}
    torch.testing.assert_close(y, scaled.target_value(state | ones, batch, noise))


def test_with_every_switch_back_it_is_mrq() -> None:
    ours, theirs = make_agent("drq", *(f"agent.{word}" for word in BACK)), make_agent("mrq")
    assert dataclasses.asdict(ours.config) == dataclasses.asdict(theirs.config)
    (one, own), (two, other) = (make_engine(agent, [0], ends="termination") for agent in (ours, theirs))
    update(one, own, 12)
    update(two, other, 12)
    for k, v in two.state.items():
        assert torch.equal(one.state[k], v), k


@pytest.mark.parametrize("word", ["value_clip=0.001" if word.startswith("value_clip") else word for word in BACK])
def test_each_difference_changes_the_update(word: str) -> None:
    """No setting is without effect. (A bound of 20 on the gradient is not reached here.)"""
    (engine, progress), (other, own) = (
        make_engine(make_agent("drq", *words), [0], ends="termination") for words in ((), (f"agent.{word}",))
    )
    update(engine, progress, 12)
    update(other, own, 12)
    assert any(
        engine.state[k].shape != other.state[k].shape or not torch.equal(engine.state[k], other.state[k])
        for k in ("encoder", "policy", "value")
    )
