"""DrQ-v2: continuous control from images by data augmentation (arXiv 2107.09645; spec page drqv2.md).

Symbols: h = f(shift(o)), the convolutional features of a shifted observation; a trunk, one in the actor and one in the
critic, makes feature_dim numbers of them; a bar is a target network. The critic's loss alone trains f. Losses are those
of one seed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import grad_and_value

from iqrl.agent import Agent, Batch, Metrics, Noise, Progress, Slices, Stage, State, Tensors, Update, register, setting
from iqrl.environments.tasks import TaskSpec
from iqrl.images import Convolutions, random_shift
from iqrl.networks import MLP, Adam, Network, ParameterGroup, mean_min_max, soft_update
from iqrl.returns import n_step

NOISE_DECISIONS = {"easy": 100_000, "medium": 500_000, "hard": 2_000_000}  # by task group
EDGE = 1e-6  # actions stay so far within [-1, 1]


@dataclass(frozen=True)
class Config:
    """Defaults are the official ones (table at the end of drqv2.md)."""

    # networks
    filters: int = setting(32, "of each of the four convolutions", low=1, high=4096)
    feature_dim: int = setting(50, "width of either trunk; 100 on humanoid", low=1, high=65536)
    hidden_dim: int = setting(1024, "hidden width of actor and critics", low=1, high=65536)
    pad: int = setting(4, "largest random shift, pixels; 0 is none", low=0, high=64)
    # losses
    discount: float = setting(0.99, "gamma, per decision", low=0.0, high=1.0)
    nstep: int = setting(3, "N of the returns; 1 on walker", low=1, high=100)
    lr: float = setting(1e-4, "Adam learning rate of all; 8e-5 on humanoid", low=0.0, high=1.0)
    tau: float = setting(0.01, "rate of the target critics", low=0.0, high=1.0)
    noise_clip: float = setting(0.3, "where noise on an action is clipped in either loss", low=0.0, high=10.0)
    # data
    batch_size: int = setting(256, "slices in a batch; 512 on walker", low=2, high=1_000_000)
    buffer_size: int = setting(
        1_000_000, "replay capacity, transitions; 100 000 on quadruped-run", low=1000, high=10**9
    )
    update_every: int = setting(2, "decisions per update", low=1, high=1000)
    warmup_decisions: int = setting(2_000, "uniform random decisions first, without updates", low=0, high=10**9)
    noise_initial: float = setting(1.0, "sigma at first: of exploration, and of either loss", low=0.0, high=10.0)
    noise_final: float = setting(0.1, "and in the end", low=0.0, high=10.0)
    noise_decisions: int = setting(
        500_000, "decisions in between; 100 000 easy, 500 000 medium, 2 000 000 hard tasks", low=1, high=10**9
    )


@register("drqv2")
class DrQv2(Agent[Config]):
    sees_images, sees_states = True, False
    valued: ClassVar[tuple[str, ...]] = ("critic",)  # what the critic's loss trains
    presets = {
        "default": {},
        "small": {"filters": 16, "hidden_dim": 256, "batch_size": 64},
        "tiny": {"filters": 4, "feature_dim": 8, "hidden_dim": 16, "batch_size": 8},
    }

    @classmethod
    def task_defaults(cls, task: str, group: str) -> dict[str, Any]:
        name = re.split("[@+]", task)[0]
        values: dict[str, Any] = {"noise_decisions": NOISE_DECISIONS[group]}
        if name == "cartpole-swingup-sparse":  # hard to explore here, medium there
            values["noise_decisions"] = NOISE_DECISIONS["medium"]
        if name.startswith("walker-"):
            values |= {"nstep": 1, "batch_size": 512}
        if name.startswith("humanoid-"):
            values |= {"feature_dim": 100, "lr": 8e-5}
        return values | ({"buffer_size": 100_000} if name == "quadruped-run" else {})

    def __init__(self, config: Config, spec: TaskSpec, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(config, spec, dtype)
        c, a = config, spec.action_dim
        encoder = self.convolutions()
        critic: dict[str, Network] = {
            "trunk": self.trunk(encoder.outputs),
            "q": self.head(c.feature_dim + a, 1, ensemble=2),
        }
        self.critic = ParameterGroup({"encoder": encoder, **critic}, dtype)
        self.target = ParameterGroup(critic, dtype)
        self.actor = ParameterGroup(
            {"trunk": self.trunk(encoder.outputs), "policy": self.head(c.feature_dim, a)}, dtype
        )
        self.optimiser = Adam(c.lr)

    def convolutions(self) -> Convolutions:
        return Convolutions(self.spec.image_shape, self.config.filters, (2, 1, 1, 1))

    def trunk(self, inputs: int) -> MLP:
        return MLP(inputs, (self.config.feature_dim,), 0, "tanh", initialisation="orthogonal")

    def head(self, inputs: int, outputs: int, ensemble: int = 0) -> MLP:
        hidden, style = (self.config.hidden_dim, self.config.hidden_dim), "orthogonal"
        return MLP(inputs, hidden, outputs, "relu", "none", ensemble, style, precise_output=True)

    # --- networks; `nets` are parameter vectors by name, such as the state

    def features(self, nets: Tensors, image: Tensor, hidden: list[Tensor] | None = None) -> Tensor:
        """h: (B, C, height, width) uint8 -> (B, F)."""
        return self.critic(nets["critic"]).encoder(image / 255.0 - 0.5, hidden=hidden)

    def policy(self, actor: Tensor, h: Tensor, hidden: list[Tensor] | None = None) -> Tensor:
        """The mean of the actions: (B, F) -> (B, A) in [-1, 1]."""
        net = self.actor(actor)
        return torch.tanh(net.policy(net.trunk(h), hidden=hidden))

    def values(
        self, nets: Tensors, h: Tensor, action: Tensor, bar: bool = False, hidden: list[Tensor] | None = None
    ) -> Tensor:
        """q_1 and q_2, or those of the target: (2, B)."""
        net = self.target(nets["target_critic"]) if bar else self.critic(nets["critic"])
        return net.q(net.trunk(h), action, hidden=hidden)[..., 0]

    def shifted(self, image: Tensor, uniform: Tensor) -> Tensor:
        return random_shift(image, uniform, self.config.pad)

    def noisy(self, mean: Tensor, sigma: Tensor, normal: Tensor) -> Tensor:
        """mean + clip(sigma normal), within [-1, 1]; the gradient to the mean passes all the same."""
        clip = self.config.noise_clip
        action = mean + torch.clamp(sigma * normal, -clip, clip)
        return action + (torch.clamp(action, EDGE - 1.0, 1.0 - EDGE) - action).detach()

    def initialise(self, generator: torch.Generator) -> dict[str, Tensor]:
        critic, actor = self.critic.initialise(generator), self.actor.initialise(generator)
        return {
            **self.optimiser.initialise("critic", critic),
            **self.optimiser.initialise("actor", actor),
            "target_critic": self.critic.extract(critic, self.target),
        }

    # --- acting

    def act(
        self, state: State, carry: Tensors, observation: Tensor, noise: Tensors, schedule: Tensors
    ) -> tuple[Tensor, Tensors]:
        action = self.policy(state["actor"], self.features(state, observation))
        if "action" in noise:
            action = torch.clamp(action + schedule["sigma"] * noise["action"], EDGE - 1.0, 1.0 - EDGE)
        return action, carry

    def acts_randomly(self, progress: Progress) -> bool:
        return progress.decisions < self.config.warmup_decisions

    # --- losses (drqv2.md, "One update")

    def target_value(self, state: State, batch: Batch, noise: Tensors, sigma: Tensor) -> Tensor:
        """y (B,): N-step return, noisy current policy, smaller target critic, on features of the current encoder."""
        total, factor, last = n_step(batch, self.config.nstep, self.config.discount)
        h = self.features(state, self.shifted(last, noise["next_shift"]))
        action = self.noisy(self.policy(state["actor"], h), sigma, noise["next_action"])
        return total + factor * self.values(state, h, action, bar=True).min(0).values

    def critic_loss(self, nets: Tensors, image: Tensor, action: Tensor, y: Tensor) -> tuple[Tensor, Any]:
        """MSE of the first critic plus MSE of the second; also gives h (B, F)."""
        h = self.features(nets, image)
        q = self.values(nets, h, action)
        return (q - y).square().mean(-1).sum(), (h.detach(), mean_min_max("q", q))

    def actor_loss(self, actor: Tensor, nets: Tensors, h: Tensor, normal: Tensor, sigma: Tensor) -> Tensor:
        action = self.noisy(self.policy(actor, h), sigma, normal)
        return -self.values(nets, h, action).min(0).values.mean()

    # --- learning

    @property
    def slices(self) -> Slices:
        return Slices(self.config.nstep, self.config.batch_size)

    def stage(self, name: str) -> Stage:
        shift, action = (self.config.batch_size, 2), (self.config.batch_size, self.spec.action_dim)
        shifts = {k: Noise(shift, "uniform") for k in ("shift", "next_shift")}
        return Stage(noise={**shifts, "next_action": Noise(action), "action": Noise(action)})

    def update(self, state: State, batch: Batch, noise: Tensors, schedule: Tensors) -> Update:
        """Critics with encoder, actor on the features that those had, target critics."""
        sigma = schedule["sigma"]
        y = self.target_value(state, batch, noise, sigma)
        image = self.shifted(batch.observation[0], noise["shift"])
        gradients, (loss, (h, parts)) = grad_and_value(self.critic_loss, has_aux=True)(
            {name: state[name] for name in self.valued}, image, batch.action[0], y
        )
        changed: dict[str, Tensor] = {}
        for name, gradient in gradients.items():
            changed |= self.optimiser.step(name, state, gradient)[0]
        metrics: Metrics = {"critic_loss": loss, **parts, "target_mean": y.mean(), "target_std": y.std()}
        gradient, loss = grad_and_value(self.actor_loss)(state["actor"], changed, h, noise["action"], sigma)
        stepped, _ = self.optimiser.step("actor", state, gradient)
        online = self.critic.extract(changed["critic"], self.target)
        target = soft_update(state["target_critic"], online, self.config.tau)
        return {**changed, **stepped, "target_critic": target}, {**metrics, "actor_loss": loss}

    # --- schedule

    def schedule(self, progress: Progress) -> dict[str, float]:
        c = self.config
        fraction = min(progress.decisions / c.noise_decisions, 1.0)
        return {"sigma": c.noise_initial + (c.noise_final - c.noise_initial) * fraction}

    def after_decision(self, progress: Progress) -> int:
        before = progress.decisions - 1  # official code updates between choosing an action and taking it
        return int(before >= self.config.warmup_decisions and before % self.config.update_every == 0)

    # --- looking inside

    def latent_width(self) -> int:
        return self.config.feature_dim

    def latent(self, state: State, observation: Tensor) -> Tensor:
        return self.critic(state["critic"]).trunk(self.features(state, observation))

    def hidden(self, state: State, observation: Tensor, action: Tensor) -> list[Tensor]:
        layers: list[Tensor] = []
        h = self.features(state, observation, layers)
        self.values(state, h, action, hidden=layers)
        self.policy(state["actor"], h, layers)
        return layers
