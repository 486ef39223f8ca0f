"""DCWM / DC-MPC: a discrete codebook world model and planning in it (ICLR 2025; spec page dcwm.md).

Symbols: e encoder, f quantiser, K codebook of |C| codes, d_phi dynamics, R reward, pi actor, q critics; a bar is a
target network. A latent is a flat vector of Z = d b entries, d latent dimensions of b channels. Logits and class
weights are laid out (..., |C|, d), classes before dimensions: sums over classes then run along contiguous memory,
which on a CPU makes sampling several times faster. Losses and plans are those of one seed, plans of one environment.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value

from iqrl import counter_random
from iqrl.agent import Agent, Batch, Memory, Metrics, Noise, Progress, Slices, Stage, State, register, setting
from iqrl.errors import InputError
from iqrl.networks import MLP, Adam, ParameterGroup, soft_update
from iqrl.quantisers import FSQ, VQ, make_quantiser
from iqrl.returns import n_step, n_step_released
from iqrl.schedules import EXPLORATION_EPISODES, linear_by_episode
from iqrl.tasks import TaskSpec

COMPONENTS = {"gaussian": 1, "mixture": 3}  # of continuous stochastic dynamics (section 8)
Parameters = Mapping[str, Mapping[str, Tensor]]  # unpacked, by network and name
PROPAGATION = ("sample", "sample_no_grad", "weighted_avg", "mode")


@dataclass(frozen=True)
class Config:
    """Defaults follow the last column of dcwm.md section 7; W1 and so on are its rows."""

    # latent (sections 1 and 8)
    quantizer: str = setting("fsq", "what makes codes of latents", choices=("fsq", "vq", "none", "simnorm"))
    fsq_levels: list[int] = setting(
        [5, 3], "levels of each FSQ channel; their number is b, with vq too", low=3, high=1024,
        hint="a level is at least 2, and 2 is degenerate under FSQ's bound: expected 3 or more",
    )
    vq_codes: int = setting(256, "size of the VQ codebook; the source has it with latent_dim=128", low=2, high=65536)
    vq_beta: float = setting(0.25, "weight of the VQ commitment", low=0.0, high=1e6)
    vq_decay: float = setting(0.99, "of the moving averages behind the VQ codebook", low=0.0, high=1.0)
    latent_dim: int = setting(512, "d, latent dimensions, Z without codes; 1024 on dog, humanoid", low=1, high=65536)
    head_encoding: str = setting(
        "codebook", "codes as reward, actor and critics see them", choices=("codebook", "onehot", "label")
    )
    # world model (sections 3 and 8)
    dynamics: str = setting(
        "stochastic", "classes sampled, or regression; without codebook also densities",
        choices=("stochastic", "deterministic", "gaussian", "mixture"),
    )
    consistency: str = setting(
        "ce", "of prediction and target: cross-entropy, distance, or likelihood of a density",
        choices=("ce", "mse", "cosine", "nll"),
    )
    ce_logits: str = setting(
        "dot", "similarity to each code, with deterministic dynamics and ce (W6)", choices=("dot", "neg_mse", "cos")
    )
    use_delta: bool = setting(False, "deterministic and density dynamics predict the change of the latent")
    unc_prop: str = setting("sample", "next latent while training", choices=PROPAGATION)
    st_hard: bool = setting(True, "samples are codes, by straight-through Gumbel-softmax; else soft ones")
    horizon: int = setting(5, "H, decisions the dynamics are unrolled", low=1, high=100)
    rep_discount: float = setting(0.9, "rho, weight of each further step", low=0.0, high=1.0)
    consistency_coef: float = setting(1.0, "weight of the consistency loss", low=0.0, high=1e6)
    reward_coef: float = setting(1.0, "weight of the reward loss", low=0.0, high=1e6)
    use_decoder: bool = setting(False, "reconstruct observations, weight 1")
    bound_reward: bool = setting(True, "rewards lie in [0, action repeat]; not on Gymnasium's tasks")
    enc_lr: float = setting(1e-4, "AdamW learning rate of the world model", low=0.0, high=1.0)
    enc_weight_decay: float = setting(0.01, "AdamW weight decay of the world model", low=0.0, high=1.0)
    clip: float = setting(20.0, "largest gradient norm of world model, critics, actor each; 0: none", low=0.0, high=1e6)
    # actor and critics (section 4)
    nstep: int = setting(1, "N of the returns; 2 or 3 on some tasks", low=1, high=100)
    released_nstep: bool = setting(False, "released code's returns (W1)")
    discount: float = setting(0.99, "gamma, per decision", low=0.0, high=1.0)
    num_critics: int = setting(5, "critics", low=1, high=100)
    q_sample: int = setting(2, "critics drawn for target, actor and plan; 0 means all", low=0, high=100)
    lr: float = setting(3e-4, "Adam learning rate of actor and critics", low=0.0, high=1.0)
    tau: float = setting(0.005, "rate of the target actor and critics", low=0.0, high=1.0)
    policy_noise: float = setting(0.2, "target policy smoothing, standard deviation", low=0.0, high=10.0)
    noise_clip: float = setting(0.3, "and where it is clipped", low=0.0, high=10.0)
    actor_every: int = setting(2, "critic updates per actor update", low=1, high=1000)
    # planning (section 5)
    mpc: bool = setting(True, "plan; false acts with the actor, the model-free variant")
    plan_horizon: int = setting(3, "decisions in a plan", low=1, high=100)
    plan_iterations: int = setting(6, "J", low=1, high=100)
    plan_samples: int = setting(512, "sequences valued in each iteration", low=2, high=100_000)
    plan_policy: int = setting(24, "of which the actor's", low=0, high=100_000)
    plan_elites: int = setting(64, "sequences that the next iteration learns from", low=1, high=100_000)
    use_top_k: bool = setting(True, "those; false learns from all sequences")
    plan_min_std: float = setting(0.05, "smallest standard deviation", low=0.0, high=10.0)
    plan_max_std: float = setting(2.0, "largest, and the first", low=0.0, high=10.0)
    plan_temperature: float = setting(0.5, "tau_M, inverse temperature; 0.2 on MyoSuite's pose", low=0.0, high=1e6)
    plan_discount: float = setting(0.9, "delta, per decision of a plan (W2)", low=0.0, high=1.0)
    plan_q: str = setting("sample", "critics of the last value: those drawn, or all (W3)", choices=("sample", "all"))
    plan_unc_prop: str = setting("weighted_avg", "next latent while planning", choices=PROPAGATION)
    use_mppi_mean: bool = setting(False, "act with the mean of the plan and not with an elite")
    released_pi_noise: bool = setting(
        False, "released code: the actor's sequences are all alike, and noisy in evaluation too (W4)"
    )
    # networks (section 2)
    mlp_dims: list[int] = setting([512, 512], "hidden widths of all but the encoder", low=1, high=65536)
    enc_mlp_dims: list[int] = setting([256], "hidden widths of the encoder", low=1, high=65536)
    init: str = setting("torch", "PyTorch's default, or orthogonal", choices=("torch", "orthogonal"))
    # data (sections 4 and 6)
    batch_size: int = setting(512, "slices in a batch", low=2, high=1_000_000)
    buffer_size: int = setting(10_000_000, "replay capacity, transitions; 1e6 in the paper (W8)", low=1000, high=10**9)
    cross_episode_slices: bool = setting(False, "slices may cross episodes, as in the released code (W1)")
    utd: float = setting(1.0, "gradient updates per decision", low=0.0, high=100.0)
    warmup_episodes: int = setting(10, "uniform random; after the last, updates for all of them", low=0, high=10**6)
    noise_initial: float = setting(1.0, "exploration noise, standard deviation, at first", low=0.0, high=10.0)
    noise_final: float = setting(0.1, "and in the end", low=0.0, high=10.0)
    noise_episodes: int = setting(150, "episodes in between; 50 easy, 150 medium, 500 hard tasks", low=1, high=10**6)


@dataclass(frozen=True)
class Model:
    """All that a plan reads of one seed's state."""

    world: Parameters
    actor: Parameters
    critic: Parameters
    codebook: Tensor | None


