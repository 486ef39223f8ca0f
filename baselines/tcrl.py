"""TCRL: simplified temporal consistency reinforcement learning, model-free (arXiv 2306.09466; spec page tcrl.md).

Symbols: e encoder, pi actor, q critics; a bar is a target network. Section names are those of the spec page;
losses are those of one seed.
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
from iqrl.multi_task import TASK_DIM, TASK_IN_ENCODER, told_the_task
from iqrl.networks import MLP, Adam, BoundNetworks, Network, ParameterGroup, mean_min_max, soft_update
from iqrl.quantisers import FSQ_LEVELS, make_quantiser
from iqrl.redundancy import COVARIANCE, REMEDY, VARIANCE, remedy_loss
from iqrl.returns import n_step

ACTION_LIMIT = 1.0 - 1e-6  # sampled actions are clamped to it


@dataclass(frozen=True)
class Config:
    """Defaults are the released code's, but for target networks, which start as copies (T1)."""

    # latent
    latent_dim: int = setting(50, "l, width of the latent; 100 on hard tasks", low=1, high=65536)
    quantizer: str = setting(
        "none",
        "iQRL's difference: `fsq` gives latents of width l times the channels",
        choices=("none", "fsq", "tanh", "simnorm", "l2"),
    )
    fsq_levels: list[int] = setting([8, 8], "levels of each FSQ channel", **FSQ_LEVELS)
    unsynced_targets: bool = setting(False, "released code: target networks start from weights of their own (T1)")
    # encoder, dynamics and reward
    horizon: int = setting(5, "H, decisions the dynamics are unrolled", low=1, high=100)
    rep_discount: float = setting(0.9, "rho, weight of each further step", low=0.0, high=1.0)
    dyn_mode: str = setting("direct", "next latent: d(z, a), or z + d(z, a)", choices=("direct", "residual"))
    rep_metric: str = setting("cosine", "consistency of prediction and target", choices=("cosine", "mse"))
    consistency_coef: float = setting(1.0, "weight of the consistency loss; 0 turns it off", low=0.0, high=1e6)
    reward_coef: float = setting(1.0, "weight of the reward loss; 0 turns it off", low=0.0, high=1e6)
    loss_limit: float = setting(1e4, "largest loss of one sample", low=0.0, high=1e6)
    mean_gradient: bool = setting(True, "gradient over H steps divided by H")
    weight_decay: float = setting(1e-6, "of encoder, dynamics and reward", low=0.0, high=1.0)
    decay_mode: str = setting("l2", "weight decay in Adam's gradient (l2), or AdamW's", choices=("l2", "decoupled"))
    clip: float = setting(10.0, "largest gradient norm of encoder, dynamics and reward, 0 for none", low=0.0, high=1e6)
    enc_tau: float = setting(0.005, "rate of the target encoder", low=0.0, high=1.0)
    remedy: str = setting("none", **REMEDY)
    remedy_variance: float = setting(0.01, **VARIANCE)
    remedy_covariance: float = setting(0.01, **COVARIANCE)
    # actor and critics
    nstep: int = setting(3, "N of the returns; 1 on humanoid tasks", low=1, high=100)
    discount: float = setting(0.99, "gamma, per decision", low=0.0, high=1.0)
    lr: float = setting(3e-4, "Adam learning rate of every network", low=0.0, high=1.0)
    tau: float = setting(0.005, "rate of the target critics", low=0.0, high=1.0)
    noise_clip: float = setting(0.3, "where the noise of sampled actions is clipped in the losses", low=0.0, high=10.0)
    next_policy: str = setting("online", "actor of the target value", choices=("online", "target"))
    actor_every: int = setting(1, "critic updates per actor update", low=1, high=1000)
    # networks
    mlp_dims: list[int] = setting(
        [512, 512], "hidden widths of all but the encoder; the first is the trunks'", low=1, high=65536
    )
    enc_mlp_dims: list[int] = setting([512, 512], "hidden widths of the encoder", low=1, high=65536)
    task_dim: int = setting(96, **TASK_DIM)
    task_in_encoder: bool = setting(False, **TASK_IN_ENCODER)
    init: str = setting("orthogonal", "weights, or PyTorch's default", choices=("orthogonal", "torch"))
    # data
    batch_size: int = setting(512, "slices in a batch", low=2, high=1_000_000)
    buffer_size: int = setting(10_000_000, "replay capacity, transitions: the whole run's", low=1000, high=10**9)
    utd: float = setting(0.5, "gradient updates per decision", low=0.0, high=100.0)
    warmup_episodes: int = setting(10, "uniform random episodes first, without updates", low=0, high=10**6)
    noise_initial: float = setting(1.0, "sigma, exploration noise, standard deviation, at first", low=0.0, high=10.0)
    noise_final: float = setting(0.1, "and in the end; 0.2 on hard tasks", low=0.0, high=10.0)
    noise_episodes: int = setting(150, "episodes in between; 50 easy, 150 medium, 500 hard tasks", low=1, high=10**6)


