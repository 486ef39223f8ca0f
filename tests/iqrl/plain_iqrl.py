"""One iQRL update said again from the specification with torch.nn, torch.optim and loops."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from plain_networks import average, bellman, fsq, masks, nets
from torch import Tensor, nn

from iqrl.agent import Batch
from iqrl.iqrl import IQRL


class PlainIQRL:
    """Starts from an agent's state; `update` does what the specification says, in its order."""

    def __init__(self, agent: IQRL, state: Mapping[str, Tensor]) -> None:
        world = {name: nets(agent.world, state["world"], name)[0] for name in agent.world.networks}
        (actor,) = nets(agent.actor, state["actor"], "actor")
        self.start(agent, world, actor, nets(agent.critic, state["critic"], "critic"))

    def start(self, agent: IQRL, world: Mapping[str, Any], actor: Any, critics: Sequence[nn.Module]) -> None:
        self.c: Any = agent.config
        self.net: dict[str, Any] = dict(world)
        self.bar = {name: copy.deepcopy(self.net[name]) for name in ("encoder", "projection") if name in self.net}
        self.actor, self.critics = actor, nn.ModuleList(critics)
        self.actor_bar, self.critics_bar = copy.deepcopy(self.actor), copy.deepcopy(self.critics)
        c = self.c
        self.world = [p for net in self.net.values() for p in net.parameters()]
        self.world_optimiser = torch.optim.AdamW(self.world, lr=c.enc_lr, weight_decay=c.enc_weight_decay)
        self.actor_optimiser = torch.optim.Adam(self.actor.parameters(), lr=c.lr)
        self.critic_optimiser = torch.optim.Adam(self.critics.parameters(), lr=c.lr)

    def f(self, x: Tensor) -> Tensor:
        return fsq(x, self.c.fsq_levels) if self.c.quantizer == "fsq" else x

    def next_latent(self, z: Tensor, action: Tensor) -> Tensor:
        d = self.net["dynamics"](z, action)
        return {
            "residual": lambda: self.f(z + d),
            "direct": lambda: self.f(d),
            "increment": lambda: z + self.f(d),
        }[self.c.dyn_mode]()

    def unroll(self, batch: Batch) -> list[Tensor]:
        latents = [self.f(self.net["encoder"](batch.observation[0]))]
        for h in range(self.c.horizon):
            latents.append(self.next_latent(latents[-1], batch.action[h]))
        return latents

    def representation_loss(self, batch: Batch) -> Tensor:
        c, latents, size = self.c, self.unroll(batch), batch.reward.shape[1]
        mask = masks(batch, c.horizon, c.mask_mode)
        loss = torch.zeros(())
        for h in range(c.horizon):
            guess, goal = latents[h + 1], self.f(self.bar["encoder"](batch.observation[h + 1])).detach()
            if c.use_projection:
                guess, goal = self.net["projection"](guess), self.bar["projection"](goal).detach()
            read = latents[h + 1] if c.released_reward_align else latents[h]
            reward = self.net["reward"](read, batch.action[h])[:, 0] if c.use_reward else None
            seen = self.net["decoder"](latents[h]) if c.use_decoder else None
            error = torch.zeros(size)
            if c.use_tc and c.rep_metric == "cosine":
                norms = guess.norm(dim=1) * goal.norm(dim=1)
                assert norms.min() > 1e-3  # a zero code has a test of its own
                error = error + c.rep_cos_sign * (guess * goal).sum(1) / norms
            elif c.use_tc:
                error = error + ((guess - goal) ** 2).mean(1)
            if reward is not None:
                error = error + (reward - batch.reward[h]) ** 2
            if seen is not None:
                error = error + ((seen - batch.observation[h]) ** 2).mean(1)
            share = c.rep_discount**h / size / (c.horizon if c.rep_reduction == "mean" else 1)
            loss = loss + share * sum(mask[h][b] * error[b] for b in range(size))
        return loss

    def drawn(self, noise: Mapping[str, Tensor], name: str) -> list[int]:
        if name not in noise:
            return list(range(len(self.critics)))
        order = sorted(range(len(self.critics)), key=lambda k: float(noise[name][k]))
        return order[: self.c.q_sample]

    def target(self, batch: Batch, noise: Mapping[str, Tensor], encoder: nn.Module) -> Tensor:
        c = self.c

        def value(k: int) -> Tensor:
            z = self.f(encoder(batch.observation[k + 1]))
            noisy = (c.policy_noise * noise["smoothing"]).clamp(-c.noise_clip, c.noise_clip)
            action = (torch.tanh(self.actor_bar(z)) + noisy).clamp(-1, 1)
            q = [self.critics_bar[k](z, action)[:, 0] for k in self.drawn(noise, "target_critics")]
            return torch.stack(q).amin(0)

        with torch.no_grad():
            return bellman(batch, c.nstep, c.discount, value, c.released_nstep)

    def critic_loss(self, z: Tensor, batch: Batch, y: Tensor) -> Tensor:
        losses = [((q(z, batch.action[0])[:, 0] - y) ** 2).mean() for q in self.critics]
        return sum(losses) / len(losses)  # type: ignore[return-value]

    def update(self, batch: Batch, noise: Mapping[str, Tensor], number: int) -> dict[str, float]:
        """Update number 1, 2, ...; its losses."""
        c = self.c
        told: dict[str, float] = {}
        loss = torch.zeros(())
        if c.enc_grad_from != "td":
            loss = self.representation_loss(batch)
            told["representation_loss"] = float(loss.detach())
        if c.enc_grad_from != "rep":
            encoder = self.bar["encoder"] if c.td_encoder == "ema" else self.net["encoder"]
            y = self.target(batch, noise, encoder)
            loss = loss + self.critic_loss(self.f(self.net["encoder"](batch.observation[0])), batch, y)
        self.world_optimiser.zero_grad()
        loss.backward()
        for p in self.world:  # parameters that this loss does not reach still decay
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        norm = torch.nn.utils.clip_grad_norm_(self.world, c.enc_clip if c.enc_clip else float("inf"))
        told["representation_gradient_norm"] = float(norm)
        self.world_optimiser.step()
        for name, net in self.bar.items():
            average(net, self.net[name], c.enc_tau)

        encoder = self.bar["encoder"] if c.td_encoder == "ema" else self.net["encoder"]
        with torch.no_grad():
            z = self.f(encoder(batch.observation[0]))
        y = self.target(batch, noise, encoder)
        loss = self.critic_loss(z, batch, y)
        told["critic_loss"], told["target_mean"] = float(loss.detach()), float(y.mean())
        self.critic_optimiser.zero_grad()
        loss.backward()
        self.critic_optimiser.step()
        average(self.critics_bar, self.critics, c.tau)

        if number % c.actor_every == 0:
            action = torch.tanh(self.actor(z))
            q = torch.stack([self.critics[k](z, action)[:, 0] for k in self.drawn(noise, "actor_critics")])
            loss = -(q.amin(0) if c.actor_q == "min" else q.mean(0)).mean()
            told["actor_loss"] = float(loss.detach())
            self.actor_optimiser.zero_grad()
            loss.backward()
            self.actor_optimiser.step()
            average(self.actor_bar, self.actor, c.tau)
        return told
