"""TD3: whole updates of both profiles against a plain restatement, and what each loss updates."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from baselines.td3 import TD3
from iqrl.agent import Batch

sys.path.insert(0, str(Path(__file__).parent.parent / "iqrl"))

from made_up import first_state, make, random_batch  # noqa: E402
from plain_networks import agree, average, bellman, differences, nets  # noqa: E402


class PlainTD3:
    """td3.md, "One update", step by step."""

    def __init__(self, agent: TD3, state: Mapping[str, Tensor]) -> None:
        self.c: Any = agent.config
        (self.actor,) = nets(agent.actor, state["actor"], "actor")
        self.q1, self.q2 = nets(agent.critic, state["critic"], "critic")
        self.critics = nn.ModuleList([self.q1, self.q2])
        self.actor_bar, self.critics_bar = copy.deepcopy(self.actor), copy.deepcopy(self.critics)
        self.actor_optimiser = torch.optim.Adam(self.actor.parameters(), lr=self.c.lr)
        self.critic_optimiser = torch.optim.Adam(self.critics.parameters(), lr=self.c.lr)

    def target(self, batch: Batch, noise: Tensor) -> Tensor:
        c = self.c

        def value(k: int) -> Tensor:
            s = batch.observation[k + 1]
            smoothing = (c.policy_noise * noise).clamp(-c.noise_clip, c.noise_clip)
            action = (torch.tanh(self.actor_bar(s)) + smoothing).clamp(-1, 1)
            return torch.minimum(self.critics_bar[0](s, action), self.critics_bar[1](s, action))[:, 0]

        with torch.no_grad():
            return bellman(batch, c.nstep, c.discount, value)

    def update(self, batch: Batch, noise: Tensor, number: int, official: bool) -> dict[str, float]:
        s, a, y = batch.observation[0], batch.action[0], self.target(batch, noise)
        loss = ((self.q1(s, a)[:, 0] - y) ** 2).mean() + ((self.q2(s, a)[:, 0] - y) ** 2).mean()
        told = {"critic_loss": float(loss.detach()), "target_mean": float(y.mean())}
        self.critic_optimiser.zero_grad()
        loss.backward()
        self.critic_optimiser.step()
        delayed = number % 2 == 0
        if delayed:
            action = torch.tanh(self.actor(s))
            q = self.q1(s, action) if official else torch.minimum(self.q1(s, action), self.q2(s, action))
            told["actor_loss"] = float(-q.detach().mean())
            self.actor_optimiser.zero_grad()
            (-q.mean()).backward()
            self.actor_optimiser.step()
            average(self.actor_bar, self.actor, self.c.tau)
        if delayed or not official:
            average(self.critics_bar, self.critics, self.c.tau)
        return told


@pytest.mark.parametrize("nstep", [1, 3])
@pytest.mark.parametrize("profile", ["protocol", "official"])
def test_updates_are_those_of_the_specification(profile: str, nstep: int) -> None:
    agent = make(TD3, profile=profile, nstep=nstep, batch_size=32, lr=1e-2, tau=0.1)
    state = first_state(agent)
    plain = PlainTD3(agent, state)
    for number in range(1, 7):
        batch = random_batch(nstep, 32, seed=number)
        noise = torch.randn(32, 2, generator=torch.Generator().manual_seed(number))
        (stage,) = agent.stages(number)
        changed, metrics = agent.run_stage(stage, state, batch, {"smoothing": noise}, {})
        state = {**state, **changed}
        told = plain.update(batch, noise, number, profile == "official")
        for name, value in told.items():
            assert float(metrics[name]) == pytest.approx(value, rel=1e-5 if number == 1 else 1e-3, abs=1e-5), name
        assert ("actor_loss" in metrics) == ("actor_loss" in told)
        found = {}
        for key, net in (("actor", plain.actor), ("target_actor", plain.actor_bar)):
            found[key] = differences(agent.actor, state[key], "actor", [net])
        for key, critics in (("critic", plain.critics), ("target_critic", plain.critics_bar)):
            found[key] = differences(agent.critic, state[key], "critic", list(critics))
        tolerance = 1e-5 if number <= 2 else 1e-4
        assert [key for key, difference in found.items() if not agree(difference, tolerance, 1e-2)] == []


def test_the_profiles_are_those_of_their_table() -> None:
    protocol, official = (make(TD3, profile=p).config for p in ("protocol", "official"))
    assert (protocol.noise_clip, official.noise_clip) == (0.3, 0.5)
    assert (protocol.activation, protocol.norm, protocol.init) == ("mish", "affine", "orthogonal")
    assert (official.activation, official.norm, official.init) == ("relu", "none", "torch")
    defaults, theirs = TD3.Config(), {**TD3.profiles["official"]}
    assert (defaults.mlp_dims, theirs["mlp_dims"]) == ([512, 512], [256, 256])
    for c in (protocol, official):
        assert (c.discount, c.tau, c.lr, c.policy_noise, c.nstep, c.actor_every) == (0.99, 0.005, 3e-4, 0.2, 1, 2)
    assert defaults.batch_size == 256
    assert (official.noise_initial, official.noise_final, official.warmup_decisions) == (0.1, 0.1, 25_000)


def entries(changed: Mapping[str, Tensor]) -> set[str]:
    return {k.split("/")[0] for k in changed}


def test_what_waits_for_the_actor() -> None:
    batch, noise = random_batch(1, 16), {"smoothing": torch.randn(16, 2)}
    for profile, early in (("protocol", {"critic", "target_critic"}), ("official", {"critic"})):
        agent = make(TD3, profile=profile)
        state = first_state(agent)
        assert entries(agent.update_critic(state, batch, noise, {})[0]) == early
        everything = agent.run_stage("update_all", state, batch, noise, {})[0]
        assert entries(everything) == {"critic", "target_critic", "actor", "target_actor"}
        assert torch.equal(state["critic"], first_state(agent)["critic"])  # nothing given is changed


def test_the_actor_loss_reads_the_first_or_the_smaller_critic() -> None:
    for profile in ("protocol", "official"):
        agent = make(TD3, profile=profile)
        observation, state = 3 * torch.randn(64, 5), first_state(agent, 2)
        q = agent.values(state["critic"], observation, agent.policy(state["actor"], observation))
        assert not torch.equal(q[0], q.amin(0))
        expected = -(q[0] if profile == "official" else q.amin(0)).mean()
        torch.testing.assert_close(agent.actor_loss(state["actor"], state["critic"], observation), expected)


def test_terminations_do_not_bootstrap_and_time_limits_do() -> None:
    agent = make(TD3)
    state = first_state(agent)
    one = torch.ones(1, 16)
    observation, action, reward = torch.randn(2, 16, 5), torch.zeros(1, 16, 2), torch.randn(1, 16)
    noise = {"smoothing": torch.zeros(16, 2)}
    ended = agent.target_value(state, Batch(observation, action, reward, one, 0 * one), noise)
    assert torch.equal(ended, reward[0])
    cut = agent.target_value(state, Batch(observation, action, reward, 0 * one, one), noise)
    going = agent.target_value(state, Batch(observation, action, reward, 0 * one, 0 * one), noise)
    assert torch.equal(cut, going) and not torch.equal(cut, reward[0])
