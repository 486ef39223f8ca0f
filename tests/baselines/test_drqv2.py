"""DrQ-v2: whole updates against a plain restatement, and what each loss reaches."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packs import PIXELS, initial_state, make_agent, random_batch, random_noise
from torch import Tensor, nn

from iqrl.agent import Batch, Progress
from iqrl.agents import agent_class
from iqrl.environments import tasks

sys.path.insert(0, str(Path(__file__).parent.parent / "iqrl"))

from plain_networks import agree, bellman, differences, nets  # noqa: E402
from test_images import plain  # noqa: E402


class Trunk(nn.Module):
    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        inputs, outputs = parameters["0.weight"].shape
        self.linear, self.norm = nn.Linear(inputs, outputs), nn.LayerNorm(outputs)
        self.linear.weight.data, self.linear.bias.data = (
            parameters["0.weight"].t().clone(),
            parameters["0.bias"].clone(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.linear(x)))


def cropped(images: Tensor, uniform: Tensor) -> Tensor:
    """Image by image: the border repeated 4 times around, then a crop."""
    size, out = images.shape[-1], []
    for image, (across, down) in zip(images, uniform.tolist(), strict=True):
        padded = np.pad(image.numpy(), ((0, 0), (4, 4), (4, 4)), mode="edge")
        x, y = math.floor(9 * across), math.floor(9 * down)
        out.append(torch.from_numpy(padded[:, y : y + size, x : x + size].copy()))
    return torch.stack(out).float() / 255 - 0.5


class PlainDrQv2:
    """drqv2.md, "One update", step by step, with torch's modules and optimisers."""

    def __init__(self, agent: Any, state: Mapping[str, Tensor]) -> None:
        self.agent, self.c = agent, agent.config
        critic, actor = agent.critic.unpack(state["critic"]), agent.actor.unpack(state["actor"])
        self.encoder = plain(agent.critic.networks["encoder"], {k: v.clone() for k, v in critic["encoder"].items()})
        self.critic_trunk, self.actor_trunk = Trunk(critic["trunk"]), Trunk(actor["trunk"])
        self.q = nn.ModuleList(nets(agent.critic, state["critic"], "q"))
        (self.policy,) = nets(agent.actor, state["actor"], "policy")
        self.trunk_bar, self.q_bar = copy.deepcopy(self.critic_trunk), copy.deepcopy(self.q)
        self.online = nn.ModuleList([self.encoder, self.critic_trunk, self.q])
        self.acting = nn.ModuleList([self.actor_trunk, self.policy])
        self.optimisers = [torch.optim.Adam(m.parameters(), lr=self.c.lr) for m in (self.online, self.acting)]

    def action(self, h: Tensor, normal: Tensor, sigma: float) -> Tensor:
        a = torch.tanh(self.policy(self.actor_trunk(h))) + (sigma * normal).clamp(-0.3, 0.3)
        return a - a.detach() + a.detach().clamp(-1 + 1e-6, 1 - 1e-6)

    def smaller(self, trunk: nn.Module, q: nn.ModuleList, h: Tensor, action: Tensor) -> Tensor:
        return torch.minimum(*(head(trunk(h), action)[:, 0] for head in q))

    def update(self, batch: Batch, noise: Mapping[str, Tensor], sigma: float) -> dict[str, float]:
        def value(k: int) -> Tensor:
            h = self.encoder(cropped(batch.observation[k + 1], noise["next_shift"]))
            return self.smaller(self.trunk_bar, self.q_bar, h, self.action(h, noise["next_action"], sigma))

        with torch.no_grad():
            y = bellman(batch, self.c.nstep, self.c.discount, value)
        h = self.encoder(cropped(batch.observation[0], noise["shift"]))
        z = self.critic_trunk(h)
        loss = sum(((head(z, batch.action[0])[:, 0] - y) ** 2).mean() for head in self.q)
        self.descend(0, loss)
        actor_loss = -self.smaller(
            self.critic_trunk, self.q, h.detach(), self.action(h.detach(), noise["action"], sigma)
        ).mean()
        self.descend(1, actor_loss)
        for bar, net in ((self.trunk_bar, self.critic_trunk), (self.q_bar, self.q)):
            for old, new in zip(bar.parameters(), net.parameters(), strict=True):
                old.data = 0.99 * old.data + 0.01 * new.data
        return {
            "critic_loss": float(loss.detach()),
            "actor_loss": float(actor_loss.detach()),
            "target_mean": float(y.mean()),
        }

    def descend(self, which: int, loss: Any) -> None:
        self.optimisers[which].zero_grad()
        loss.backward()
        self.optimisers[which].step()