# The groups of tcrl.md are not the protocol's.
EASY = """cartpole-balance cartpole-balance-sparse cartpole-swingup cup-catch finger-spin hopper-stand pendulum-swingup
point-mass-easy walker-stand walker-walk""".split()
HARD = ("dog", "humanoid")  # domains


@register("tcrl")
class TCRL(Agent[Config]):
    takes_several_tasks = True  # ours: tcrl.md, "Several tasks"
    presets = {
        "default": {},
        "small": {"mlp_dims": [128, 128], "enc_mlp_dims": [128, 128], "batch_size": 128},
        "tiny": {"latent_dim": 8, "mlp_dims": [16, 16], "enc_mlp_dims": [16, 16], "batch_size": 16},
    }

    @classmethod
    def task_defaults(cls, task: str, group: str) -> dict[str, Any]:
        """Table of groups (tcrl.md, "Loop")."""
        names = [name.split("+")[0] for name in task.split(",")]
        domains = {name.split("-")[0] for name in names}
        if domains & {*HARD}:
            values: dict[str, Any] = {"latent_dim": 100, "noise_final": 0.2, "noise_episodes": 500}
            return values | ({"nstep": 1} if domains == {"humanoid"} else {})
        return {"noise_episodes": 50 if {*names} <= {*EASY} else 150}

    @classmethod
    def validate(cls, config: Config) -> None:
        if not (config.consistency_coef or config.reward_coef):
            raise InputError("agent.consistency_coef=0: nothing trains the encoder; expected reward_coef above 0")
        if config.quantizer == "simnorm" and config.latent_dim % 8:
            raise InputError(f"agent.latent_dim={config.latent_dim}: expected a multiple of 8 with simnorm")

    def __init__(self, config: Config, spec: TaskSpec, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(config, spec, dtype)
        c, o, a = config, spec.feature_dim, spec.action_dim
        self.quantise = make_quantiser(c.quantizer, c.fsq_levels)
        self.width = z = c.latent_dim * (len(c.fsq_levels) if c.quantizer == "fsq" else 1)
        hidden, (first, *rest) = tuple(c.mlp_dims), c.mlp_dims
        plain: dict[str, Any] = {"activation": "elu", "norm": "none", "initialisation": c.init}
        trunk: dict[str, Any] = {"activation": "tanh", "norm": "affine", "initialisation": c.init}

        def told(network: MLP, tasks: int = len(spec.tasks)) -> Network:
            return told_the_task(network, tasks, c.task_dim)

        encoder = told(
            MLP(o, tuple(c.enc_mlp_dims), z, precise_input=True, **plain), len(spec.tasks) if c.task_in_encoder else 0
        )
        dynamics = told(MLP(z + a, hidden, z, **plain))
        reward = told(MLP(z + a, hidden, 1, precise_output=True, **plain))
        head = MLP(first, tuple(rest), a, precise_output=True, **plain)
        heads = MLP(first, tuple(rest), 1, ensemble=2, precise_output=True, **plain)
        self.world = ParameterGroup({"encoder": encoder, "dynamics": dynamics, "reward": reward}, dtype)
        self.target = ParameterGroup({"encoder": encoder}, dtype)
        self.actor = ParameterGroup({"trunk": told(MLP(z, (first,), 0, **trunk)), "head": head}, dtype)
        self.critic = ParameterGroup({"trunk": told(MLP(z + a, (first,), 0, **trunk)), "heads": heads}, dtype)
        decoupled = c.decay_mode == "decoupled"
        self.world_optimiser = Adam(c.lr, weight_decay=c.weight_decay, decoupled=decoupled, clip=c.clip)
        self.optimiser = Adam(c.lr)

    # --- networks

    def encode(self, world: BoundNetworks, observation: Tensor) -> Tensor:
        """z = e(o): (..., O) -> (..., Z)."""
        return self.quantise(self.encoder_output(world, observation))

    def encoder_output(self, world: BoundNetworks, observation: Tensor, hidden: list[Tensor] | None = None) -> Tensor:
        """e(o), which is quantised: (..., O) -> (..., Z)."""
        told = self.told(observation) if self.config.task_in_encoder else ()
        return world.encoder(self.without_task(observation), *told, hidden=hidden)

    # `told` is `self.told(observation)`, what networks are told of the task: nothing where there is one.

    def step(self, world: BoundNetworks, z: Tensor, action: Tensor, *told: Tensor) -> tuple[Tensor, Tensor]:
        """Next latent (..., Z) and reward (...,) after an action."""
        za = torch.cat([z, action], -1)
        following, reward = world.dynamics(za, *told), world.reward(za, *told)[..., 0]
        return self.quantise(z + following if self.config.dyn_mode == "residual" else following), reward

    def policy(self, actor: Tensor, z: Tensor, *told: Tensor) -> Tensor:
        """Mean action, tanh of the actor's output: (B, Z) -> (B, A)."""
        net = self.actor(actor)
        return self.own(torch.tanh(net.head(net.trunk(z, *told))), told)

    def values(self, critic: Tensor, z: Tensor, action: Tensor, *told: Tensor) -> Tensor:
        """q_1(z, a) and q_2(z, a), heads on a shared trunk: (2, B)."""
        net = self.critic(critic)
        return net.heads(net.trunk(z, action, *told))[..., 0]

    def sample(self, actor: Tensor, z: Tensor, sigma: Tensor, noise: Tensor, *told: Tensor) -> Tensor:
        """Action of the truncated normal policy, as the losses use it."""
        limit = self.config.noise_clip
        return self.own(truncate(self.policy(actor, z, *told) + torch.clamp(sigma * noise, -limit, limit)), told)

    def initialise(self, generator: torch.Generator) -> dict[str, Tensor]:
        world, actor, critic = (g.initialise(generator) for g in (self.world, self.actor, self.critic))
        state = {
            **self.world_optimiser.initialise("world", world),
            **self.optimiser.initialise("actor", actor),
            **self.optimiser.initialise("critic", critic),
            "target": self.world.extract(world, self.target),
            "target_critic": critic.clone(),
        }
        if self.config.unsynced_targets:
            state |= {"target": self.target.initialise(generator), "target_critic": self.critic.initialise(generator)}
        return state | ({"target_actor": actor.clone()} if self.config.next_policy == "target" else {})

    # --- acting

    def act(
        self, state: State, carry: Tensors, observation: Tensor, noise: Tensors, schedule: Tensors
    ) -> tuple[Tensor, State]:
        told = self.told(observation)
        action = self.policy(state["actor"], self.latent(state, observation), *told)
        if "action" in noise:
            action = self.own(truncate(action + schedule["sigma"] * noise["action"]), told)
        return action, carry

    def acts_randomly(self, progress: Progress) -> bool:
        return self.rounds(progress) < self.config.warmup_episodes

    # --- losses ("One update")

    def representation_loss(self, world: Tensor, target: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
        """Consistency and reward prediction over an unroll of H steps (step 2), before the division by H."""
        c, net = self.config, self.world(world)
        with torch.no_grad():
            goal = self.encode(self.target(target), batch.observation[1 : c.horizon + 1])
        z, told = self.encode(net, batch.observation[0]), self.told(batch.observation[0])
        remedy = remedy_loss(c, z, net.dynamics)
        latents, rewards = [], []
        for h in range(c.horizon):
            z, reward = self.step(net, z, batch.action[h], *told)
            latents.append(z)
            rewards.append(reward)
        predicted = torch.stack(latents)  # (H, B, Z)
        powers = c.rep_discount ** torch.arange(c.horizon, device=world.device, dtype=batch.reward.dtype)
        weight = powers[:, None] * batch.alive[: c.horizon]  # all of DM Control is alive; the source has no mask
        error = (predicted - goal).square().mean(-1) if c.rep_metric == "mse" else 2.0 - 2.0 * cosine(predicted, goal)
        mistake = (torch.stack(rewards) - batch.reward[: c.horizon]).square()
        consistency, reward = (torch.clamp((weight * e).sum(0), max=c.loss_limit).mean() for e in (error, mistake))
        loss = c.consistency_coef * consistency + c.reward_coef * reward + sum(remedy.values())
        metrics = {"consistency_loss": consistency, "reward_loss": reward, **remedy}
        metrics = {k: v.detach() for k, v in metrics.items()}
        return loss, metrics | mean_min_max("latent", predicted)

    def target_value(self, state: State, batch: Batch, z: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """y (B,): N-step return, sampled action of the online actor, smaller target critic (steps 3 and 4).

        z: (2, B, Z), latents of the slice's first observation and of the one to bootstrap from.
        """
        total, factor, _ = n_step(batch, self.config.nstep, self.config.discount)
        actor = state["target_actor" if self.config.next_policy == "target" else "actor"]
        told = self.told(batch.observation[0])
        q = self.values(state["target_critic"], z[1], self.sample(actor, z[1], sigma, noise, *told), *told)
        return total + factor * q.min(0).values

    def critic_loss(
        self, critic: Tensor, z: Tensor, action: Tensor, y: Tensor, *told: Tensor
    ) -> tuple[Tensor, Metrics]:
        """Mean over the batch of (q_1 - y)^2 + (q_2 - y)^2."""
        q = self.values(critic, z, action, *told)
        return (q - y).square().sum(0).mean(), mean_min_max("q", q)

    def actor_loss(
        self, actor: Tensor, critic: Tensor, z: Tensor, noise: Tensor, sigma: Tensor, *told: Tensor
    ) -> Tensor:
        """-E[min(q_1, q_2)(z, a)] of a sampled action (step 5)."""
        return -self.values(critic, z, self.sample(actor, z, sigma, noise, *told), *told).min(0).values.mean()

    # --- learning

    @property
    def slices(self) -> Slices:
        return Slices(max(self.config.horizon, self.config.nstep), self.config.batch_size)

    def stages(self, update: int) -> tuple[str, ...]:
        return ("update_all",) if update % self.config.actor_every == 0 else ("update_critic",)

    def stage(self, name: str) -> Stage:
        shape = Noise((self.config.batch_size, self.spec.action_dim))
        noise = {"next_action": shape} | ({} if name == "update_critic" else {"action": shape})
        return Stage(noise=noise, parts=("update_critic", "update_actor") if name == "update_all" else ())

    def update_critic(self, state: State, batch: Batch, noise: Tensors, schedule: Tensors) -> Update:
        """Encoder, dynamics and reward; critics; target encoder and target critics."""
        c = self.config
        gradient, (loss, parts) = grad_and_value(self.representation_loss, has_aux=True)(
            state["world"], state["target"], batch
        )
        metrics: Metrics = {"representation_loss": loss, **parts, "sigma": schedule["sigma"]}
        gradient = gradient / c.horizon if c.mean_gradient else gradient  # before the clip, which it therefore changes
        changed, metrics["representation_gradient_norm"] = self.world_optimiser.step("world", state, gradient)
        last = n_step(batch, c.nstep, c.discount)[2]
        z = self.encode(self.world(changed["world"]), torch.stack([batch.observation[0], last]))  # (2, B, Z)
        y = self.target_value(state, batch, z, noise["next_action"], schedule["sigma"])
        gradient, (loss, parts) = grad_and_value(self.critic_loss, has_aux=True)(
            state["critic"], z[0], batch.action[0], y, *self.told(batch.observation[0])
        )
        stepped, _ = self.optimiser.step("critic", state, gradient)
        changed |= stepped
        changed["target"] = soft_update(state["target"], self.world.extract(changed["world"], self.target), c.enc_tau)
        changed["target_critic"] = soft_update(state["target_critic"], changed["critic"], c.tau)
        metrics |= {"critic_loss": loss, **parts, "target_mean": y.mean(), "target_std": y.std()}
        return changed, metrics

    def update_actor(self, state: State, batch: Batch, noise: Tensors, schedule: Tensors) -> Update:
        """The actor, by the encoder and the critics that `update_critic` has just changed."""
        z = self.encode(self.world(state["world"]), batch.observation[0])
        gradient, loss = grad_and_value(self.actor_loss)(
            state["actor"], state["critic"], z, noise["action"], schedule["sigma"], *self.told(batch.observation[0])
        )
        changed, _ = self.optimiser.step("actor", state, gradient)
        if self.config.next_policy == "target":
            changed["target_actor"] = soft_update(state["target_actor"], changed["actor"], self.config.tau)
        return changed, {"actor_loss": loss}

    # --- schedule ("Loop")

    def schedule(self, progress: Progress) -> dict[str, float]:
        """sigma: set by the updates after an episode, so acting uses that of the last episode learned from."""
        c = self.config
        episodes = self.rounds(progress)
        learned = episodes - 1 if episodes > c.warmup_episodes else 0
        return {"sigma": linear(c.noise_initial, c.noise_final, c.noise_episodes, learned)}

    def after_episode(self, progress: Progress, counters: dict[str, float]) -> tuple[int, tuple[str, ...]]:
        if self.rounds(progress) <= self.config.warmup_episodes:
            return 0, ()
        return round(self.config.utd * progress.episode_decisions), ()

    # --- looking inside

    def latent_width(self) -> int:
        return self.width

    def latent(self, state: State, observation: Tensor) -> Tensor:
        return self.encode(self.world(state["world"]), observation)

    def target_latent(self, state: State, observation: Tensor) -> Tensor:
        return self.encode(self.target(state["target"]), observation)

    def predicted_latent(self, state: State, latent: Tensor, action: Tensor, *told: Tensor) -> Tensor:
        return self.step(self.world(state["world"]), latent, action, *told)[0]

    def codes(self, state: State, latent: Tensor) -> tuple[Tensor, int] | None:
        size = self.quantise.codebook_size
        return (self.quantise.indices(latent), size) if size else None

    def hidden(self, state: State, observation: Tensor, action: Tensor) -> list[Tensor]:
        layers: list[Tensor] = []
        world, critic, actor = self.world(state["world"]), self.critic(state["critic"]), self.actor(state["actor"])
        z, told = self.quantise(self.encoder_output(world, observation, layers)), self.told(observation)
        world.dynamics(z, action, *told, hidden=layers)
        critic.heads(critic.trunk(z, action, *told, hidden=layers), hidden=layers)
        actor.head(actor.trunk(z, *told, hidden=layers), hidden=layers)
        return layers


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Cosine of the angle between vectors (..., n), with norms of at least 1e-12."""
    x, y = (v / torch.clamp(torch.linalg.vector_norm(v, dim=-1, keepdim=True), min=1e-12) for v in (x, y))
    return (x * y).sum(-1)


def truncate(action: Tensor) -> Tensor:
    """Clamped to +-(1 - 1e-6); the gradient passes as if it were not (straight through)."""
    return action - action.detach() + torch.clamp(action, -ACTION_LIMIT, ACTION_LIMIT).detach()


def linear(initial: float, final: float, episodes: int, episode: int) -> float:
    """Mix of two values that reaches `final` at episode number `episodes`."""
    mix = min(max(episode / episodes, 0.0), 1.0)
    return (1.0 - mix) * initial + mix * final