@register("dcwm")
class DCWM(Agent[Config]):
    presets = {
        "default": {},
        "small": {
            "latent_dim": 64, "mlp_dims": [128, 128], "enc_mlp_dims": [128], "batch_size": 128, "plan_samples": 128,
            "plan_policy": 8, "plan_elites": 16, "plan_iterations": 4,
        },
        "tiny": {
            "latent_dim": 8, "mlp_dims": [16, 16], "enc_mlp_dims": [16], "batch_size": 16, "plan_samples": 12,
            "plan_policy": 3, "plan_elites": 4, "plan_iterations": 2, "vq_codes": 16,
        },
    }
    compile_act = True  # a plan is many small operations

    @classmethod
    def task_defaults(cls, task: str, group: str) -> dict[str, Any]:
        """Groups and N of section 6."""
        base = task.split("+")[0]
        domain = base.split("-")[0]
        values: dict[str, Any] = {"noise_episodes": EXPLORATION_EPISODES[group]}
        if domain in ("dog", "humanoid"):
            values["latent_dim"] = 1024
        if domain in ("acrobot", "fish", "reacher", "dog") or base in ("cup-spin", "cartpole-swingup-sparse"):
            values["nstep"] = 3
        if base.startswith("finger-turn"):
            values["nstep"] = 2
        if base == "cartpole-swingup-sparse":
            values["noise_episodes"] = 250
        if task.startswith("gym:"):
            values["bound_reward"] = False
        return values

    @classmethod
    def validate(cls, config: Config) -> None:
        c, coded = config, config.quantizer in ("fsq", "vq")
        distances = ("ce", "mse", "cosine") if coded else ("mse", "cosine")
        losses = ("nll",) if c.dynamics in COMPONENTS else distances
        wrong = {  # key: whether its value does not go with the others, and what would
            "dynamics": (not coded and c.dynamics == "stochastic", f"another with agent.quantizer={c.quantizer}"),
            "quantizer": (c.quantizer != "none" and c.dynamics in COMPONENTS, f"none with agent.dynamics={c.dynamics}"),
            "consistency": (c.consistency not in losses, f"{' or '.join(losses)} with agent.dynamics={c.dynamics}"
                            f" and agent.quantizer={c.quantizer}"),
            "head_encoding": (not coded and c.head_encoding != "codebook", "codebook where latents have no codes"),
            "latent_dim": (c.quantizer == "simnorm" and c.latent_dim % 8 > 0, "a multiple of 8 with simnorm"),
            "q_sample": (c.q_sample > c.num_critics, f"at most agent.num_critics={c.num_critics}"),
            "plan_samples": (c.plan_samples <= c.plan_policy or c.plan_samples < c.plan_elites,
                             "more than agent.plan_policy and no fewer than agent.plan_elites"),
            "consistency_coef": (not (c.consistency_coef or c.reward_coef or c.use_decoder),
                                 "more than 0, or agent.reward_coef so: nothing trains the encoder"),
        }  # fmt: skip
        for key, (found, expected) in wrong.items():
            if found:
                raise InputError(f"agent.{key}={getattr(c, key)}: expected {expected}")

    def __init__(self, config: Config, spec: TaskSpec, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(config, spec, dtype)
        c, o, a, hidden = config, spec.observation_dim, spec.action_dim, tuple(config.mlp_dims)
        self.quantise = make_quantiser(c.quantizer, c.fsq_levels, c.vq_codes, c.vq_beta, c.vq_decay)
        coded = c.quantizer in ("fsq", "vq")
        self.width = z = c.latent_dim * (len(c.fsq_levels) if coded else 1)  # Z
        self.classes = self.quantise.codebook_size  # |C|
        self.components = COMPONENTS.get(c.dynamics, 0)
        seen = {"codebook": z, "onehot": c.latent_dim * self.classes, "label": c.latent_dim}[c.head_encoding]
        predicted = c.latent_dim * self.classes if c.dynamics == "stochastic" else z
        if self.components:
            predicted = self.components * (2 * z + 1)  # means, logarithms of deviations, logits
        scalar: dict[str, Any] = {"initialisation": c.init, "precise_output": True}
        world = {
            "encoder": MLP(o, tuple(c.enc_mlp_dims), z, initialisation=c.init, precise_input=True),
            "dynamics": MLP(z + a, hidden, predicted, initialisation=c.init),
            "reward": MLP(seen + a, hidden, 1, **scalar),
        }
        if c.use_decoder:
            world["decoder"] = MLP(z, hidden, o, initialisation=c.init)
        self.world = ParameterGroup(world)
        self.actor = ParameterGroup({"actor": MLP(seen, hidden, a, initialisation=c.init)})
        self.critic = ParameterGroup({"critic": MLP(seen + a, hidden, 1, ensemble=c.num_critics, **scalar)})
        self.world_optimiser = Adam(c.enc_lr, weight_decay=c.enc_weight_decay, clip=c.clip)
        self.optimiser = Adam(c.lr, clip=c.clip)

    def initialise(self, generator: torch.Generator) -> dict[str, Tensor]:
        world, actor, critic = (g.initialise(generator) for g in (self.world, self.actor, self.critic))
        return {
            **self.world_optimiser.initialise("world", world),
            **self.optimiser.initialise("actor", actor),
            **self.optimiser.initialise("critic", critic),
            "target_actor": actor.clone(),
            "target_critic": critic.clone(),
            **self.quantise.initialise(generator),
        }

    # --- the latent (section 1)

    def codebook(self, state: State) -> Tensor | None:
        """K (|C|, b), or None without one."""
        if isinstance(self.quantise, FSQ):
            return self.quantise.codebook().to(state["world"].device)
        return state.get("codebook")

    def encode(self, world: Parameters, observation: Tensor, codebook: Tensor | None) -> Tensor:
        """c = f(e(o)): (..., O) -> (..., Z)."""
        return self.quantise(self.world.networks["encoder"](world["encoder"], observation), codebook)

    def one_hot(self, indices: Tensor) -> Tensor:
        """Class weights (..., |C|, d) of indices (..., d)."""
        return (indices.unsqueeze(-2) == torch.arange(self.classes, device=indices.device)[:, None]).float()

    def heads(self, code: Tensor, codebook: Tensor | None, weights: Tensor | None = None) -> Tensor:
        """What reward, actor and critics see of a latent (head_encoding): (..., Z) -> (..., n).

        weights: (..., |C|, d), class weights that the latent was made of, if it was; they carry its gradient.
        """
        if self.config.head_encoding == "codebook":
            return code
        if weights is None:
            weights = self.one_hot(self.quantise.indices(code, codebook))
        if self.config.head_encoding == "onehot":
            return weights.flatten(-2)
        return (weights * torch.arange(self.classes, device=code.device)[:, None]).sum(-2)

    # --- the model (section 2)

    def predict(self, world: Parameters, code: Tensor, action: Tensor) -> Tensor:
        """Output of the dynamics network: logits (..., |C|, d), or (..., n)."""
        out = self.world.networks["dynamics"](world["dynamics"], torch.cat([code, action], -1))
        return out.unflatten(-1, (self.classes, -1)) if self.config.dynamics == "stochastic" else out

    def following(
        self, out: Tensor, code: Tensor, codebook: Tensor | None, mode: str, key: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Next latent (..., Z) from the dynamics' output, and the class weights that it is made of, if it is.

        mode: sample, sample_no_grad, weighted_avg or mode; key: (2,) bits, for the samples.
        """
        if self.config.dynamics == "stochastic":
            assert codebook is not None
            uniform = None if key is None else counter_random.uniform(key, tuple(out.shape))
            weights = class_weights(out, mode, uniform, self.config.st_hard)
            return decode(weights, codebook), weights
        if self.components:
            return self._density_step(out, code, mode, key), None
        return self.quantise(code + out if self.config.use_delta else out, codebook), None

    def density(self, out: Tensor, code: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means and logarithms of deviations (..., M, Z), and logits (..., M), of M normal densities."""
        values, logits = out.split([self.components * 2 * self.width, self.components], -1)
        mean, log_std = values.unflatten(-1, (2, self.components, self.width)).unbind(-3)
        mean = mean + code.unsqueeze(-2) if self.config.use_delta else mean
        return mean, torch.clamp(log_std, -5.0, 2.0), logits

    def _density_step(self, out: Tensor, code: Tensor, mode: str, key: Tensor | None) -> Tensor:
        mean, log_std, logits = self.density(out, code)
        if "sample" not in mode or key is None:
            weights = class_weights(logits[..., None], mode, None, True)
            return (weights * mean).sum(-2)
        uniform = counter_random.uniform(key, (*logits.shape, 1))
        pick = class_weights(logits[..., None], mode, uniform, self.config.st_hard)
        noise = counter_random.normal(key.flip(0), tuple(code.shape))
        sample = (pick * (mean + torch.exp(log_std) * noise.unsqueeze(-2))).sum(-2)
        return sample.detach() if mode == "sample_no_grad" else sample

    def reward(self, world: Parameters, seen: Tensor, action: Tensor) -> Tensor:
        """Reward (...,) of an action; bounded by tanh to [0, action repeat] (section 2)."""
        raw = self.world.networks["reward"](world["reward"], torch.cat([seen, action], -1))[..., 0]
        return (torch.tanh(raw) + 1.0) * (self.spec.action_repeat / 2.0) if self.config.bound_reward else raw

    def policy(self, actor: Parameters, seen: Tensor) -> Tensor:
        """pi in [-1, 1]: (..., n) -> (..., A)."""
        return torch.tanh(self.actor.networks["actor"](actor["actor"], seen))

    def values(self, critic: Parameters, seen: Tensor, action: Tensor) -> Tensor:
        """q_k of every critic: (K, B)."""
        return self.critic.networks["critic"](critic["critic"], torch.cat([seen, action], -1))[..., 0]

    def drawn(self, critic: Parameters, noise: Tensor | None) -> Parameters:
        """The critics drawn by uniform numbers (K,); all of them without."""
        if noise is None:
            return critic
        index = torch.argsort(noise)[: self.config.q_sample]
        return {"critic": {k: v.index_select(0, index) for k, v in critic["critic"].items()}}

    # --- acting: model predictive path integral planning (section 5)

    def act(
        self, state: State, carry: State, observation: Tensor, noise: Mapping[str, Tensor], clock: State
    ) -> tuple[Tensor, State]:
        groups = {"world": self.world, "actor": self.actor, "critic": self.critic}
        model = Model(**{k: g.unpack(state[k], self.dtype) for k, g in groups.items()}, codebook=self.codebook(state))
        code = self.encode(model.world, observation, model.codebook)
        if self.config.mpc:
            plan = torch.func.vmap(lambda code, mean, noise: self.plan(model, code, mean, noise, clock["sigma"]))
            action, mean = plan(code, carry["mean"], dict(noise))
            carry = {"mean": mean}
        else:
            action = self.policy(model.actor, self.heads(code, model.codebook))
        if "action" in noise:
            action = action + clock["sigma"] * noise["action"]
        return torch.clamp(action, -1.0, 1.0), carry

    def plan(
        self, model: Model, code: Tensor, mean: Tensor, noise: Mapping[str, Tensor], sigma: Tensor
    ) -> tuple[Tensor, Tensor]:
        """First action (A,) of a plan from a latent (Z,), and the plan's mean (T, A), shifted for the next decision.

        mean: (T, A), where the last plan left it.
        """
        c, keys = self.config, noise.get("propagation")
        policy = self._policy_sequences(model, code, noise, sigma)  # (P, T, A)
        std = torch.full_like(mean, c.plan_max_std)
        start = code.expand(c.plan_samples, -1)
        for j in range(c.plan_iterations):
            sampled = torch.clamp(mean + std * noise["samples"][j], -1.0, 1.0)
            actions = torch.cat([policy, sampled])  # (n, T, A)
            critics = self.drawn(model.critic, noise["critics"][j] if "critics" in noise else None)
            terminal = sigma * noise["terminal"][j] if "terminal" in noise else None
            key = None if keys is None else keys[j + 1]
            value = self.sequence_value(replace(model, critic=critics), start, actions, terminal, key)
            elites, weight, mean, std = self.refit(actions, torch.nan_to_num(value, nan=0.0))
        following = torch.cat([mean[1:], torch.zeros_like(mean[:1])])
        if c.use_mppi_mean:
            return mean[0], following
        upto = torch.cumsum(weight, 0)  # an elite, by inverting the cumulative sum
        place = torch.clamp((upto <= noise["elite"] * upto[-1]).sum(), max=len(upto) - 1)
        return elites[:, 0].index_select(0, place[None])[0], following

    def _policy_sequences(self, model: Model, code: Tensor, noise: Mapping[str, Tensor], sigma: Tensor) -> Tensor:
        """The actor's own sequences (P, T, A), rolled through the model, with exploration noise if it is given."""
        c, weights, actions = self.config, None, []
        code, keys = code.expand(c.plan_policy, -1), noise.get("propagation")
        for t in range(c.plan_horizon):
            action = self.policy(model.actor, self.heads(code, model.codebook, weights))
            if "policy" in noise:
                action = torch.clamp(action + sigma * noise["policy"][t], -1.0, 1.0)
            actions.append(action)
            if t + 1 < c.plan_horizon:
                key = None if keys is None else keys[0, t]
                out = self.predict(model.world, code, action)
                code, weights = self.following(out, code, model.codebook, c.plan_unc_prop, key)
        return torch.stack(actions, 1)

    def sequence_value(
        self, model: Model, code: Tensor, actions: Tensor, terminal: Tensor | None = None, keys: Tensor | None = None
    ) -> Tensor:
        """Phi (n,): predicted rewards of sequences (n, T, A) from latents (n, Z), and the critics' mean at the end."""
        c, weights = self.config, None
        total: Tensor | float = 0.0
        for t in range(c.plan_horizon):
            action, key = actions[:, t], None if keys is None else keys[t]
            seen = self.heads(code, model.codebook, weights)
            total = total + c.plan_discount**t * self.reward(model.world, seen, action)
            out = self.predict(model.world, code, action)
            code, weights = self.following(out, code, model.codebook, c.plan_unc_prop, key)
        seen = self.heads(code, model.codebook, weights)
        action = self.policy(model.actor, seen)
        if terminal is not None:
            action = torch.clamp(action + terminal, -1.0, 1.0)
        return total + c.plan_discount**c.plan_horizon * self.values(model.critic, seen, action).mean(0)

    def refit(self, actions: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Elites (E, T, A), their weights (E,), and mean and standard deviation (T, A) of the next iteration."""
        c, elites = self.config, actions
        if c.use_top_k:
            value, best = torch.topk(value, c.plan_elites)
            elites = actions.index_select(0, best)
        weight = torch.exp(c.plan_temperature * (value - value.max()))
        weight = weight / weight.sum()
        share = (weight / (weight.sum() + 1e-9))[:, None, None]
        mean = (share * elites).sum(0)
        std = torch.sqrt((share * (elites - mean).square()).sum(0))
        return elites, weight, mean, torch.clamp(std, c.plan_min_std, c.plan_max_std)

    def act_noise(self, explore: bool) -> Mapping[str, Noise]:
        c, a = self.config, self.spec.action_dim
        noise = {"action": Noise((a,))} if explore else {}
        if not c.mpc:
            return noise
        noise["samples"] = Noise((c.plan_iterations, c.plan_samples - c.plan_policy, c.plan_horizon, a))
        if c.plan_policy and (explore or c.released_pi_noise):
            noise["policy"] = Noise((c.plan_horizon, 1 if c.released_pi_noise else c.plan_policy, a))
        if c.released_pi_noise:
            noise["terminal"] = Noise((c.plan_iterations, a))
        if c.plan_q == "sample" and 0 < c.q_sample < c.num_critics:
            noise["critics"] = Noise((c.plan_iterations, c.num_critics), "uniform")
        if not c.use_mppi_mean:
            noise["elite"] = Noise((), "uniform")
        if "sample" in c.plan_unc_prop and c.dynamics != "deterministic":
            noise["propagation"] = Noise((c.plan_iterations + 1, c.plan_horizon, 2), "bits")
        return noise

    def carry(self) -> dict[str, Tensor]:
        return {"mean": torch.zeros(self.config.plan_horizon, self.spec.action_dim)} if self.config.mpc else {}

    def acts_randomly(self, progress: Progress) -> bool:
        return progress.episodes < self.config.warmup_episodes

    # --- losses (sections 3 and 4)

    def world_loss(
        self, flat: Tensor, codebook: Tensor | None, batch: Batch, keys: Tensor | None
    ) -> tuple[Tensor, Metrics]:
        """Consistency, reward and optional terms over an unroll of H steps (section 3). keys: (H, 2) bits."""
        c, world = self.config, self.world.unpack(flat, self.dtype)
        going = batch.alive[: c.horizon] * (1.0 - batch.terminated[: c.horizon])  # the mask of W8; 1 on DM Control
        powers = c.rep_discount ** torch.arange(c.horizon, device=flat.device, dtype=torch.float32)
        scale = powers[:, None] * going / c.horizon  # (H, B)
        with torch.no_grad():  # no target encoder: the online one, without gradient
            goal = self.encode(world, batch.observation[1 : c.horizon + 1], codebook)
            goal_index = self.quantise.indices(goal, codebook) if self.classes else None
        latent = self.world.networks["encoder"](world["encoder"], batch.observation[0])
        code, weights = self.quantise(latent, codebook), None
        consistency, mistakes, codes = [], [], [code]
        for h in range(c.horizon):
            seen = self.heads(code, codebook, weights)
            mistakes.append((self.reward(world, seen, batch.action[h]) - batch.reward[h]).square())
            out = self.predict(world, code, batch.action[h])
            previous = code
            code, weights = self.following(out, code, codebook, c.unc_prop, None if keys is None else keys[h])
            index = None if goal_index is None else goal_index[h]
            consistency.append(self.consistency_error(out, previous, code, goal[h], index, codebook))
            codes.append(code)
        parts: Metrics = {
            "consistency_loss": (scale * torch.stack(consistency)).mean(1).sum(),
            "reward_loss": (scale * torch.stack(mistakes)).mean(1).sum(),
        }
        loss = c.consistency_coef * parts["consistency_loss"] + c.reward_coef * parts["reward_loss"]
        unrolled = torch.stack(codes)  # (H + 1, B, Z)
        if c.use_decoder:
            guess = self.world.networks["decoder"](world["decoder"], unrolled[:-1])
            error = (guess - batch.observation[: c.horizon]).square().mean(-1)
            parts["reconstruction_loss"] = (scale * error).mean(1).sum()
            loss = loss + parts["reconstruction_loss"]
        if isinstance(self.quantise, VQ):
            parts["commitment_loss"] = self.quantise.commitment(latent, codes[0]).mean()
            loss = loss + parts["commitment_loss"]
        parts |= {"latent_mean": unrolled.mean(), "latent_min": unrolled.min(), "latent_max": unrolled.max()}
        return loss, {k: v.detach() for k, v in parts.items()}

    def consistency_error(
        self, out: Tensor, previous: Tensor, code: Tensor, goal: Tensor, index: Tensor | None, codebook: Tensor | None
    ) -> Tensor:
        """Error (B,) of one predicted step against the code that followed (B, Z), of indices (B, d)."""
        kind = self.config.consistency
        if kind == "ce":
            assert codebook is not None and index is not None
            logits = out if self.config.dynamics == "stochastic" else similarity(code, codebook, self.config.ce_logits)
            return cross_entropy(logits, self.one_hot(index))
        if kind == "nll":
            mean, log_std, logits = self.density(out, previous)
            deviation = (goal.unsqueeze(-2) - mean) * torch.exp(-log_std)
            log_density = (-0.5 * deviation.square() - log_std - 0.5 * math.log(2.0 * math.pi)).sum(-1)
            return -torch.logsumexp(torch.log_softmax(logits, -1) + log_density, -1) / self.width
        if kind == "mse":
            return (code - goal).square().mean(-1)
        norms = [torch.clamp(torch.linalg.vector_norm(v, dim=-1), min=1e-6) for v in (code, goal)]
        return -(code * goal).sum(-1) / (norms[0] * norms[1])

    def target_value(
        self, state: State, seen: Tensor, total: Tensor, factor: Tensor, noise: Mapping[str, Tensor]
    ) -> Tensor:
        """y (B,): N-step return, smoothed target policy, smaller of the target critics drawn (section 4)."""
        c = self.config
        actor = self.actor.unpack(state["target_actor"], self.dtype)
        critic = self.critic.unpack(state["target_critic"], self.dtype)
        smoothing = torch.clamp(c.policy_noise * noise["smoothing"], -c.noise_clip, c.noise_clip)
        action = torch.clamp(self.policy(actor, seen) + smoothing, -1.0, 1.0)
        q = self.values(self.drawn(critic, noise.get("target_critics")), seen, action)
        return total + factor * q.min(0).values

    def critic_loss(self, critic: Tensor, seen: Tensor, action: Tensor, y: Tensor) -> tuple[Tensor, Metrics]:
        """Mean over critics and batch of (q_k - y)^2."""
        q = self.values(self.critic.unpack(critic, self.dtype), seen, action)
        detached = q.detach()
        return (q - y).square().mean(), {"q_mean": detached.mean(), "q_min": detached.min(), "q_max": detached.max()}

    def actor_loss(self, actor: Tensor, critic: Tensor, seen: Tensor, noise: Tensor | None) -> Tensor:
        """-E[mean of the critics drawn]."""
        action = self.policy(self.actor.unpack(actor, self.dtype), seen)
        return -self.values(self.drawn(self.critic.unpack(critic, self.dtype), noise), seen, action).mean()

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
        if "sample" in c.unc_prop and c.dynamics != "deterministic":
            noise["propagation"] = Noise((c.horizon, 2), "bits")  # 20 million numbers at the default sizes
        if 0 < c.q_sample < c.num_critics:
            noise["target_critics"] = Noise((c.num_critics,), "uniform")
            if name == "update_all":
                noise["actor_critics"] = Noise((c.num_critics,), "uniform")
        return Stage(noise=noise)

    def update_critic(
        self, state: State, batch: Batch, noise: Mapping[str, Tensor], clock: State
    ) -> tuple[dict[str, Tensor], Metrics]:
        """World model, critics, target critics."""
        return self._update(state, batch, noise)[:2]

    def update_all(
        self, state: State, batch: Batch, noise: Mapping[str, Tensor], clock: State
    ) -> tuple[dict[str, Tensor], Metrics]:
        """As `update_critic`, then the actor and the target actor."""
        changed, metrics, seen = self._update(state, batch, noise)
        gradient, loss = grad_and_value(self.actor_loss)(
            state["actor"], changed["critic"], seen, noise.get("actor_critics")
        )
        stepped, norm = self.optimiser.step("actor", state, gradient)
        stepped["target_actor"] = soft_update(state["target_actor"], stepped["actor"], self.config.tau)
        return {**changed, **stepped}, {**metrics, "actor_loss": loss, "actor_gradient_norm": norm}

    def _update(
        self, state: State, batch: Batch, noise: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], Metrics, Tensor]:
        c, codebook = self.config, self.codebook(state)
        gradient, (loss, parts) = grad_and_value(self.world_loss, has_aux=True)(
            state["world"], codebook, batch, noise.get("propagation")
        )
        metrics: Metrics = {"world_loss": loss, **parts}
        changed, metrics["world_gradient_norm"] = self.world_optimiser.step("world", state, gradient)
        if isinstance(self.quantise, VQ):
            encoder = self.world.unpack(state["world"], self.dtype)["encoder"]
            met = [self.world.networks["encoder"](encoder, o) for o in batch.observation[: c.horizon + 1]]
            changed |= self.quantise.learn(state, met)
            codebook = changed["codebook"]
        total, factor, last = (n_step_released if c.released_nstep else n_step)(batch, c.nstep, c.discount)
        world = self.world.unpack(changed["world"], self.dtype)  # just updated
        code = self.encode(world, torch.stack([batch.observation[0], last]), codebook)
        seen, after = self.heads(code, codebook).unbind()
        y = self.target_value(state, after, total, factor, noise)
        gradient, (loss, parts) = grad_and_value(self.critic_loss, has_aux=True)(
            state["critic"], seen, batch.action[0], y
        )
        stepped, norm = self.optimiser.step("critic", state, gradient)
        changed |= stepped
        changed["target_critic"] = soft_update(state["target_critic"], stepped["critic"], c.tau)
        metrics |= {"critic_loss": loss, **parts, "critic_gradient_norm": norm}
        metrics |= {"target_mean": y.mean(), "target_std": y.std()}
        return changed, metrics, seen

    # --- schedule (section 4)

    def clock(self, progress: Progress) -> dict[str, float]:
        """sigma: the next value after each training phase, the catch-up phase being the first."""
        c = self.config
        index = progress.episodes - max(c.warmup_episodes, 1) + 1
        return {"sigma": linear_by_episode(c.noise_initial, c.noise_final, c.noise_episodes, index)}

    def after_episode(self, progress: Progress, memory: Memory) -> tuple[int, tuple[str, ...]]:
        c = self.config
        if progress.episodes < c.warmup_episodes:
            return 0, ()
        caught_up = progress.episodes > c.warmup_episodes
        return round(c.utd * (progress.episode_decisions if caught_up else progress.decisions)), ()

    # --- looking inside

    def latent_width(self) -> int:
        return self.width

    def latent(self, state: State, observation: Tensor) -> Tensor:
        return self.encode(self.world.unpack(state["world"], self.dtype), observation, self.codebook(state))

    def codes(self, state: State, latent: Tensor) -> tuple[Tensor, int] | None:
        return (self.quantise.indices(latent, self.codebook(state)), self.classes) if self.classes else None

    def hidden(self, state: State, observation: Tensor, action: Tensor) -> list[Tensor]:
        layers: list[Tensor] = []
        codebook, world = self.codebook(state), self.world.unpack(state["world"], self.dtype)
        code = self.quantise(self.world.networks["encoder"].forward(world["encoder"], observation, layers), codebook)
        seen = self.heads(code, codebook)
        self.world.networks["dynamics"].forward(world["dynamics"], torch.cat([code, action], -1), layers)
        critic, actor = self.critic.unpack(state["critic"], self.dtype), self.actor.unpack(state["actor"], self.dtype)
        self.critic.networks["critic"].forward(critic["critic"], torch.cat([seen, action], -1), layers)
        self.actor.networks["actor"].forward(actor["actor"], seen, layers)
        return layers


# --- classes


def class_weights(logits: Tensor, mode: str, uniform: Tensor | None, hard: bool) -> Tensor:
    """Weights of classes (..., |C|, d) that make up the next latent, from logits of that shape.

    Sampling is by Gumbel's trick, temperature 1: with g = -log(-log u), exp(logit + g) is exp(logit) / -log(u).

    Args:
        mode: "weighted_avg" softmax; "mode" the likeliest class; "sample" straight-through Gumbel-softmax, whose
            value is one-hot and whose gradient is the softmax's; "sample_no_grad" one-hot without gradient.
        uniform: (..., |C|, d) in (0, 1), for the samples.
        hard: if false, "sample" is the softmax of the perturbed logits itself.
    """
    score = torch.exp(logits - logits.detach().amax(-2, keepdim=True))
    if mode in ("sample", "sample_no_grad"):
        assert uniform is not None
        score = score / -torch.log(uniform)
    soft = score / score.sum(-2, keepdim=True)
    if mode == "weighted_avg" or (mode == "sample" and not hard):
        return soft
    # The first maximum, found by comparisons, which compile to vector code; argmax does not.
    fixed, place = score.detach(), torch.arange(logits.shape[-2], dtype=torch.int32, device=logits.device)[:, None]
    first = torch.where(fixed == fixed.amax(-2, keepdim=True), place, logits.shape[-2]).amin(-2, keepdim=True)
    chosen = (place == first).float()
    return (soft - soft.detach()) + chosen if mode == "sample" else chosen


def decode(weights: Tensor, codebook: Tensor) -> Tensor:
    """Latents (..., Z) from class weights (..., |C|, d): the weighted sum of codes for each latent dimension."""
    return torch.stack([(weights * channel[:, None]).sum(-2) for channel in codebook.unbind(-1)], -1).flatten(-2)


def cross_entropy(logits: Tensor, goal: Tensor) -> Tensor:
    """Mean over latent dimensions of -log softmax of the goal's class: (..., |C|, d) twice -> (...,)."""
    return (torch.logsumexp(logits, -2) - (logits * goal).sum(-2)).mean(-1)


def similarity(code: Tensor, codebook: Tensor, kind: str) -> Tensor:
    """Logits (..., |C|, d) of predicted codes (..., Z): inner product, negative squared distance or cosine (W6)."""
    vectors = code.unflatten(-1, (-1, codebook.shape[-1]))  # (..., d, b)
    product = (vectors @ codebook.t()).transpose(-1, -2)
    if kind == "dot":
        return product
    square, code_square = vectors.square().sum(-1).unsqueeze(-2), codebook.square().sum(-1)[:, None]
    if kind == "neg_mse":
        return 2.0 * product - square - code_square
    return product / torch.sqrt(torch.clamp(square, min=1e-12) * torch.clamp(code_square, min=1e-12))
