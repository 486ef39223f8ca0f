"""iQRL: implicitly quantised representations, and TD3 on top (arXiv 2406.02696; spec page iqrl.md).

Symbols: e encoder, f quantiser, d dynamics, pi actor, q critics; a bar is a target network. Latents are
flat vectors of width Z = d c for d latent dimensions of c channels. Losses are those of one seed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value

from iqrl.agent import Agent, Batch, Metrics, Noise, Progress, Slices, Stage, State, Tensors, Update, register, setting
from iqrl.consistency import consistency, step_weights
from iqrl.environments.tasks import TaskSpec
from iqrl.errors import InputError
from iqrl.images import Convolutions, ImageEncoder, shift_noise, shifted
from iqrl.multi_task import TASK_DIM, TASK_IN_ENCODER, own_mean, told_the_task
from iqrl.networks import MLP, Adam, BoundNetworks, Network, ParameterGroup, mean_min_max, soft_update
from iqrl.quantisers import FSQ_LEVELS, VQ, make_quantiser
from iqrl.redundancy import COVARIANCE, REMEDY, VARIANCE, remedy_loss
from iqrl.returns import n_step, n_step_iqrl_released
from iqrl.schedules import EXPLORATION_EPISODES, linear_by_episode

Loss = tuple[Tensor, Metrics]


@dataclass(frozen=True)
class Config:
    """Defaults follow the paper and, where that is silent, the released code (iqrl.md sections 5 and 8)."""

    profile: str = setting("default", "default, or `released` for the released code's behaviour (iqrl.md section 8)")
    # latent
    quantizer: str = setting("fsq", "makes codes of latents", choices=("fsq", "vq", "none", "tanh", "simnorm", "l2"))
    fsq_levels: list[int] = setting([8, 8], "levels of each FSQ channel; their number is c", **FSQ_LEVELS)
    vq_codes: int = setting(64, "size of the codebook of `vq`, with a channel for each level", low=2, high=65536)
    vq_beta: float = setting(0.25, "weight of its commitment loss", low=0.0)
    vq_decay: float = setting(0.99, "of the moving averages behind it", low=0.0, high=1.0)
    latent_dim: int = setting(512, "d, latent dimensions; 1024 on dog and humanoid", low=1, high=65536)
    nofsq_width: str = setting("equal", "Z without a quantiser: `equal` to d c, or d", choices=("equal", "latent_dim"))
    # representation (section 3)
    horizon: int = setting(5, "H, decisions the dynamics are unrolled", low=1, high=100)
    rep_discount: float = setting(0.9, "rho, weight of each further step", low=0.0, high=1.0)
    rep_metric: str = setting("cosine", "consistency of prediction and target", choices=("cosine", "mse"))
    rep_cos_sign: int = setting(1, "of the cosine in the loss (Q1); -1 makes predictions like targets", choices=(-1, 1))
    rep_reduction: str = setting("mean", "over the horizon (Q6)", choices=("mean", "sum"))
    mask_mode: str = setting("after_end", "steps that count (Q5)", choices=("after_end", "released", "minimal", "none"))
    use_tc: bool = setting(True, "temporal consistency loss")
    dyn_mode: str = setting(
        "residual", "next latent: f(z + d), f(d), or z + f(d) (Q15)", choices=("residual", "direct", "increment")
    )
    use_projection: bool = setting(False, "compare in a projected space; on for fish tasks in the released code")
    projection_dim: int = setting(0, "width of the projection; 0 means Z / 16 (Q20)", low=0, high=65536)
    use_reward: bool = setting(False, "reward head")
    released_reward_align: bool = setting(False, "reward predicted from the next latent (Q12)")
    use_decoder: bool = setting(False, "reconstruct observations")
    enc_grad_from: str = setting("rep", "what trains the encoder (Q11)", choices=("rep", "td", "both"))
    enc_lr: float = setting(1e-4, "AdamW learning rate of the representation", low=0.0, high=1.0)
    enc_weight_decay: float = setting(0.01, "AdamW weight decay of the representation (Q25)", low=0.0, high=1.0)
    enc_tau: float = setting(0.005, "rate of the target encoder; 1 is no momentum (Q19)", low=0.0, high=1.0)
    enc_clip: float = setting(20.0, "largest gradient norm of the representation, 0 for none", low=0.0, high=1e6)
    freeze_encoder: bool = setting(False, "the representation stays as it is at the start (section 9, transfer)")
    init_from: str = setting("", "run directory whose final representation this run starts with (section 9, transfer)")
    remedy: str = setting("none", **REMEDY)
    remedy_variance: float = setting(0.01, **VARIANCE)
    remedy_covariance: float = setting(0.01, **COVARIANCE)
    # actor and critics (section 4)
    nstep: int = setting(1, "N of the returns; 3 on several tasks", low=1, high=100)
    released_nstep: bool = setting(False, "released code's returns (Q2, Q3)")
    discount: float = setting(0.99, "gamma, per decision", low=0.0, high=1.0)
    num_critics: int = setting(2, "critics", low=1, high=100)
    q_sample: int = setting(0, "critics drawn for target and actor; 0 means all (Q8)", low=0, high=100)
    actor_q: str = setting("min", "over the critics in the actor's loss", choices=("min", "avg"))
    td_encoder: str = setting("online", "encoder of the critics' inputs (Q9)", choices=("online", "ema"))
    lr: float = setting(3e-4, "Adam learning rate of actor and critics", low=0.0, high=1.0)
    tau: float = setting(0.005, "rate of the target actor and critics", low=0.0, high=1.0)
    policy_noise: float = setting(0.2, "target policy smoothing, standard deviation", low=0.0, high=10.0)
    noise_clip: float = setting(0.3, "and where it is clipped", low=0.0, high=10.0)
    actor_every: int = setting(2, "critic updates per actor update", low=1, high=1000)
    # networks (section 1)
    mlp_dims: list[int] = setting([512, 512], "hidden widths of all but the encoder", low=1, high=65536)
    enc_mlp_dims: list[int] = setting([256], "hidden widths of the encoder", low=1, high=65536)
    task_dim: int = setting(96, **TASK_DIM)
    task_in_encoder: bool = setting(False, **TASK_IN_ENCODER)
    pad: int = setting(4, "largest random shift of images, pixels", low=0, high=64, omit_default_from_identity=True)
    init: str = setting("torch", "PyTorch's default, or orthogonal (Q7)", choices=("torch", "orthogonal"))
    # data (section 5)
    batch_size: int = setting(256, "slices in a batch", low=2, high=1_000_000)
    buffer_size: int = setting(1_000_000, "replay capacity, transitions", low=1000, high=10**9)
    cross_episode_slices: bool = setting(False, "slices may cross episodes (Q4)")
    utd: float = setting(1.0, "gradient updates per decision (Q14)", low=0.0, high=100.0)
    warmup_episodes: int = setting(10, "episodes before the first update", low=0, high=10**6)
    warmup: str = setting("uniform", "actions before it (Q13)", choices=("uniform", "policy"))
    noise_initial: float = setting(1.0, "exploration noise, standard deviation, at first", low=0.0, high=10.0)
    noise_final: float = setting(0.1, "and in the end", low=0.0, high=10.0)
    noise_episodes: int = setting(150, "episodes in between; 50 easy, 150 medium, 500 hard tasks", low=1, high=10**6)


@register("iqrl")
class IQRL(Agent[Config]):
    sees_images = True  # ours: section 11
    takes_several_tasks = True  # ours: section 12
    profiles = {
        "default": {},
        "corrected": {"rep_cos_sign": -1},  # predictions like their targets, as the text of the early draft has it
        "released": {  # iqrl.md section 8, last line
            "released_nstep": True, "cross_episode_slices": True, "mask_mode": "released", "num_critics": 5,
            "q_sample": 2, "actor_q": "avg", "released_reward_align": True, "warmup": "policy",
        },
    }  # fmt: skip
    presets = {
        "default": {},
        "small": {"latent_dim": 64, "mlp_dims": [128, 128], "enc_mlp_dims": [128], "batch_size": 128},
        "tiny": {"latent_dim": 8, "mlp_dims": [16, 16], "enc_mlp_dims": [16], "batch_size": 16},
    }

    @classmethod
    def task_defaults(cls, task: str, group: str) -> dict[str, Any]:
        """Per-task settings of the released code (iqrl.md section 5)."""
        domains = {name.split("-")[0] for name in task.split(",")}
        values: dict[str, Any] = {"noise_episodes": EXPLORATION_EPISODES[group]}
        if domains & {"dog", "humanoid"}:
            values["latent_dim"] = 1024
        if domains <= {"acrobot", "fish", "reacher", "dog"}:
            values["nstep"] = 3
        if domains == {"fish"}:
            values["use_projection"] = True
        if domains == {"acrobot"}:
            values["enc_tau"] = 0.0005
        return values

    @classmethod
    def validate(cls, config: Config) -> None:
        c = config
        if c.q_sample > c.num_critics:
            raise InputError(f"agent.q_sample={c.q_sample}: expected at most agent.num_critics={c.num_critics}")
        if c.quantizer == "simnorm" and c.latent_dim * len(c.fsq_levels) % 8:
            raise InputError("agent.quantizer=simnorm: expected a latent width that is a multiple of 8")
        if not (c.use_tc or c.use_reward or c.use_decoder or c.enc_grad_from != "rep"):
            raise InputError(
                "agent.use_tc=false: nothing trains the encoder; expected use_reward, use_decoder or enc_grad_from=td"
            )

    def __init__(self, config: Config, spec: TaskSpec, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(config, spec, dtype)
        c, o, a, tasks = config, spec.feature_dim, spec.action_dim, len(spec.tasks)
        self.quantise = make_quantiser(c.quantizer, c.fsq_levels, c.vq_codes, c.vq_beta, c.vq_decay)
        narrow = c.quantizer == "none" and c.nofsq_width == "latent_dim"
        self.width = z = c.latent_dim if narrow else c.latent_dim * len(c.fsq_levels)  # Z

        def network(inputs: int, outputs: int, told: bool = True, **more: Any) -> Network:
            mlp = MLP(inputs, tuple(c.mlp_dims), outputs, initialisation=c.init, **more)
            return told_the_task(mlp, tasks if told else 0, c.task_dim)

        mlp = MLP(o, tuple(c.enc_mlp_dims), z, initialisation=c.init, precise_input=True)
        encoder = told_the_task(mlp, tasks if c.task_in_encoder else 0, c.task_dim)
        self.images = spec.frame_shape is not None
        if self.images:
            if c.use_decoder:
                raise InputError(f"agent.use_decoder=true: reconstructs states; {spec.name} is observed as images")
            convolutions = Convolutions(spec.image_shape, 32, (2, 2, 2, 1), "mish")
            encoder = ImageEncoder(convolutions, replace(mlp, inputs=convolutions.outputs, precise_input=False))
        world: dict[str, Network] = {"encoder": encoder}
        if c.use_projection:
            world["projection"] = network(z, c.projection_dim or max(1, z // 16), told=False)
        self.target = ParameterGroup(dict(world), dtype)
        world["dynamics"] = network(z + a, z)
        if c.use_reward:
            world["reward"] = network(z + a, 1, precise_output=True)
        if c.use_decoder:
            world["decoder"] = network(z, o, told=False)
        self.world = ParameterGroup(world, dtype)
        self.actor = ParameterGroup({"actor": network(z, a, precise_output=True)}, dtype)
        self.critic = ParameterGroup({"critic": network(z + a, 1, ensemble=c.num_critics, precise_output=True)}, dtype)
        self.world_optimiser = Adam(c.enc_lr, weight_decay=c.enc_weight_decay, clip=c.enc_clip)
        self.optimiser = Adam(c.lr)

    # --- networks

    # `codebook` is that of a learned quantiser (vq), state["codebook"], and None for the others. `world` is the
    # representation's networks with their parameters, self.world(state["world"]), or the target encoder's.
    # `told` is `self.told(observation)`, what networks are told of the task: nothing where there is one.

    def encode(self, world: BoundNetworks, observation: Tensor, codebook: Tensor | None = None) -> Tensor:
        """z = f(e(o)): (..., O) -> (..., Z)."""
        return self.quantise(self.encoder_output(world, observation), codebook)

    def encoder_output(self, world: BoundNetworks, observation: Tensor, hidden: list[Tensor] | None = None) -> Tensor:
        """e(o), which is quantised: (..., O) -> (..., Z)."""
        told = self.told(observation) if self.config.task_in_encoder else ()
        return world.encoder(self.without_task(observation), *told, hidden=hidden)

    def propose(self, world: BoundNetworks, z: Tensor, action: Tensor, *told: Tensor) -> Tensor:
        """What the dynamics hand to the quantiser: z + d(z, a), or d(z, a)."""
        change = world.dynamics(z, action, *told)
        return z + change if self.config.dyn_mode == "residual" else change

    def step(
        self, world: BoundNetworks, z: Tensor, action: Tensor, codebook: Tensor | None = None, *told: Tensor
    ) -> Tensor:
        """Next latent by the dynamics; quantised at every step (section 3, 2)."""
        code = self.quantise(self.propose(world, z, action, *told), codebook)
        return z + code if self.config.dyn_mode == "increment" else code

    def policy(self, actor: Tensor, z: Tensor, *told: Tensor) -> Tensor:
        """pi(z) in [-1, 1]: (B, Z) -> (B, A)."""
        return self.own(torch.tanh(self.actor(actor).actor(z, *told)), told)

    def values(self, critic: Tensor, z: Tensor, action: Tensor, draw: Tensor | None = None, *told: Tensor) -> Tensor:
        """q_k(z, a): (K, B), or of those that uniform numbers (K,) draw, (q_sample, B)."""
        return self.critic(critic).critic.drawn(draw, self.config.q_sample)(z, action, *told)[..., 0]

    def initialise(self, generator: torch.Generator) -> dict[str, Tensor]:
        world, actor, critic = (g.initialise(generator) for g in (self.world, self.actor, self.critic))
        return {
            **self.world_optimiser.initialise("world", world),
            **self.optimiser.initialise("actor", actor),
            **self.optimiser.initialise("critic", critic),
            "target": self.world.extract(world, self.target),
            "target_actor": actor.clone(),
            "target_critic": critic.clone(),
            **self.quantise.initialise(generator),
        }

    def start_from(self, state: State, source: State) -> dict[str, Tensor]:
        """The representation, its target encoder and codebook; actor, critics and optimisers start anew (section 9)."""
        return {k: v for k, v in source.items() if k in ("world", "target") or k.split("/")[0] == "codebook"}

    # --- acting

    def act(
        self, state: State, carry: Tensors, observation: Tensor, noise: Tensors, schedule: Tensors
    ) -> tuple[Tensor, Tensors]:
        told = self.told(observation)
        action = self.policy(state["actor"], self.latent(state, observation), *told)
        if "action" in noise:
            action = self.own(torch.clamp(action + schedule["sigma"] * noise["action"], -1.0, 1.0), told)
        return action, carry

    def acts_randomly(self, progress: Progress) -> bool:
        return self.config.warmup == "uniform" and self.rounds(progress) < self.config.warmup_episodes

    # --- losses

    def representation_loss(self, world: Tensor, target: Tensor, batch: Batch, codebook: Tensor | None = None) -> Loss:
        """L_rep (section 3) and its optional terms, over one unroll of H steps."""
        c, net, bar = self.config, self.world(world), self.target(target)
        weight, told = step_weights(c, batch), self.told(batch.observation[0])  # (H, B); (B, N)
        metrics: Metrics = {}
        with torch.no_grad():
            goal = self.encode(bar, batch.observation[1 : c.horizon + 1], codebook)  # z-bar_1..H
            goal = bar.projection(goal) if c.use_projection else goal
        latents = [self.encode(net, batch.observation[0], codebook)]
        for h in range(c.horizon):
            latents.append(self.step(net, latents[h], batch.action[h], codebook, *told))
        predicted = torch.stack(latents[1:])  # (H, B, Z)
        if c.use_tc:
            compared = net.projection(predicted) if c.use_projection else predicted
            error = consistency(compared, goal, c.rep_metric, c.rep_cos_sign)  # (H, B)
            metrics["consistency_loss"] = (weight * error).mean(1).sum()
        if c.use_reward:
            source = predicted if c.released_reward_align else torch.stack(latents[:-1])
            guess = net.reward(source, batch.action[: c.horizon], *self.told(batch.observation[: c.horizon]))[..., 0]
            metrics["reward_loss"] = (weight * (guess - batch.reward[: c.horizon]) ** 2).mean(1).sum()
        if c.use_decoder:
            observed = batch.observation[: c.horizon]
            source = torch.stack(latents[:-1]) if c.use_tc else self.encode(net, observed, codebook)
            error = (net.decoder(source) - self.without_task(observed)).square()
            error = own_mean(error, [task.observation_dim for task in self.spec.tasks], self.told(observed))
            metrics["reconstruction_loss"] = (weight * error).mean(1).sum()
        if isinstance(self.quantise, VQ):
            met = [self.encoder_output(net, batch.observation[0])]  # all that was quantised above
            met += [self.propose(net, latents[h], batch.action[h], *told) for h in range(c.horizon)]
            committed = [self.quantise.commitment(x, self.quantise(x, codebook)).mean() for x in met]
            metrics["commitment_loss"] = torch.stack(committed).mean()
        metrics |= remedy_loss(c, latents[0], net.dynamics)
        loss = sum(metrics.values(), torch.zeros((), device=world.device))
        return loss, {k: v.detach() for k, v in metrics.items()} | mean_min_max("latent", predicted)

    def target_value(self, state: State, batch: Batch, world: BoundNetworks, noise: Tensors) -> Tensor:
        """y (B,): N-step return, smoothed target policy, smallest target critic (section 4)."""
        c = self.config
        total, factor, last = (n_step_iqrl_released if c.released_nstep else n_step)(batch, c.nstep, c.discount)
        z, told = self.encode(world, last, state.get("codebook")), self.told(last)
        smoothing = torch.clamp(c.policy_noise * noise["smoothing"], -c.noise_clip, c.noise_clip)
        action = self.own(torch.clamp(self.policy(state["target_actor"], z, *told) + smoothing, -1.0, 1.0), told)
        q = self.values(state["target_critic"], z, action, noise.get("target_critics"), *told)
        return total + factor * q.min(0).values

    def critic_loss(self, critic: Tensor, z: Tensor, action: Tensor, y: Tensor, *told: Tensor) -> Loss:
        """Mean over critics and batch of (q_k(z, a) - y)^2."""
        q = self.values(critic, z, action, None, *told)
        return (q - y).square().mean(), mean_min_max("q", q)

    def actor_loss(self, actor: Tensor, critic: Tensor, z: Tensor, noise: Tensor | None, *told: Tensor) -> Tensor:
        """-E[min_k q_k(z, pi(z))], or the mean of the critics drawn."""
        q = self.values(critic, z, self.policy(actor, z, *told), noise, *told)
        return -(q.min(0).values if self.config.actor_q == "min" else q.mean(0)).mean()

    # --- learning

    @property
    def slices(self) -> Slices:
        c = self.config
        return Slices(max(c.horizon, c.nstep), c.batch_size, cross_episodes=c.cross_episode_slices)

    def stages(self, update: int) -> tuple[str, ...]:
        return ("update_all",) if update % self.config.actor_every == 0 else ("update_critic",)

    def stage(self, name: str) -> Stage:
        c = self.config
        noise = {"smoothing": Noise((c.batch_size, self.spec.action_dim))}
        if self.images:
            noise["shift"] = shift_noise(self.slices)
        if 0 < c.q_sample < c.num_critics:
            noise |= dict.fromkeys(("target_critics", "actor_critics"), Noise((c.num_critics,), "uniform"))
        return Stage(noise=noise, parts=("update_critic", "update_actor") if name == "update_all" else ())

    def update_critic(self, state: State, batch: Batch, noise: Tensors, schedule: Tensors) -> Update:
        """Representation, target encoder, critics, target critics."""
        c, batch = self.config, shifted(batch, noise, self.config.pad)
        changed, metrics = ({}, {}) if c.freeze_encoder else self._update_representation(state, batch, noise)
        now = {**state, **changed}
        world = self._td_world(now)
        z = self.encode(world, batch.observation[0], now.get("codebook"))
        y = self.target_value(now, batch, world, noise)
        gradient, (loss, parts) = grad_and_value(self.critic_loss, has_aux=True)(
            state["critic"], z, batch.action[0], y, *self.told(batch.observation[0])
        )
        stepped, _ = self.optimiser.step("critic", state, gradient)
        changed |= stepped
        changed["target_critic"] = soft_update(state["target_critic"], stepped["critic"], c.tau)
        metrics |= {"critic_loss": loss, **parts, "target_mean": y.mean(), "target_std": y.std()}
        return changed, metrics

    def update_actor(self, state: State, batch: Batch, noise: Tensors, schedule: Tensors) -> Update:
        """Actor and target actor, by the encoder and the critics that `update_critic` has just changed."""
        batch = shifted(batch, noise, self.config.pad)
        z = self.encode(self._td_world(state), batch.observation[0], state.get("codebook"))
        draw, told = noise.get("actor_critics"), self.told(batch.observation[0])
        gradient, loss = grad_and_value(self.actor_loss)(state["actor"], state["critic"], z, draw, *told)
        changed, _ = self.optimiser.step("actor", state, gradient)
        changed["target_actor"] = soft_update(state["target_actor"], changed["actor"], self.config.tau)
        return changed, {"actor_loss": loss}

    def _update_representation(self, state: State, batch: Batch, noise: Tensors) -> Update:
        c = self.config
        metrics: Metrics = {}
        gradient = torch.zeros_like(state["world"])
        if c.enc_grad_from != "td":
            gradient, (loss, parts) = grad_and_value(self.representation_loss, has_aux=True)(
                state["world"], state["target"], batch, state.get("codebook")
            )
            metrics |= {"representation_loss": loss, **parts}
        if c.enc_grad_from != "rep":
            gradient = gradient + self._td_gradient(state, batch, noise)
        changed, metrics["representation_gradient_norm"] = self.world_optimiser.step("world", state, gradient)
        changed["target"] = soft_update(state["target"], self.world.extract(changed["world"], self.target), c.enc_tau)
        if isinstance(self.quantise, VQ):  # the codebook follows the encoder's latents of the whole slice
            world, seen = self.world(state["world"]), batch.observation[: c.horizon + 1]
            changed |= self.quantise.learn(state, [self.encoder_output(world, o) for o in seen])
        return changed, metrics

    def _td_world(self, state: State) -> BoundNetworks:
        """Networks whose encoder the critics' inputs are of."""
        return self.target(state["target"]) if self.config.td_encoder == "ema" else self.world(state["world"])

    def _td_gradient(self, state: State, batch: Batch, noise: Tensors) -> Tensor:
        """Gradient of the critic loss to the encoder, through the online z alone (section 9, end-to-end)."""
        y = self.target_value(state, batch, self._td_world(state), noise)

        def loss(world: Tensor) -> Tensor:
            z = self.encode(self.world(world), batch.observation[0], state.get("codebook"))
            return self.critic_loss(state["critic"], z, batch.action[0], y, *self.told(batch.observation[0]))[0]

        return torch.func.grad(loss)(state["world"])

    # --- schedule

    def schedule(self, progress: Progress) -> dict[str, float]:
        c = self.config
        index = self.rounds(progress) - c.warmup_episodes
        return {"sigma": linear_by_episode(c.noise_initial, c.noise_final, c.noise_episodes, index)}

    def after_episode(self, progress: Progress, counters: dict[str, float]) -> tuple[int, tuple[str, ...]]:
        learns = self.rounds(progress) > self.config.warmup_episodes
        return round(self.config.utd * progress.episode_decisions) if learns else 0, ()

    # --- looking inside

    def latent_width(self) -> int:
        return self.width

    def latent(self, state: State, observation: Tensor) -> Tensor:
        return self.encode(self.world(state["world"]), observation, state.get("codebook"))

    def target_latent(self, state: State, observation: Tensor) -> Tensor:
        return self.encode(self.target(state["target"]), observation, state.get("codebook"))

    def predicted_latent(self, state: State, latent: Tensor, action: Tensor, *told: Tensor) -> Tensor:
        return self.step(self.world(state["world"]), latent, action, state.get("codebook"), *told)

    def codes(self, state: State, latent: Tensor) -> tuple[Tensor, int] | None:
        size = self.quantise.codebook_size
        return (self.quantise.indices(latent, state.get("codebook")), size) if size else None

    def hidden(self, state: State, observation: Tensor, action: Tensor) -> list[Tensor]:
        layers: list[Tensor] = []
        world, told = self.world(state["world"]), self.told(observation)
        z = self.quantise(self.encoder_output(world, observation, layers), state.get("codebook"))
        world.dynamics(z, action, *told, hidden=layers)
        self.critic(state["critic"]).critic(z, action, *told, hidden=layers)
        self.actor(state["actor"]).actor(z, *told, hidden=layers)
        return layers
