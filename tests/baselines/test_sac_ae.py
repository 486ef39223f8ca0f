"""SAC+AE: whole updates against a plain restatement, golden numbers, and what each loss reaches."""

from __future__ import annotations

import copy
import itertools
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from packs import PIXELS, SPEC, initial_state, make_agent, random_batch, random_noise
from torch import Tensor, nn

from iqrl import counter_random
from iqrl.agent import Batch, Progress
from iqrl.errors import InputError

sys.path.insert(0, str(Path(__file__).parent.parent / "iqrl"))

from plain_networks import agree, average, differences, nets  # noqa: E402
from test_drqv2 import Trunk  # noqa: E402
from test_images import plain  # noqa: E402


class PlainSacAe:
    """sac_ae.md, "One update", step by step, with torch's modules and optimisers; encoder and decoder if there are."""

    def __init__(self, agent: Any, state: Mapping[str, Tensor]) -> None:
        self.agent, self.c = agent, agent.config
        self.q = nn.ModuleList(nets(agent.critic, state["critic"], "q"))
        (self.head,) = nets(agent.actor, state["actor"], "policy")
        self.convolutions, self.trunk, self.actor_trunk = nn.Identity(), nn.Identity(), nn.Identity()
        self.decode: Any = None
        if agent.images:
            parts = agent.encoder.unpack(state["encoder"])
            self.convolutions = plain(agent.encoder.networks["convolutions"], copy.deepcopy(parts["convolutions"]))
            self.trunk = Trunk(parts["trunk"])
            self.actor_trunk = Trunk(agent.actor.unpack(state["actor"])["trunk"])
        self.encoder = nn.ModuleList([self.convolutions, self.trunk])
        self.encoder_bar, self.q_bar = copy.deepcopy(self.encoder), copy.deepcopy(self.q)
        self.log_alpha = torch.tensor(math.log(self.c.alpha_initial), requires_grad=True)
        acting = nn.ModuleList([self.actor_trunk, self.head])
        self.critic_optimiser = torch.optim.Adam([*self.q.parameters(), *self.encoder.parameters()], lr=1e-3)
        self.actor_optimiser = torch.optim.Adam(acting.parameters(), lr=1e-3)
        self.alpha_optimiser = torch.optim.Adam([self.log_alpha], lr=1e-4, betas=(0.5, 0.999))
        if agent.decodes:
            parts = agent.decoder.unpack(state["decoder"])
            (linear,) = nets(agent.decoder, state["decoder"], "linear")
            network = agent.decoder.networks["convolutions"]
            kernels = {k: nn.Parameter(v.clone()) for k, v in parts["convolutions"].items()}
            self.decode = lambda z: network(kernels, torch.relu(linear.linear[0](z)))
            weights = [*kernels.values(), *linear.parameters()]
            self.decoder_optimiser = torch.optim.Adam(weights, lr=1e-3, weight_decay=1e-7)
            self.encoder_optimiser = torch.optim.Adam(self.encoder.parameters(), lr=1e-3)

    def image(self, observation: Tensor) -> Tensor:
        return observation.float() / 255 if self.agent.images else observation

    def act(self, h: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.head(self.actor_trunk(h)).chunk(2, -1)
        spread = torch.distributions.Normal(mean, torch.exp(-10 + 6 * (torch.tanh(raw) + 1)))
        x = mean + spread.stddev * normal
        return torch.tanh(x), (spread.log_prob(x) - torch.log((1 - torch.tanh(x) ** 2).clamp(min=0) + 1e-6)).sum(-1)

    def update(self, batch: Batch, noise: Mapping[str, Tensor], number: int) -> dict[str, float]:
        s, after = self.image(batch.observation[0]), self.image(batch.observation[1])
        with torch.no_grad():
            action, log_pi = self.act(self.convolutions(after), noise["next_action"])
            z = self.encoder_bar[1](self.encoder_bar[0](after))
            value = torch.minimum(*(q(z, action)[:, 0] for q in self.q_bar)) - self.log_alpha.exp() * log_pi
            y = batch.reward[0] + 0.99 * (1 - batch.terminated[0]) * value
        z = self.trunk(self.convolutions(s))
        loss = sum(((q(z, batch.action[0])[:, 0] - y) ** 2).mean() for q in self.q)
        descend(loss, self.critic_optimiser)
        told = {"critic_loss": float(loss.detach()), "target_mean": float(y.mean())}
        if number % 2 == 0:
            h = self.convolutions(s).detach()
            action, log_pi = self.act(h, noise["action"])
            q = torch.minimum(*(q(self.trunk(h), action)[:, 0] for q in self.q))
            loss = (self.log_alpha.exp().detach() * log_pi - q).mean()
            descend(loss, self.actor_optimiser)
            told |= {"actor_loss": float(loss.detach()), "entropy": -float(log_pi.detach().mean())}
            descend(
                (self.log_alpha.exp() * (-log_pi.detach() + self.agent.spec.action_dim)).mean(), self.alpha_optimiser
            )
            average(self.q_bar, self.q, 0.01)
            average(self.encoder_bar, self.encoder, 0.05)
        if self.decode:
            z = self.trunk(self.convolutions(s))
            target = torch.floor(batch.observation[0].float() / 8) / 32 - 0.5
            target += counter_random.uniform(noise["dither"], tuple(target.shape)) / 32
            error = ((target - self.decode(z)) ** 2).mean()
            descend(error + 1e-6 * (0.5 * (z**2).sum(1)).mean(), self.decoder_optimiser, self.encoder_optimiser)
            told["reconstruction_error"] = float(error.detach())
        return told


def descend(loss: Any, *optimisers: torch.optim.Optimizer) -> None:
    for optimiser in optimisers:
        optimiser.zero_grad()
    loss.backward()
    for optimiser in optimisers:
        optimiser.step()


@pytest.mark.parametrize("kind", ["pixel", "none", "states"])
def test_updates_are_those_of_the_specification(kind: str) -> None:
    words = ["agent.warmup_decisions=0", *(["agent.decoder=none"] if kind == "none" else [])]
    agent = make_agent("sac_ae", *words, spec=SPEC if kind == "states" else PIXELS)
    state = initial_state(agent)
    reference = PlainSacAe(agent, state)
    for number in range(1, 5):
        (stage,) = agent.stages(number)
        assert ("reconstruct" in stage, "update_actor" in stage) == (kind == "pixel", number % 2 == 0)
        batch, noise = random_batch(agent, number), random_noise(agent, stage, number)
        changed, metrics = agent.run_stage(stage, state, batch, noise, {})
        state = {**state, **changed}
        for name, expected in reference.update(batch, noise, number).items():
            assert float(metrics[name]) == pytest.approx(expected, rel=1e-4, abs=1e-5), (number, name)
    assert float(state["temperature"][0]) == pytest.approx(float(reference.log_alpha.detach()), rel=1e-6)
    for group, entry, name, members in (
        (agent.critic, "critic", "q", list(reference.q)),
        (agent.critic, "target_critic", "q", list(reference.q_bar)),
        (agent.actor, "actor", "policy", [reference.head]),
    ):
        assert agree(differences(group, state[entry], name, members), 1e-5, 1e-2), entry
    for entry, encoder in (("encoder", reference.encoder), ("target_encoder", reference.encoder_bar)):
        if kind != "states":
            ours = agent.encoder.unpack(state[entry])
            assert agree((ours["convolutions"]["2.weight"] - encoder[0][4].weight.detach()).abs(), 1e-5, 1e-2)
            assert agree((ours["trunk"]["0.weight"].t() - encoder[1].linear.weight.detach()).abs(), 1e-5, 1e-2)


def test_golden_numbers() -> None:
    agent = make_agent("sac_ae", spec=SPEC)
    state = {k: torch.zeros_like(v) for k, v in initial_state(agent).items()}
    mean, log_std = agent.policy(state["actor"], torch.zeros(1, 5))  # all weights 0: tanh(0) is the middle
    assert mean.tolist() == [[0.0, 0.0]] and log_std.tolist() == [[-4.0, -4.0]]
    # a = tanh(e^-4 / 2) = 0.0091576; log N(1/2) + 4 = 2.9560615; -log(1 - a^2 + 1e-6) = 0.0000829
    action, log_pi = agent.sampled(state["actor"], torch.zeros(1, 5), torch.tensor([[0.5, 0.5]]))
    torch.testing.assert_close(action, torch.tensor([[0.0091576, 0.0091576]]), atol=1e-7, rtol=0)
    assert float(log_pi) == pytest.approx(2 * (2.9560615 + 0.0000829), abs=1e-5)
    # alpha = 1 with log alpha = 0: the mean of -log pi + 2
    assert float(agent.alpha_loss(state["temperature"], torch.tensor([3.0, 0.0]))) == pytest.approx(0.5)


def test_the_actor_sends_no_gradient_to_the_encoder() -> None:
    agent = make_agent("sac_ae", "agent.warmup_decisions=0", spec=PIXELS)
    state, reached = initial_state(agent), {}
    for name in agent.stages(2)[0].split("+"):
        changed, _ = agent.run_stage(name, state, random_batch(agent), random_noise(agent, name), {})
        reached[name] = {k for k, v in changed.items() if not k.endswith(("/mean", "/square", "/steps"))}
    assert reached == {
        "update_critic": {"critic", "encoder"},
        "update_actor": {"actor", "temperature"},
        "update_targets": {"target_critic", "target_encoder"},
        "reconstruct": {"decoder", "encoder"},
    }


def test_when_it_learns() -> None:
    agent = make_agent("sac_ae", spec=PIXELS)
    due = [agent.after_decision(Progress(decisions=d)) for d in (1000, 1001, 1002, 1003)]
    assert due == [0, 1000, 1, 1]
    parts = [agent.stages(update)[0].count("update_actor") for update in (1, 2, 999, 1000, 1001, 1002, 1003)]
    assert parts == [1, 1, 1, 1, 0, 1, 0]  # the first thousand all fall on decision 1000, an even one
    assert agent.acts_randomly(Progress(decisions=999)) and not agent.acts_randomly(Progress(decisions=1000))


def test_from_states_it_is_sac() -> None:
    with pytest.raises(InputError, match="agent.decoder=pixel: made-up is not observed as images; expected none"):
        make_agent("sac_ae", "agent.decoder=pixel", spec=SPEC)
    agent = make_agent("sac_ae", spec=SPEC)
    entries = {k for k in initial_state(agent) if "/" not in k}
    assert entries == {"critic", "target_critic", "actor", "temperature"}
    assert agent.latent_width() == 0 and agent.latent(initial_state(agent), torch.zeros(3, 5)) is None


def test_what_it_shows_of_its_inside() -> None:
    agent = make_agent("sac_ae", spec=PIXELS)
    state, batch = initial_state(agent), random_batch(agent)
    assert agent.latent(state, batch.observation[0]).shape == (8, agent.latent_width())
    layers = agent.hidden(state, batch.observation[0], batch.action[0])
    convolutions = [(8 * n * n, 8) for n in (8, 6, 4, 2)]
    assert [tuple(x.shape) for x in layers] == [*convolutions, *itertools.repeat((2, 8, 16), 2), (8, 16), (8, 16)]
