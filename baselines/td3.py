"""TD3 on observations (arXiv 1802.09477; spec page td3.md).

Two profiles: `protocol`, iQRL's inner TD3 on raw observations, isolates what a representation adds and is the
default; `official` is the reference implementation. Losses are those of one seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value

from iqrl.agent import Agent, Batch, Metrics, Noise, Progress, Slices, Stage, State, Tensors, Update, register, setting
from iqrl.environments.tasks import TaskSpec
from iqrl.errors import InputError
from iqrl.networks import MLP, Adam, ParameterGroup, mean_min_max, soft_update
from iqrl.returns import n_step
from iqrl.schedules import EXPLORATION_EPISODES, linear_by_episode


@dataclass(frozen=True)
class Config:
    """Defaults are those of the profile `protocol` (td3.md, table of profiles)."""

    profile: str = setting("protocol", "protocol or official")
    # networks
    mlp_dims: list[int] = setting([512, 512], "hidden widths; official [256, 256]", low=1, high=65536)
    activation: str = setting("mish", "of hidden layers; official relu", choices=("mish", "relu"))
    norm: str = setting("affine", "layer normalisation in hidden layers", choices=("affine", "none"))
    init: str = setting("orthogonal", "weights; official torch", choices=("orthogonal", "torch"))
    # losses
    discount: float = setting(0.99, "gamma, per decision", low=0.0, high=1.0)
    nstep: int = setting(1, "N of the returns", low=1, high=100)
    lr: float = setting(3e-4, "Adam learning rate of actor and critics", low=0.0, high=1.0)
    tau: float = setting(0.005, "rate of the target networks", low=0.0, high=1.0)
    policy_noise: float = setting(0.2, "target policy smoothing, standard deviation", low=0.0, high=10.0)
    noise_clip: float = setting(0.3, "and where it is clipped; official 0.5", low=0.0, high=10.0)
    actor_every: int = setting(2, "critic updates per actor update", low=1, high=1000)
    actor_q: str = setting(
        "min", "critic in the actor's loss: min of both, or the first (official)", choices=("min", "q1")
    )
    target_delay: str = setting(
        "actor",
        "what waits for the actor's update: its target alone, or all targets (official)",
        choices=("actor", "all"),
    )
    # data
    batch_size: int = setting(256, "transitions in a batch", low=2, high=1_000_000)
    buffer_size: int = setting(1_000_000, "replay capacity, transitions", low=1000, high=10**9)
    schedule: str = setting(
        "episode", "updates after each episode, or at each decision (official)", choices=("episode", "decision")
    )
    utd: float = setting(1.0, "gradient updates per decision; whole with schedule=decision", low=0.0, high=100.0)
    warmup_decisions: int = setting(
        5_000, "uniform random decisions first, without updates; official 25 000", low=0, high=10**9
    )
    noise_initial: float = setting(
        1.0, "exploration noise, standard deviation, at first; official 0.1", low=0.0, high=10.0
    )
    noise_final: float = setting(0.1, "and in the end", low=0.0, high=10.0)
    noise_episodes: int = setting(150, "episodes in between; 50 easy, 150 medium, 500 hard tasks", low=1, high=10**6)


@register("td3")
class TD3(Agent[Config]):
    profiles = {
        "protocol": {},
        "official": {
            "mlp_dims": [256, 256],
            "activation": "relu",
            "norm": "none",
            "init": "torch",
            "noise_clip": 0.5,
            "actor_q": "q1",
            "target_delay": "all",
            "schedule": "decision",
            "warmup_decisions": 25_000,
            "noise_initial": 0.1,
            "noise_final": 0.1,
        },
    }
    presets = {
        "default": {},
        "small": {"mlp_dims": [128, 128], "batch_size": 128},
        "tiny": {"mlp_dims": [16, 16], "batch_size": 16},
    }

    @classmethod
    def task_defaults(cls, task: str, group: str) -> dict[str, Any]:
        return {"noise_episodes": EXPLORATION_EPISODES[group]}

    @classmethod
    def validate(cls, config: Config) -> None:
        if config.schedule == "decision" and config.utd != int(config.utd):
            raise InputError(f"agent.utd={config.utd:g}: expected a whole number with agent.schedule=decision")

    def __init__(self, config: Config, spec: TaskSpec, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(config, spec, dtype)
        o, a = spec.observation_dim, spec.action_dim
        style: dict[str, Any] = {
            "hidden": tuple(config.mlp_dims),
            "activation": config.activation,
            "norm": config.norm,
            "initialisation": config.init,
            "precise_input": True,
            "precise_output": True,
        }
        self.actor = ParameterGroup({"actor": MLP(inputs=o, outputs=a, **style)}, dtype)
        self.critic = ParameterGroup({"critic": MLP(inputs=o + a, outputs=1, ensemble=2, **style)}, dtype)
        self.optimiser = Adam(config.lr)

    def policy(self, actor: Tensor, observation: Tensor) -> Tensor:
        """pi(s) in [-1, 1]: (B, O) -> (B, A)."""
        return torch.tanh(self.actor(actor).actor(observation))

    def values(self, critic: Tensor, observation: Tensor, action: Tensor) -> Tensor:
        """q_1(s, a) and q_2(s, a): (2, B)."""
        return self.critic(critic).critic(observation, action)[..., 0]

    def initialise(self, generator: torch.Generator) -> dict[str, Tensor]:
        actor, critic = self.actor.initialise(generator), self.critic.initialise(generator)
        return {
            **self.optimiser.initialise("actor", actor),
            **self.optimiser.initialise("critic", critic),
            "target_actor": actor.clone(),
            "target_critic": critic.clone(),
        }

    # --- acting

    def act(
        self, state: State, carry: Tensors, observation: Tensor, noise: Tensors, schedule: Tensors
    ) -> tuple[Tensor, Tensors]:
        action = self.policy(state["actor"], observation)
        if "action" in noise:
            action = torch.clamp(action + schedule["sigma"] * noise["action"], -1.0, 1.0)
        return action, carry

    def acts_randomly(self, progress: Progress) -> bool:
        return progress.decisions < self.config.warmup_decisions

    # --- losses (td3.md, "One update")

    def target_value(self, state: State, batch: Batch, noise: Tensors) -> Tensor:
        """y (B,): return, smoothed target policy, smaller target critic."""
        c = self.config
        total, factor, last = n_step(batch, c.nstep, c.discount)
        smoothing = torch.clamp(c.policy_noise * noise["smoothing"], -c.noise_clip, c.noise_clip)
        action = torch.clamp(self.policy(state["target_actor"], last) + smoothing, -1.0, 1.0)
        return total + factor * self.values(state["target_critic"], last, action).min(0).values

    def critic_loss(self, critic: Tensor, batch: Batch, y: Tensor) -> tuple[Tensor, Metrics]:
        """MSE of the first critic plus MSE of the second."""
        q = self.values(critic, batch.observation[0], batch.action[0])
        return (q - y).square().mean(-1).sum(), mean_min_max("q", q)

    def actor_loss(self, actor: Tensor, critic: Tensor, observation: Tensor) -> Tensor:
        q = self.values(critic, observation, self.policy(actor, observation))
        return -(q.min(0).values if self.config.actor_q == "min" else q[0]).mean()

    # --- learning

    @property
    def slices(self) -> Slices:
        return Slices(self.config.nstep, self.config.batch_size)

    def stages(self, update: int) -> tuple[str, ...]:
        return ("update_all",) if update % self.config.actor_every == 0 else ("update_critic",)

    def stage(self, name: str) -> Stage:
        noise = {"smoothing": Noise((self.config.batch_size, self.spec.action_dim))}
        return Stage(noise=noise, parts=("update_critic", "update_actor") if name == "update_all" else ())

    def update_critic(self, state: State, batch: Batch, noise: Tensors, schedule: Tensors) -> Update:
        """Both critics, and their targets unless those wait for the actor."""
        y = self.target_value(state, batch, noise)
        gradient, (loss, parts) = grad_and_value(self.critic_loss, has_aux=True)(state["critic"], batch, y)
        changed, _ = self.optimiser.step("critic", state, gradient)
        if self.config.target_delay == "actor":
            changed["target_critic"] = soft_update(state["target_critic"], changed["critic"], self.config.tau)
        return changed, {"critic_loss": loss, **parts, "target_mean": y.mean(), "target_std": y.std()}

    def update_actor(self, state: State, batch: Batch, noise: Tensors, schedule: Tensors) -> Update:
        """The actor, by the critics that `update_critic` has just changed, and every target that waited for it."""
        gradient, loss = grad_and_value(self.actor_loss)(state["actor"], state["critic"], batch.observation[0])
        changed, _ = self.optimiser.step("actor", state, gradient)
        changed["target_actor"] = soft_update(state["target_actor"], changed["actor"], self.config.tau)
        if self.config.target_delay == "all":
            changed["target_critic"] = soft_update(state["target_critic"], state["critic"], self.config.tau)
        return changed, {"actor_loss": loss}

    # --- schedule

    def schedule(self, progress: Progress) -> dict[str, float]:
        c = self.config
        first = c.warmup_decisions // self.spec.episode_decisions  # episode that begins to learn
        index = progress.episodes - first
        return {"sigma": linear_by_episode(c.noise_initial, c.noise_final, c.noise_episodes, index)}

    def after_decision(self, progress: Progress) -> int:
        c = self.config
        return int(c.utd) if c.schedule == "decision" and progress.decisions > c.warmup_decisions else 0

    def after_episode(self, progress: Progress, counters: dict[str, float]) -> tuple[int, tuple[str, ...]]:
        c = self.config
        if c.schedule == "decision" or progress.decisions <= c.warmup_decisions:
            return 0, ()
        return round(c.utd * progress.episode_decisions), ()

    # --- looking inside

    def hidden(self, state: State, observation: Tensor, action: Tensor) -> list[Tensor]:
        layers: list[Tensor] = []
        self.critic(state["critic"]).critic(observation, action, hidden=layers)
        self.actor(state["actor"]).actor(observation, hidden=layers)
        return layers
