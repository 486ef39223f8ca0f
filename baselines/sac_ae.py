"""SAC+AE: soft actor-critic whose encoder also learns to reconstruct images (arXiv 1910.01741; spec page sac_ae.md).

Symbols: h = f(o), convolutional features, or the observation itself where it is a vector; z, what the critic's trunk
makes of h, and the decoder's input; alpha, the temperature; a bar is a target network. The actor has a trunk of its own
on the critic's h, and sends no gradient to it. From states this is plain SAC. Losses are those of one seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad_and_value

from iqrl import counter_random
from iqrl.agent import Agent, Batch, Metrics, Noise, Progress, Slices, Stage, State, Tensors, Update, register, setting
from iqrl.environments.tasks import TaskSpec
from iqrl.errors import InputError
from iqrl.images import Convolutions, TransposedConvolutions
from iqrl.networks import MLP, Adam, ParameterGroup, Parameters, mean_min_max, soft_update

LEVELS = 32  # grey levels that a reconstruction aims at, of 256
RECONSTRUCTION = "encoder/reconstruction"  # entries of the optimiser that the encoder has for this loss


@dataclass(frozen=True)
class Config:
    """Defaults are those of the official training script (table at the end of sac_ae.md)."""

    # networks
    filters: int = setting(32, "of each of the four convolutions", low=1, high=4096)
    feature_dim: int = setting(50, "width of z", low=1, high=65536)
    hidden_dim: int = setting(1024, "hidden width of actor and critics", low=1, high=65536)
    log_std_min: float = setting(-10.0, "least log of the policy's standard deviation", low=-100.0, high=100.0)
    log_std_max: float = setting(2.0, "and largest", low=-100.0, high=100.0)
    # losses
    discount: float = setting(0.99, "gamma, per decision", low=0.0, high=1.0)
    critic_lr: float = setting(
        1e-3, "Adam learning rate of the critics and, by their loss, the encoder", low=0.0, high=1.0
    )
    critic_tau: float = setting(0.01, "rate of the target critics", low=0.0, high=1.0)
    encoder_tau: float = setting(0.05, "rate of the target encoder", low=0.0, high=1.0)
    target_every: int = setting(2, "updates between steps of the targets", low=1, high=10_000)
    actor_lr: float = setting(1e-3, "Adam learning rate of the actor", low=0.0, high=1.0)
    actor_every: int = setting(2, "critic updates per update of actor and temperature", low=1, high=10_000)
    alpha_initial: float = setting(0.1, "temperature at first", low=1e-6, high=1e3)
    alpha_lr: float = setting(1e-4, "Adam learning rate of its logarithm", low=0.0, high=1.0)
    alpha_beta: float = setting(0.5, "and beta 1 of that", low=0.0, high=0.999)
    # reconstruction
    decoder: str = setting("pixel", "what z is decoded to; none is SAC from pixels, and as it must be from states",
                           choices=("pixel", "none"))  # fmt: skip
    decoder_every: int = setting(1, "critic updates per update of the autoencoder", low=1, high=10_000)
    encoder_lr: float = setting(1e-3, "Adam learning rate of the encoder by the reconstruction", low=0.0, high=1.0)
    decoder_lr: float = setting(1e-3, "Adam learning rate of the decoder", low=0.0, high=1.0)
    decoder_weight_decay: float = setting(1e-7, "its weight decay, added to the gradient", low=0.0, high=1.0)
    latent_weight: float = setting(1e-6, "weight of half the squared norm of z", low=0.0, high=1e6)
    # data
    batch_size: int = setting(128, "transitions in a batch", low=2, high=1_000_000)
    buffer_size: int = setting(1_000_000, "replay capacity, transitions", low=1000, high=10**9)
    warmup_decisions: int = setting(1_000, "uniform random decisions first; then as many updates", low=0, high=10**9)


@dataclass(frozen=True)
class Temperature:
    """alpha as a network without inputs, whose one parameter is its logarithm."""

    initial: float

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"log": (1,)}

    def castable(self, name: str) -> bool:
        return False

    def initialise(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {"log": torch.tensor([math.log(self.initial)])}

    def __call__(self, parameters: Parameters, *inputs: Tensor, hidden: list[Tensor] | None = None) -> Tensor:
        return torch.exp(parameters["log"][0])


@register("sac_ae")
class SACAE(Agent[Config]):
    sees_images = True
    presets = {
        "default": {},
        "small": {"filters": 16, "hidden_dim": 256, "batch_size": 64},
        "tiny": {"filters": 8, "feature_dim": 8, "hidden_dim": 16, "batch_size": 8},
    }

    @classmethod
    def task_defaults(cls, task: str, group: str) -> dict[str, Any]:
        return {} if "@pixels" in task else {"decoder": "none"}

    @classmethod
    def validate(cls, config: Config) -> None:
        if config.log_std_min >= config.log_std_max:
            raise InputError(f"agent.log_std_min={config.log_std_min:g}: expected less than agent.log_std_max")

    def __init__(self, config: Config, spec: TaskSpec, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(config, spec, dtype)
        c, a = config, spec.action_dim
        self.images, self.decodes = spec.frame_shape is not None, config.decoder == "pixel"
        if self.decodes and not self.images:
            raise InputError(f"agent.decoder={c.decoder}: {spec.name} is not observed as images; expected none")

        def mlp(inputs: int, outputs: int, ensemble: int = 0) -> MLP:
            hidden, style = (c.hidden_dim, c.hidden_dim), "orthogonal"
            first = not self.images  # states are of any scale
            return MLP(inputs, hidden, outputs, "relu", "none", ensemble, style, first, precise_output=True)

        z, trunks = spec.observation_dim, dict[str, MLP]()
        if self.images:
            z = c.feature_dim
            convolutions = Convolutions(spec.image_shape, c.filters, (2, 1, 1, 1), initialisation="delta_orthogonal")
            trunks = {"trunk": MLP(convolutions.outputs, (z,), 0, "tanh", initialisation="orthogonal")}
            self.encoder = ParameterGroup({"convolutions": convolutions, **trunks}, dtype)
            linear = MLP(z, (convolutions.outputs,), 0, "relu", "none", initialisation="orthogonal")
            if self.decodes:
                back = TransposedConvolutions(convolutions)
                self.decoder = ParameterGroup({"linear": linear, "convolutions": back}, dtype)
        self.critic = ParameterGroup({"q": mlp(z + a, 1, ensemble=2)}, dtype)
        self.actor = ParameterGroup({**trunks, "policy": mlp(z, 2 * a)}, dtype)
        self.temperature = ParameterGroup({"alpha": Temperature(c.alpha_initial)}, dtype)
        self.critic_optimiser, self.actor_optimiser = Adam(c.critic_lr), Adam(c.actor_lr)
        self.alpha_optimiser = Adam(c.alpha_lr, beta1=c.alpha_beta)
        self.encoder_optimiser = Adam(c.encoder_lr)
        self.decoder_optimiser = Adam(c.decoder_lr, c.decoder_weight_decay, decoupled=False)

    # --- networks; `nets` are parameter vectors by name, such as the state

    def features(self, nets: Tensors, observation: Tensor, bar: str = "", hidden: list[Tensor] | None = None) -> Tensor:
        """h: (B, F); of states the observation."""
        if not self.images:
            return observation
        return self.encoder(nets[f"{bar}encoder"]).convolutions(observation / 255.0, hidden=hidden)

    def compressed(self, nets: Tensors, h: Tensor, bar: str = "") -> Tensor:
        """z: (B, feature_dim); of states the observation."""
        return self.encoder(nets[f"{bar}encoder"]).trunk(h) if self.images else h

    def decoded(self, nets: Tensors, z: Tensor) -> Tensor:
        """The image of z, about -0.5 to 0.5: (B, C, height, width)."""
        net = self.decoder(nets["decoder"])
        return net.convolutions(net.linear(z))

    def values(
        self, nets: Tensors, z: Tensor, action: Tensor, bar: str = "", hidden: list[Tensor] | None = None
    ) -> Tensor:
        """q_1 and q_2: (2, B)."""
        return self.critic(nets[f"{bar}critic"]).q(z, action, hidden=hidden)[..., 0]

    def policy(self, actor: Tensor, h: Tensor, hidden: list[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log of the standard deviation before squashing, (B, A) each."""
        net, low, high = self.actor(actor), self.config.log_std_min, self.config.log_std_max
        mean, log_std = net.policy(net.trunk(h) if self.images else h, hidden=hidden).chunk(2, -1)
        return mean, low + 0.5 * (high - low) * (torch.tanh(log_std) + 1.0)

    def sampled(self, actor: Tensor, h: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (B, A) in [-1, 1], and the log of their probability density (B,)."""
        mean, log_std = self.policy(actor, h)
        action = torch.tanh(mean + torch.exp(log_std) * normal)
        density = -0.5 * normal.square() - log_std - 0.5 * math.log(2.0 * math.pi)
        return action, (density - torch.log(torch.relu(1.0 - action.square()) + 1e-6)).sum(-1)

    def initialise(self, generator: torch.Generator) -> dict[str, Tensor]:
        critic, actor = self.critic.initialise(generator), self.actor.initialise(generator)
        state = {
            **self.critic_optimiser.initialise("critic", critic),
            **self.actor_optimiser.initialise("actor", actor),
            **self.alpha_optimiser.initialise("temperature", self.temperature.initialise(generator)),
            "target_critic": critic.clone(),
        }
        if self.images:
            encoder = self.encoder.initialise(generator)
            state |= {**self.critic_optimiser.initialise("encoder", encoder), "target_encoder": encoder.clone()}
        if self.decodes:
            state |= self.decoder_optimiser.initialise("decoder", self.decoder.initialise(generator))
            moments = self.encoder_optimiser.initialise(RECONSTRUCTION, encoder)
            state |= {k: v for k, v in moments.items() if k != RECONSTRUCTION}  # the weights are the encoder's
        return state

    # --- acting

    def act(
        self, state: State, carry: Tensors, observation: Tensor, noise: Tensors, schedule: Tensors
    ) -> tuple[Tensor, Tensors]:
        h = self.features(state, observation)
        if "action" in noise:
            return self.sampled(state["actor"], h, noise["action"])[0], carry
        return torch.tanh(self.policy(state["actor"], h)[0]), carry

    def acts_randomly(self, progress: Progress) -> bool:
        return progress.decisions < self.config.warmup_decisions

    # --- losses (sac_ae.md, "One update")

    def target_value(self, state: State, batch: Batch, noise: Tensors) -> Tensor:
        """y (B,): reward, smaller target critic less alpha log pi, by an action of the current policy."""
        following = batch.observation[1]
        action, log_pi = self.sampled(state["actor"], self.features(state, following), noise["next_action"])
        z = self.compressed(state, self.features(state, following, "target_"), "target_")
        alpha = self.temperature(state["temperature"]).alpha()
        value = self.values(state, z, action, "target_").min(0).values - alpha * log_pi
        return batch.reward[0] + (1.0 - batch.terminated[0]) * self.config.discount * value

    def critic_loss(self, nets: Tensors, batch: Batch, y: Tensor) -> tuple[Tensor, Metrics]:
        """MSE of the first critic plus MSE of the second, of encoder and critics."""
        z = self.compressed(nets, self.features(nets, batch.observation[0]))
        q = self.values(nets, z, batch.action[0])
        return (q - y).square().mean(-1).sum(), mean_min_max("q", q)

    def actor_loss(
        self, actor: Tensor, state: State, h: Tensor, alpha: Tensor, normal: Tensor
    ) -> tuple[Tensor, Tensor]:
        """mean(alpha log pi - min q); also gives log pi (B,)."""
        action, log_pi = self.sampled(actor, h, normal)
        q = self.values(state, self.compressed(state, h), action).min(0).values
        return (alpha * log_pi - q).mean(), log_pi.detach()

    def alpha_loss(self, temperature: Tensor, log_pi: Tensor) -> Tensor:
        """Drives the entropy, -mean log pi, towards the number of actions' entries, negative."""
        target = -float(self.spec.action_dim)
        return (self.temperature(temperature).alpha() * (-log_pi - target)).mean()

    def reconstruction_loss(self, nets: Tensors, image: Tensor, key: Tensor) -> tuple[Tensor, Metrics]:
        """MSE to the image in LEVELS grey levels, dithered, plus a penalty on z."""
        z = self.compressed(nets, self.features(nets, image))
        dither = counter_random.uniform(key, tuple(image.shape))
        target = (torch.floor(image / (256.0 / LEVELS)) + dither) / LEVELS - 0.5
        error = F.mse_loss(self.decoded(nets, z), target)
        penalty = 0.5 * z.square().sum(-1).mean()
        return error + self.config.latent_weight * penalty, {"reconstruction_error": error, "latent_penalty": penalty}

    # --- learning

    @property
    def slices(self) -> Slices:
        return Slices(1, self.config.batch_size)

    def stages(self, update: int) -> tuple[str, ...]:
        """One stage, named by its parts. Official code counts decisions, and all first updates fall on one."""
        c, step = self.config, max(update, self.config.warmup_decisions)
        due = {
            "update_critic": True,
            "update_actor": step % c.actor_every == 0,
            "update_targets": step % c.target_every == 0,
            "reconstruct": self.decodes and step % c.decoder_every == 0,
        }
        return ("+".join(name for name, now in due.items() if now),)

    def stage(self, name: str) -> Stage:
        action = Noise((self.config.batch_size, self.spec.action_dim))
        wanted = {
            "update_critic": {"next_action": action},
            "update_actor": {"action": action},
            "reconstruct": {"dither": Noise((2,), "bits")},
        }
        parts = tuple(name.split("+"))
        noise = {k: v for part in parts for k, v in wanted.get(part, {}).items()}
        return Stage(noise=noise, parts=parts if len(parts) > 1 else ())

    def update_critic(self, state: State, batch: Batch, noise: Tensors, schedule: Tensors) -> Update:
        """Critics and, from images, the encoder."""
        y = self.target_value(state, batch, noise)
        nets = {k: state[k] for k in ("critic", "encoder") if k in state}
        gradients, (loss, parts) = grad_and_value(self.critic_loss, has_aux=True)(nets, batch, y)
        changed: dict[str, Tensor] = {}
        for name, gradient in gradients.items():
            changed |= self.critic_optimiser.step(name, state, gradient)[0]
        return changed, {"critic_loss": loss, **parts, "target_mean": y.mean(), "target_std": y.std()}

    def update_actor(self, state: State, batch: Batch, noise: Tensors, schedule: Tensors) -> Update:
        """Actor, then temperature."""
        h, alpha = self.features(state, batch.observation[0]), self.temperature(state["temperature"]).alpha()
        gradient, (loss, log_pi) = grad_and_value(self.actor_loss, has_aux=True)(
            state["actor"], state, h, alpha, noise["action"]
        )
        changed, _ = self.actor_optimiser.step("actor", state, gradient)
        gradient, _ = grad_and_value(self.alpha_loss)(state["temperature"], log_pi)
        stepped, _ = self.alpha_optimiser.step("temperature", state, gradient)
        return {**changed, **stepped}, {"actor_loss": loss, "entropy": -log_pi.mean(), "alpha": alpha}

    def update_targets(self, state: State, batch: Batch, noise: Tensors, schedule: Tensors) -> Update:
        rates = {"critic": self.config.critic_tau, "encoder": self.config.encoder_tau}
        bars = {k: rate for k, rate in rates.items() if k in state}
        return {f"target_{k}": soft_update(state[f"target_{k}"], state[k], rate) for k, rate in bars.items()}, {}

    def reconstruct(self, state: State, batch: Batch, noise: Tensors, schedule: Tensors) -> Update:
        """Decoder, and the encoder once more: by an optimiser of its own for this loss."""
        nets = {k: state[k] for k in ("encoder", "decoder")}
        gradients, (_, metrics) = grad_and_value(self.reconstruction_loss, has_aux=True)(
            nets, batch.observation[0], noise["dither"]
        )
        changed, _ = self.decoder_optimiser.step("decoder", state, gradients["decoder"])
        shared = {**state, RECONSTRUCTION: state["encoder"]}
        stepped, _ = self.encoder_optimiser.step(RECONSTRUCTION, shared, gradients["encoder"])
        encoder = stepped.pop(RECONSTRUCTION)
        return {**changed, **stepped, "encoder": encoder}, {k: v.detach() for k, v in metrics.items()}

    # --- schedule

    def after_decision(self, progress: Progress) -> int:
        first = self.config.warmup_decisions + 1
        return max(1, self.config.warmup_decisions) if progress.decisions == first else int(progress.decisions > first)

    # --- looking inside

    def latent_width(self) -> int:
        return self.config.feature_dim if self.images else 0

    def latent(self, state: State, observation: Tensor) -> Tensor | None:
        return self.compressed(state, self.features(state, observation)) if self.images else None

    def reconstruction(self, state: State, observation: Tensor) -> Tensor | None:
        if not self.decodes:
            return None
        image = self.decoded(state, self.compressed(state, self.features(state, observation)))
        return torch.clamp(256.0 * (image + 0.5), 0.0, 255.0)  # the loss's target is that of 0 to 256

    def hidden(self, state: State, observation: Tensor, action: Tensor) -> list[Tensor]:
        layers: list[Tensor] = []
        h = self.features(state, observation, hidden=layers)
        self.values(state, self.compressed(state, h), action, hidden=layers)
        self.policy(state["actor"], h, layers)
        return layers
