"""MR.Q: model-based representations for Q-learning (ICLR 2025; spec page mrq.md).

Symbols: f and g, the state and state-action encoders, give zs = f(s) and zsa = g(zs, a); m, linear in zsa,
predicts whether the episode terminates, the next zs and the reward. Value and policy see embeddings alone
and send no gradient to them. S is the scale of rewards, in units of which values are learned; a bar is a
target network or the scale that goes with it. Losses are those of one seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad_and_value

from iqrl.agent import Agent, Batch, Metrics, Noise, Progress, Slices, Stage, State, Tensors, Update, register, setting
from iqrl.environments.tasks import TaskSpec
from iqrl.images import Convolutions, ImageEncoder, shift_noise, shifted
from iqrl.multi_task import TASK_DIM, TASK_IN_ENCODER, own_mean, told_the_task
from iqrl.networks import MLP, Adam, BoundNetworks, Network, ParameterGroup, layer_norm, mean_min_max
from iqrl.redundancy import COVARIANCE, REMEDY, VARIANCE, remedy_loss
from iqrl.returns import n_step
from iqrl.two_hot import two_hot_cross_entropy

FILTERS = 32  # of each of the four convolutions over images


@dataclass(frozen=True)
class Config:
    """Defaults are the official ones (tables at the end of mrq.md)."""

    # representation (mrq.md sections 1 to 3)
    zs_dim: int = setting(512, "width of state embeddings", low=1, high=65536)
    za_dim: int = setting(256, "width of action embeddings", low=1, high=65536)
    zsa_dim: int = setting(512, "width of state-action embeddings", low=1, high=65536)
    hidden_dim: int = setting(512, "width of hidden layers", low=1, high=65536)
    encoder_hidden_dim: int = setting(
        0, "of those of f and g; 0 is hidden_dim", low=0, high=65536, omit_default_from_identity=True
    )
    num_bins: int = setting(65, "bins of the reward's two-hot code", low=2, high=65536)
    bin_limit: float = setting(10.0, "bins reach from -symexp(limit) to symexp(limit)", low=0.01, high=80.0)
    enc_horizon: int = setting(5, "decisions the model is unrolled", low=1, high=100)
    dyn_weight: float = setting(1.0, "weight of the next embedding's error", low=0.0, high=1e6)
    reward_weight: float = setting(0.1, "weight of the reward's cross-entropy", low=0.0, high=1e6)
    done_weight: float = setting(0.1, "weight of the termination's error, once there was one", low=0.0, high=1e6)
    infonce_weight: float = setting(
        0.0, "weight of the InfoNCE loss (drq.md section 1)", low=0.0, high=1e6, omit_default_from_identity=True
    )
    infonce_temperature: float = setting(0.1, "its temperature", low=1e-3, high=1e3, omit_default_from_identity=True)
    released_infonce_mask: bool = setting(
        False, "released DR.Q: mean loss times mean mask", omit_default_from_identity=True
    )
    enc_lr: float = setting(1e-4, "AdamW learning rate of the encoders and the model", low=0.0, high=1.0)
    enc_weight_decay: float = setting(1e-4, "AdamW weight decay of the same", low=0.0, high=1.0)
    pad: int = setting(
        4, "largest random shift of images, pixels; 0 is none", low=0, high=64, omit_default_from_identity=True
    )
    remedy: str = setting("none", **REMEDY)
    remedy_variance: float = setting(0.01, **VARIANCE)
    remedy_covariance: float = setting(0.01, **COVARIANCE)
    # value and policy (sections 4 and 5)
    discount: float = setting(0.99, "gamma, per decision", low=0.0, high=1.0)
    q_horizon: int = setting(3, "N of the returns", low=1, high=100)
    reward_mask: str = setting(
        "alive", "rewards up to a termination, or all but terminating ones", choices=("alive", "released")
    )
    scale_rewards: bool = setting(
        True, "learn values in units of S; otherwise S is not used", omit_default_from_identity=True
    )
    target_every: int = setting(250, "updates between copies; then as many of the encoder", low=1, high=10_000)
    target_noise: float = setting(0.2, "target policy smoothing, std; half if discrete", low=0.0, high=10.0)
    noise_clip: float = setting(0.3, "and where it is clipped; half if discrete", low=0.0, high=10.0)
    value_lr: float = setting(3e-4, "AdamW learning rate of the values", low=0.0, high=1.0)
    value_weight_decay: float = setting(1e-4, "AdamW weight decay of the values", low=0.0, high=1.0)
    value_clip: float = setting(20.0, "largest gradient norm of the values, 0 for none", low=0.0, high=1e6)
    policy_lr: float = setting(3e-4, "AdamW learning rate of the policy", low=0.0, high=1.0)
    policy_weight_decay: float = setting(1e-4, "AdamW weight decay of the policy", low=0.0, high=1.0)
    pre_activation_weight: float = setting(1e-5, "weight of squared pre-activations", low=0.0, high=1e6)
    gumbel_temperature: float = setting(10.0, "tau of the Gumbel-softmax over discrete actions", low=0.01, high=1e6)
    # replay (section 6)
    lap_alpha: float = setting(0.4, "exponent of priorities; 0 is uniform sampling", low=0.0, high=1.0)
    lap_min: float = setting(1.0, "smallest error that counts for a priority", low=1e-6, high=1e6)
    fade: float = setting(
        1.0, "factor on a priority for every decision since", low=0.5, high=1.0, omit_default_from_identity=True
    )
    fade_floor: float = setting(
        0.1, "and the least it becomes (drq.md section 3)", low=0.0, high=1.0, omit_default_from_identity=True
    )
    task_dim: int = setting(96, **TASK_DIM)
    task_in_encoder: bool = setting(False, **TASK_IN_ENCODER)
    batch_size: int = setting(256, "slices in a batch", low=2, high=1_000_000)
    buffer_size: int = setting(1_000_000, "replay capacity, transitions", low=1000, high=10**9)
    # collection (section 7)
    warmup_decisions: int = setting(10_000, "random decisions first, without updates", low=0, high=10**9)
    exploration_noise: float = setting(0.2, "standard deviation; half if discrete", low=0.0, high=10.0)
    released_gumbel: bool = setting(
        False, "released code: discrete actions are drawn in evaluation, too", omit_default_from_identity=True
    )


@register("mrq")
class MRQ(Agent[Config]):
    sees_images = True
    takes_several_tasks = True  # ours: section 9
    presets = {
        "default": {},
        "small": {"zs_dim": 128, "za_dim": 64, "zsa_dim": 128, "hidden_dim": 128, "batch_size": 128},
        "tiny": {"zs_dim": 16, "za_dim": 8, "zsa_dim": 16, "hidden_dim": 16, "batch_size": 16, "target_every": 10},
    }

    def __init__(self, config: Config, spec: TaskSpec, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(config, spec, dtype)
        c, o, a, h = config, spec.feature_dim, spec.action_dim, config.hidden_dim

        def network(inputs: int, hidden: tuple[int, ...], outputs: int, activation: str = "elu", **more: Any) -> MLP:
            return MLP(inputs, hidden, outputs, activation, "plain", initialisation="xavier_relu", **more)

        def told(mlp: MLP, tasks: int = len(spec.tasks)) -> Network:
            return told_the_task(mlp, tasks, c.task_dim)

        e = c.encoder_hidden_dim or h
        self.images = spec.frame_shape is not None
        in_encoder = len(spec.tasks) if c.task_in_encoder else 0
        encoders: dict[str, Network] = {"f": told(network(o, (e, e), c.zs_dim, precise_input=True), in_encoder)}
        if self.images:
            convolutions = Convolutions(spec.image_shape, FILTERS, (2, 2, 2, 1), "elu", "xavier_relu")
            encoders["f"] = ImageEncoder(convolutions, network(convolutions.outputs, (), c.zs_dim))
        encoders["embedding"] = network(a, (), c.za_dim, precise_input=True)
        encoders["g"] = told(network(c.zs_dim + c.za_dim, (e, e), c.zsa_dim))
        self.target = ParameterGroup(encoders, dtype)
        self.encoder = ParameterGroup({**encoders, "m": network(c.zsa_dim, (), 1 + c.zs_dim + c.num_bins)}, dtype)
        policy = told(network(c.zs_dim, (h, h), a, "relu", precise_output=True))
        self.policy = ParameterGroup({"policy": policy}, dtype)
        value = told(network(c.zsa_dim, (h, h, h), 1, ensemble=2, precise_output=True))
        self.value = ParameterGroup({"value": value}, dtype)
        self.encoder_optimiser = Adam(c.enc_lr, weight_decay=c.enc_weight_decay)
        self.value_optimiser = Adam(c.value_lr, weight_decay=c.value_weight_decay, clip=c.value_clip)
        self.policy_optimiser = Adam(c.policy_lr, weight_decay=c.policy_weight_decay)
        self.noise_scale = 0.5 if spec.discrete else 1.0  # actions span [0, 1] instead of [-1, 1]

    # --- networks

    def embed_state(self, encoder: BoundNetworks, observation: Tensor, hidden: list[Tensor] | None = None) -> Tensor:
        """zs = f(s): (..., O), or images (..., C, height, width) -> (..., zs_dim)."""
        told = self.told(observation) if self.config.task_in_encoder else ()
        return F.elu(layer_norm(encoder.f(self.without_task(observation), *told, hidden=hidden)))

    # `told` is `self.told(observation)`, what networks are told of the task: nothing where there is one.

    def embed_action(
        self, encoder: BoundNetworks, zs: Tensor, action: Tensor, *told: Tensor, hidden: list[Tensor] | None = None
    ) -> Tensor:
        """zsa = g(zs, a): (B, zsa_dim)."""
        return encoder.g(zs, F.elu(encoder.embedding(action)), *told, hidden=hidden)

    def step(self, encoder: BoundNetworks, zs: Tensor, action: Tensor, *told: Tensor) -> tuple[Tensor, Tensor]:
        """The model's output (B, 1 + zs_dim + num_bins), and of that the next zs (B, zs_dim)."""
        output = encoder.m(self.embed_action(encoder, zs, action, *told))
        return output, output[:, 1 : 1 + self.config.zs_dim]

    def pre_activation(self, policy: Tensor, zs: Tensor, *told: Tensor, hidden: list[Tensor] | None = None) -> Tensor:
        """What the policy squashes: (B, A)."""
        return self.own(self.policy(policy).policy(zs, *told, hidden=hidden), told)

    def squash(self, x: Tensor, uniform: Tensor | None) -> Tensor:
        """Actions in [-1, 1]; discrete ones as a Gumbel-softmax sample, without noise if none is given."""
        if not self.spec.discrete:
            return torch.tanh(x)
        if uniform is not None:
            x = x - torch.log(-torch.log(torch.clamp(uniform, min=1e-20)))
        return torch.softmax(x / self.config.gumbel_temperature, -1)

    def realise(self, action: Tensor) -> Tensor:
        """Actions as the task takes them: clipped to [-1, 1], or one-hot at the largest entry."""
        if not self.spec.discrete:
            return torch.clamp(action, -1.0, 1.0)
        place = torch.arange(action.shape[-1], device=action.device)
        return (action.argmax(-1, keepdim=True) == place).to(action.dtype)

    def values(self, value: Tensor, zsa: Tensor, *told: Tensor, hidden: list[Tensor] | None = None) -> Tensor:
        """Q of both heads, in units of S: (B, zsa_dim) -> (2, B)."""
        return self.value(value).value(zsa, *told, hidden=hidden)[..., 0]

    def initialise(self, generator: torch.Generator) -> dict[str, Tensor]:
        encoder, policy, value = (g.initialise(generator) for g in (self.encoder, self.policy, self.value))
        return {
            **self.encoder_optimiser.initialise("encoder", encoder),
            **self.policy_optimiser.initialise("policy", policy),
            **self.value_optimiser.initialise("value", value),
            "target_encoder": self.encoder.extract(encoder, self.target),
            "target_policy": policy.clone(),
            "target_value": value.clone(),
            "reward_scale": torch.ones(()),  # S
            "target_reward_scale": torch.zeros(()),  # S-bar
            "terminations_seen": torch.zeros(()),  # 1.0 once the replay has held a termination
        }

    # --- acting

    def act(
        self, state: State, carry: Tensors, observation: Tensor, noise: Tensors, schedule: Tensors
    ) -> tuple[Tensor, State]:
        zs, told = self.latent(state, observation), self.told(observation)
        action = self.squash(self.pre_activation(state["policy"], zs, *told), noise.get("gumbel"))
        if "action" in noise:
            action = action + self.noise_scale * self.config.exploration_noise * noise["action"]
        return self.own(self.realise(action), told), carry

    def act_noise(self, explore: bool) -> Mapping[str, Noise]:
        shape = (self.spec.action_dim,)
        noise = {"action": Noise(shape)} if explore else {}
        if self.spec.discrete and (explore or self.config.released_gumbel):
            noise["gumbel"] = Noise(shape, "uniform")
        return noise

    def acts_randomly(self, progress: Progress) -> bool:
        return progress.decisions < self.config.warmup_decisions

    # --- losses

    def encoder_loss(
        self, encoder: Tensor, target: Tensor, terminations_seen: Tensor, batch: Batch
    ) -> tuple[Tensor, Metrics]:
        """Errors of the model over one unroll of H_enc steps (mrq.md section 3)."""
        c, steps = self.config, self.config.enc_horizon
        net, bar = self.encoder(encoder), self.target(target)
        action, mask = self.realise(batch.action[:steps]), batch.alive[:steps]  # (H, B, A), (H, B)
        with torch.no_grad():
            goal = self.embed_state(bar, batch.observation[1 : steps + 1])  # (H, B, zs_dim)
        z, told = self.embed_state(net, batch.observation[0]), self.told(batch.observation[0])
        remedy = remedy_loss(c, z, net.g, net.m)
        predicted: list[Tensor] = []
        for h in range(steps):
            output, z = self.step(net, z, action[h], *told)  # z is fed on as it is
            predicted.append(output)
        done, following, logits = torch.stack(predicted).split([1, c.zs_dim, c.num_bins], -1)

        def total(error: Tensor) -> Tensor:
            return (mask * error).mean(1).sum()

        parts = {
            "dynamics_loss": total((following - goal).square().mean(-1)),
            "reward_loss": total(two_hot_cross_entropy(logits, batch.reward[:steps], c.bin_limit)),
            "termination_loss": terminations_seen * total((done[..., 0] - batch.terminated[:steps]).square()),
        }
        weights = [c.dyn_weight, c.reward_weight, c.done_weight]
        if c.infonce_weight > 0.0:
            error = infonce(following, goal, c.infonce_temperature)
            # The released mask meets the losses as (B, 1) meets (B,): every loss is multiplied by every mask.
            parts["infonce_loss"] = (error.mean(1) * mask.mean(1)).sum() if c.released_infonce_mask else total(error)
            weights.append(c.infonce_weight)
        loss = torch.stack([w * v for w, v in zip(weights, parts.values(), strict=True)]).sum() + sum(remedy.values())
        return loss, {k: v.detach() for k, v in {**parts, **remedy}.items()}

    def target_value(self, state: State, batch: Batch, noise: Tensors) -> Tensor:
        """y (B,) = (R + gamma^n Q-bar S-bar) / S, by the target networks (section 4); both S are 1 if unscaled."""
        c = self.config
        returns = n_step if c.reward_mask == "alive" else n_step_mrq_released
        total, factor, last = returns(batch, c.q_horizon, c.discount)
        bar = self.target(state["target_encoder"])
        zs, told = self.embed_state(bar, last), self.told(last)
        action = self.squash(self.pre_activation(state["target_policy"], zs, *told), noise.get("target_gumbel"))
        smoothing = torch.clamp(c.target_noise * noise["smoothing"], -c.noise_clip, c.noise_clip)
        action = self.own(self.realise(action + self.noise_scale * smoothing), told)
        q = self.values(state["target_value"], self.embed_action(bar, zs, action, *told), *told).min(0).values
        if not c.scale_rewards:
            return total + factor * q
        return (total + factor * q * state["target_reward_scale"]) / state["reward_scale"]

    def value_loss(self, value: Tensor, zsa: Tensor, y: Tensor, *told: Tensor) -> tuple[Tensor, tuple[Tensor, Metrics]]:
        """Smooth L1 over batch and both heads. Also gives the errors |Q - y| (2, B)."""
        q = self.values(value, zsa, *told)
        return F.smooth_l1_loss(q, y.expand(q.shape)), ((q - y).detach().abs(), mean_min_max("q", q))

    def policy_loss(
        self, policy: Tensor, value: Tensor, encoder: Tensor, zs: Tensor, noise: Tensors, *told: Tensor
    ) -> Tensor:
        """Minus the mean value of both heads; the gradient passes through g into the action."""
        x = self.pre_activation(policy, zs, *told)
        action = self.squash(x, noise.get("gumbel"))
        q = self.values(value, self.embed_action(self.encoder(encoder), zs, action, *told), *told)
        square = x.square()
        if told:
            square = own_mean(square, [task.action_dim for task in self.spec.tasks], told)
        return -q.mean() + self.config.pre_activation_weight * square.mean()

    # --- learning

    @property
    def slices(self) -> Slices:
        c = self.config
        horizon = max(c.enc_horizon, c.q_horizon)
        return Slices(horizon, c.batch_size, prioritised=True, fade=c.fade, fade_floor=c.fade_floor)

    def stages(self, update: int) -> tuple[str, ...]:
        period = self.config.target_every
        if (update - 1) % period:
            return ("update_rl",)
        return ("synchronise", *["update_encoder"] * period, "update_rl")

    def stage(self, name: str) -> Stage:
        if name == "synchronise":
            return Stage(batch=False, statistics=True)
        noise = {"shift": shift_noise(self.slices)} if self.images else {}
        if name == "update_encoder":
            return Stage(noise=noise)
        shape = (self.config.batch_size, self.spec.action_dim)
        noise["smoothing"] = Noise(shape)
        if self.spec.discrete:
            noise |= {"target_gumbel": Noise(shape, "uniform"), "gumbel": Noise(shape, "uniform")}
        return Stage(noise=noise)

    def synchronise(
        self, state: State, batch: None, noise: Tensors, schedule: Tensors
    ) -> tuple[dict[str, Tensor], Metrics]:
        """Hard copies to the targets, and a new scale of rewards (section 5)."""
        scale = torch.clamp(schedule["mean_absolute_reward"], min=1e-8)
        terminated = torch.maximum(state["terminations_seen"], (schedule["terminations"] > 0).float())
        return {
            "target_policy": state["policy"],
            "target_value": state["value"],
            "target_encoder": self.encoder.extract(state["encoder"], self.target),
            "target_reward_scale": state["reward_scale"],
            "reward_scale": scale,
            "terminations_seen": terminated,
        }, {"reward_scale": scale}

    def update_encoder(self, state: State, batch: Batch, noise: Tensors, schedule: Tensors) -> Update:
        """Encoders and model; priorities stay as they are."""
        batch = shifted(batch, noise, self.config.pad)
        gradient, (loss, parts) = grad_and_value(self.encoder_loss, has_aux=True)(
            state["encoder"], state["target_encoder"], state["terminations_seen"], batch
        )
        changed, _ = self.encoder_optimiser.step("encoder", state, gradient)
        return changed, {"encoder_loss": loss, **parts}

    def update_rl(
        self, state: State, batch: Batch, noise: Tensors, schedule: Tensors
    ) -> tuple[dict[str, Tensor], Metrics]:
        """Values, then policy, on embeddings that stay as they are."""
        batch = shifted(batch, noise, self.config.pad)
        c, encoder = self.config, self.encoder(state["encoder"])
        y = self.target_value(state, batch, noise)
        zs, told = self.embed_state(encoder, batch.observation[0]), self.told(batch.observation[0])
        zsa = self.embed_action(encoder, zs, self.realise(batch.action[0]), *told)
        gradient, (loss, (error, parts)) = grad_and_value(self.value_loss, has_aux=True)(state["value"], zsa, y, *told)
        changed, norm = self.value_optimiser.step("value", state, gradient)
        metrics = {"value_loss": loss, **parts, "target_mean": y.mean(), "target_std": y.std()}
        gradient, loss = grad_and_value(self.policy_loss)(
            state["policy"], changed["value"], state["encoder"], zs, noise, *told
        )
        stepped, _ = self.policy_optimiser.step("policy", state, gradient)
        priority = torch.clamp(error.amax(0), min=c.lap_min) ** c.lap_alpha
        metrics |= {"value_gradient_norm": norm, "policy_loss": loss, "priority": priority}
        return {**changed, **stepped}, metrics

    # --- schedule

    def after_decision(self, progress: Progress) -> int:
        return int(progress.decisions > self.config.warmup_decisions)

    # --- looking inside

    def latent_width(self) -> int:
        return self.config.zs_dim

    def latent(self, state: State, observation: Tensor) -> Tensor:
        return self.embed_state(self.encoder(state["encoder"]), observation)

    def target_latent(self, state: State, observation: Tensor) -> Tensor:
        return self.embed_state(self.target(state["target_encoder"]), observation)

    def predicted_latent(self, state: State, latent: Tensor, action: Tensor, *told: Tensor) -> Tensor:
        encoder = self.encoder(state["encoder"])
        return self.step(encoder, latent, self.realise(action), *told)[1]

    def hidden(self, state: State, observation: Tensor, action: Tensor) -> list[Tensor]:
        layers: list[Tensor] = []
        encoder = self.encoder(state["encoder"])
        zs, told = self.embed_state(encoder, observation, layers), self.told(observation)
        zsa = self.embed_action(encoder, zs, self.realise(action), *told, hidden=layers)
        self.values(state["value"], zsa, *told, hidden=layers)
        self.pre_activation(state["policy"], zs, *told, hidden=layers)
        return layers


def n_step_mrq_released(batch: Batch, n: int, discount: float) -> tuple[Tensor, Tensor, Tensor]:
    """The released code's returns: each reward times its own not-done, no matter what came before.

    Returns:
        R (B,), the factor of the bootstrap value (B,), and the observation n steps on (B, O).
    """
    going = 1.0 - batch.terminated[:n]
    powers = discount ** torch.arange(n, device=going.device, dtype=going.dtype)
    total = (powers[:, None] * going * batch.reward[:n]).sum(0)
    return total, discount**n * going.prod(0), batch.observation[n]


def infonce(predicted: Tensor, goal: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding each prediction's own goal among all of the batch (drq.md section 1).

    Args:
        predicted, goal: (H, B, D), compared by cosine similarity.

    Returns:
        (H, B).
    """
    similarity = F.normalize(predicted, dim=-1) @ F.normalize(goal, dim=-1).transpose(-1, -2)  # (H, B, B)
    return -torch.log_softmax(similarity / temperature, -1).diagonal(dim1=-2, dim2=-1)