def changes(state: Mapping[str, Tensor], changed: Mapping[str, Tensor]) -> set[str]:
    return {k for k, v in changed.items() if "/" not in k and not torch.equal(v, state[k])}


@pytest.mark.parametrize("nstep", [1, 3])
def test_updates_are_those_of_the_specification(nstep: int) -> None:
    agent = make_agent("drqv2", f"agent.nstep={nstep}", "agent.lr=1e-3", spec=PIXELS)
    state = initial_state(agent)
    reference, sigma = PlainDrQv2(agent, state), 0.4
    for number in range(1, 5):
        batch, noise = random_batch(agent, number), random_noise(agent, "update", number)
        changed, metrics = agent.run_stage("update", state, batch, noise, {"sigma": torch.tensor(sigma)})
        assert changes(state, changed) == {"critic", "actor", "target_critic"}
        state = {**state, **changed}
        for name, expected in reference.update(batch, noise, sigma).items():
            assert float(metrics[name]) == pytest.approx(expected, rel=1e-4, abs=1e-5), name
    for group, entry, name, members in (
        (agent.critic, "critic", "q", list(reference.q)),
        (agent.actor, "actor", "policy", [reference.policy]),
        (agent.target, "target_critic", "q", list(reference.q_bar)),
    ):
        assert agree(differences(group, state[entry], name, members), 1e-5, 1e-2), entry
    for entry, trunk in (("critic", reference.critic_trunk), ("actor", reference.actor_trunk)):
        ours = (agent.critic if entry == "critic" else agent.actor).unpack(state[entry])["trunk"]
        assert agree((ours["0.weight"].t() - trunk.linear.weight).abs(), 1e-5, 1e-2), entry
        assert agree((ours["0.scale"] - trunk.norm.weight).abs(), 1e-5, 1e-2), entry
    weights = agent.critic.unpack(state["critic"])["encoder"]
    assert agree((weights["2.weight"] - reference.encoder[4].weight).abs(), 1e-5, 1e-2)


def test_noise_on_an_action_is_clipped_and_lets_the_gradient_through() -> None:
    agent = make_agent("drqv2", spec=PIXELS)
    mean = torch.tensor([[0.5, 0.95, -0.95]], requires_grad=True)
    action = agent.noisy(mean, torch.tensor(0.2), torch.tensor([[1.0, 3.0, -1.0]]))
    torch.testing.assert_close(action, torch.tensor([[0.7, 1.0 - 1e-6, -1.0 + 1e-6]]))
    (gradient,) = torch.autograd.grad(action.sum(), mean)
    assert gradient.tolist() == [[1.0, 1.0, 1.0]]


def test_when_it_learns_and_explores() -> None:
    agent = make_agent("drqv2", "agent.noise_decisions=1000", spec=PIXELS)
    due = [d for d in range(1, 2010) if agent.after_decision(Progress(decisions=d))]
    assert due == [2001, 2003, 2005, 2007, 2009]  # with 2000, 2002, ... decisions taken, as official code counts
    assert [agent.acts_randomly(Progress(decisions=d)) for d in (1999, 2000)] == [True, False]
    sigma = [agent.schedule(Progress(decisions=d))["sigma"] for d in (0, 500, 1000, 5000)]
    assert sigma == pytest.approx([1.0, 0.55, 0.1, 0.1])


def test_settings_of_tasks() -> None:
    cls = agent_class("drqv2")[0]

    def of(task: str) -> dict[str, Any]:
        ref = tasks.parse(task)
        return cls.task_defaults(ref.name, ref.group)

    assert of("walker-run@pixels") == {"nstep": 1, "batch_size": 512, "noise_decisions": 500_000}
    assert of("humanoid-walk@pixels") == {"feature_dim": 100, "lr": 8e-5, "noise_decisions": 2_000_000}
    assert of("quadruped-run@pixels+render=fast") == {"buffer_size": 100_000, "noise_decisions": 500_000}
    assert of("cartpole-swingup-sparse@pixels") == {"noise_decisions": 500_000}
    assert of("cup-catch@pixels") == {"noise_decisions": 100_000}


def test_what_it_shows_of_its_inside() -> None:
    agent = make_agent("drqv2", spec=PIXELS)
    state, batch = initial_state(agent), random_batch(agent)
    latent = agent.latent(state, batch.observation[0])
    assert latent.shape == (8, agent.latent_width()) and float(latent.abs().max()) <= 1.0
    layers = agent.hidden(state, batch.observation[0], batch.action[0])
    assert [tuple(x.shape) for x in layers] == [
        *[(8 * n * n, 4) for n in (8, 6, 4, 2)], (2, 8, 16), (2, 8, 16), (8, 16), (8, 16)
    ]  # fmt: skip
