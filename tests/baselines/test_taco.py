"""TACO: whole updates against a plain restatement, and what each loss reaches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from packs import PIXELS, SPEC, initial_state, make_agent, random_batch, random_noise
from test_drqv2 import changes, cropped
from torch import Tensor

from iqrl.agent import Batch
from iqrl.agents import agent_class
from iqrl.environments import tasks


class PlainTaco:
    """taco.md, "One update", step by step: each group's vector is a leaf, which torch's own Adam moves."""

    def __init__(self, agent: Any, state: Mapping[str, Tensor]) -> None:
        self.agent, self.c = agent, agent.config
        names = ("encoder", "critic", "actor", "contrast")
        self.leaf = {k: state[k].clone().requires_grad_() for k in names}
        self.bar = {"critic": state["target_critic"].clone()}
        self.optimiser = {k: torch.optim.Adam([self.leaf[k]], lr=1e-4) for k in ("encoder", "critic", "actor")}
        self.optimiser["contrast"] = torch.optim.Adam([self.leaf["encoder"], self.leaf["contrast"]], lr=1e-4)

    def net(self, group: str, name: str, source: Mapping[str, Tensor] | None = None) -> Mapping[str, Tensor]:
        return getattr(self.agent, group).unpack((source or self.leaf)[group])[name]

    def features(self, observation: Tensor, uniform: Tensor) -> Tensor:
        p = self.net("encoder", "encoder")
        if not self.agent.images:
            return mlp(p, observation, F.mish)
        x = cropped(observation, uniform)
        for i, stride in enumerate((2, 1, 1, 1)):
            x = torch.relu(F.conv2d(x, p[f"{i}.weight"], p[f"{i}.bias"], stride))
        return x.flatten(1)

    def token(self, action: Tensor) -> Tensor:
        return mlp(self.net("encoder", "token"), action, torch.tanh)

    def action(self, h: Tensor, normal: Tensor, sigma: float) -> Tensor:
        mean = torch.tanh(mlp(self.net("actor", "policy"), squashed(self.net("actor", "trunk"), h), torch.relu))
        a = mean + (sigma * normal).clamp(-0.3, 0.3)
        return a - a.detach() + a.detach().clamp(-1 + 1e-6, 1 - 1e-6)

    def q(self, h: Tensor, action: Tensor, source: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        x = torch.cat([squashed(self.net("critic", "trunk", source), h), self.token(action)], -1)
        heads = self.net("critic", "q", source)
        return [mlp({k: v[i] for k, v in heads.items()}, x, torch.relu)[:, 0] for i in range(2)]

    def update(self, batch: Batch, noise: Mapping[str, Tensor], sigma: float) -> dict[str, float]:
        now, n = batch.observation[0], self.c.nstep
        total = sum(0.99**k * batch.reward[k] for k in range(n))
        with torch.no_grad():
            h = self.features(batch.observation[n], noise["next_shift"])
            y = total + 0.99**n * torch.minimum(*self.q(h, self.action(h, noise["next_action"], sigma), self.bar))
        h = self.features(now, noise["shift"])
        loss = sum(((q - y) ** 2).mean() for q in self.q(h, batch.action[0]))
        self.descend(loss, "encoder", "critic")
        told = {"critic_loss": float(loss.detach())}
        h = h.detach()
        loss = -torch.minimum(*self.q(h, self.action(h, noise["action"], sigma))).mean()
        self.descend(loss, "actor")
        told["actor_loss"] = float(loss.detach())
        self.bar["critic"] = 0.99 * self.bar["critic"] + 0.01 * self.leaf["critic"].detach()
        return {**told, **self.contrast(batch, noise, total)}

    def contrast(self, batch: Batch, noise: Mapping[str, Tensor], total: Tensor) -> dict[str, float]:
        size, projection = len(total), self.net("contrast", "projection")
        s = squashed(projection, self.features(batch.observation[0], noise["anchor"]))
        positive = squashed(projection, self.features(batch.observation[0], noise["positive"])).detach()
        later = squashed(projection, self.features(batch.observation[3], noise["later"])).detach()
        tokens = torch.cat([self.token(batch.action[k]) for k in range(3)], -1)
        both = torch.cat([s, squashed(self.net("contrast", "sequence"), tokens)], -1)
        w = self.net("contrast", "similarity")["weight"]
        own = torch.arange(size)
        losses = {"taco_loss": F.cross_entropy(mlp(self.net("contrast", "query"), both, torch.relu) @ w @ later.T, own)}
        if self.c.curl:
            losses["curl_loss"] = F.cross_entropy(s @ w @ positive.T, own)
        guess = mlp(self.net("contrast", "reward"), both, torch.relu)[:, 0]
        losses["reward_loss"] = ((guess - total) ** 2).mean()
        self.descend(sum(losses.values()), "contrast")
        return {k: float(v.detach()) for k, v in losses.items()}

    def descend(self, loss: Any, *names: str) -> None:
        for leaf in self.leaf.values():
            leaf.grad = None
        loss.backward()
        for name in names:
            self.optimiser[name].step()


def mlp(p: Mapping[str, Tensor], x: Tensor, activation: Any) -> Tensor:
    last = max(int(k.split(".")[0]) for k in p)
    for i in range(last + 1):
        x = x @ p[f"{i}.weight"] + p[f"{i}.bias"]
        if i < last:
            if f"{i}.scale" in p:
                x = F.layer_norm(x, x.shape[-1:], p[f"{i}.scale"], p[f"{i}.shift"])
            x = activation(x)
    return x


def squashed(p: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return torch.tanh(F.layer_norm(x @ p["0.weight"] + p["0.bias"], p["0.bias"].shape, p["0.scale"], p["0.shift"]))


@pytest.mark.parametrize("kind", ["pixels", "states"])
def test_updates_are_those_of_the_specification(kind: str) -> None:
    agent = make_agent("taco", spec=PIXELS if kind == "pixels" else SPEC)
    assert agent.config.curl == (kind == "pixels")
    state = initial_state(agent)
    reference, sigma = PlainTaco(agent, state), 0.4
    for number in range(1, 5):
        batch, noise = random_batch(agent, number, 0.0), random_noise(agent, "update_all", number)
        changed, metrics = agent.run_stage("update_all", state, batch, noise, {"sigma": torch.tensor(sigma)})
        assert changes(state, changed) == {"critic", "actor", "target_critic", "encoder", "contrast"}
        state = {**state, **changed}
        for name, expected in reference.update(batch, noise, sigma).items():
            assert float(metrics[name]) == pytest.approx(expected, rel=1e-4, abs=1e-5), (number, name)
    for name, leaf in reference.leaf.items():
        assert float(((state[name] - leaf.detach()).abs() > 1e-6).float().mean()) < 0.01, name
    torch.testing.assert_close(state["target_critic"], reference.bar["critic"], atol=1e-6, rtol=1e-5)


def test_what_each_part_trains() -> None:
    agent = make_agent("taco", spec=PIXELS)
    state, batch = initial_state(agent), random_batch(agent)
    for part, reached in (
        ("update", {"critic", "actor", "target_critic", "encoder"}),
        ("update_contrast", {"encoder", "contrast"}),
    ):
        changed, _ = agent.run_stage(part, state, batch, random_noise(agent, part), {"sigma": torch.tensor(1.0)})
        assert changes(state, changed) == reached


def test_a_state_of_another_episode_is_no_goal() -> None:
    agent = make_agent("taco", "agent.curl=false", "agent.predict_reward=false", spec=SPEC)
    state, noise = initial_state(agent), random_noise(agent, "update_contrast")
    batch = random_batch(agent, terminations=0.0)
    whole, _ = agent.contrast_loss(state, batch, noise)
    batch.terminated[0] = 1.0
    assert float(whole) > 0.0 and float(agent.contrast_loss(state, batch, noise)[0]) == 0.0
    batch.terminated[0], batch.terminated[2] = 0.0, 1.0  # the last one leads to what is compared
    torch.testing.assert_close(agent.contrast_loss(state, batch, noise)[0], whole)


def test_sizes_and_settings_of_tasks() -> None:
    agent = make_agent("taco", spec=PIXELS)
    assert agent.encoder.networks["token"].outputs == int(1.25 * 2) + 1
    assert make_agent("taco", "agent.token_dim=9", spec=SPEC).encoder.networks["token"].outputs == 9
    cls = agent_class("taco")[0]
    for task, expected in {
        "walker-walk@pixels": {"nstep": 1, "noise_decisions": 100_000},
        "manipulator-bring-ball@pixels": {"noise_decisions": 2_000_000},
        "cheetah-run": {"noise_decisions": 500_000, "curl": False},
    }.items():
        ref = tasks.parse(task)
        assert cls.task_defaults(ref.name, ref.group) == expected
