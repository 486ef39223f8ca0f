"""DDPG in sixty lines: an agent from outside the tree. Run it with agent=docs/examples/my_agent.py."""

from dataclasses import dataclass

import torch
from torch.func import grad_and_value

from iqrl.agent import Agent, Slices, register, setting
from iqrl.networks import MLP, Adam, ParameterGroup, soft_update


@dataclass(frozen=True)
class Config:
    width: int = setting(256, "hidden width", low=1)
    lr: float = setting(3e-4, "Adam learning rate", low=0.0)
    sigma: float = setting(0.3, "exploration noise, standard deviation", low=0.0)
    buffer_size: int = setting(1_000_000, "replay capacity, transitions", low=1000)


@register("ddpg")
class DDPG(Agent[Config]):
    def __init__(self, config, spec, dtype=torch.float32):
        super().__init__(config, spec, dtype)
        o, a, hidden = spec.observation_dim, spec.action_dim, (config.width, config.width)
        self.actor = ParameterGroup({"net": MLP(o, hidden, a, activation="relu", norm="none")}, dtype)
        self.critic = ParameterGroup({"net": MLP(o + a, hidden, 1, activation="relu", norm="none")}, dtype)
        self.optimiser = Adam(config.lr)

    def initialise(self, generator):  # one seed's tensors: parameters, optimisers, targets
        actor, critic = self.actor.initialise(generator), self.critic.initialise(generator)
        state = {**self.optimiser.initialise("actor", actor), **self.optimiser.initialise("critic", critic)}
        return {**state, "target_actor": actor.clone(), "target_critic": critic.clone()}

    def policy(self, actor, observation):
        return torch.tanh(self.actor(actor).net(observation))

    def value(self, critic, observation, action):
        return self.critic(critic).net(observation, action)[..., 0]

    def act(self, state, carry, observation, noise, schedule):
        action = self.policy(state["actor"], observation)
        return (torch.clamp(action + self.config.sigma * noise["action"], -1, 1) if noise else action), carry

    def acts_randomly(self, progress):
        return progress.decisions < 1000

    def after_decision(self, progress):  # gradient updates due
        return 1 if progress.decisions > 1000 else 0

    @property
    def slices(self):
        return Slices(horizon=1, batch_size=256)

    def update(self, state, batch, noise, schedule):  # pure: returns what changed, and metrics
        s, a, r, s2 = batch.observation[0], batch.action[0], batch.reward[0], batch.observation[1]
        y = r + 0.99 * (1 - batch.terminated[0]) * self.value(
            state["target_critic"], s2, self.policy(state["target_actor"], s2)
        )
        g, critic_loss = grad_and_value(lambda c: (self.value(c, s, a) - y).square().mean())(state["critic"])
        new, _ = self.optimiser.step("critic", state, g)
        q = new["critic"]
        g, actor_loss = grad_and_value(lambda p: -self.value(q, s, self.policy(p, s)).mean())(state["actor"])
        new |= self.optimiser.step("actor", state, g)[0]
        new |= {f"target_{k}": soft_update(state[f"target_{k}"], new[k], 0.005) for k in ("actor", "critic")}
        return new, {"critic_loss": critic_loss, "actor_loss": actor_loss}
