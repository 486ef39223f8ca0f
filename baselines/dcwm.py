"""DCWM / DC-MPC: a discrete codebook world model and planning in it (ICLR 2025; spec page dcwm.md).

The world model and its loss (sections 1 and 3) are in `codebook_world`, the search for plans (section 5) is in `mppi`;
here are actor and critics, what a plan is worth, and what is updated when. Symbols: pi actor, q critics; a bar is a
target network. Losses and plans are those of one seed, plans of one environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value

from baselines.codebook_world import COMPONENTS, PROPAGATION, Latent, World, WorldModel
from baselines.mppi import MPPI
from iqrl.agent import Agent, Batch, Memory, Metrics, Noise, Progress, Slices, Stage, State, register, setting
from iqrl.environments.tasks import TaskSpec
from iqrl.errors import InputError
from iqrl.networks import MLP, Adam, ParameterGroup, draw_members, soft_update
from iqrl.returns import n_step, n_step_released
from iqrl.schedules import EXPLORATION_EPISODES, linear_by_episode

Parameters = Mapping[str, Mapping[str, Tensor]]  # unpacked, by network and name


@dataclass(frozen=True)
class Config:
    """Defaults follow the last column of dcwm.md section 7; W1 and so on are its rows."""

    # latent (sections 1 and 8)
    quantizer: str = setting("fsq", "what makes codes of latents", choices=("fsq", "vq", "none", "simnorm"))
    fsq_levels: list[int] = setting(
        [5, 3], "levels of each FSQ channel; their number is b, with vq too", low=3, high=1024,
        hint="a level is at least 2, and 2 is degenerate under FSQ's bound: expected 3 or more",
    )  # fmt: skip
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
    )  # fmt: skip
    consistency: str = setting(
        "ce", "of prediction and target: cross-entropy, distance, or likelihood of a density",
        choices=("ce", "mse", "cosine", "nll"),
    )  # fmt: skip
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
    }  # fmt: skip
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
            "dynamics": (not coded and c.dynamics == "stochastic",
                         "deterministic, with agent.consistency=mse or cosine, or a density, with nll, where "
                         f"agent.quantizer={c.quantizer}"),
            "quantizer": (c.quantizer != "none" and c.dynamics in COMPONENTS, f"none with agent.dynamics={c.dynamics}"),
            "consistency": (c.consistency not in losses, f"{' or '.join(losses)} with agent.dynamics={c.dynamics}"
                            f" and agent.quantizer={c.quantizer}"),
            "head_encoding": (not coded and c.head_encoding != "codebook", "codebook where latents have no codes"),
            "latent_dim": (c.quantizer == "simnorm" and c.latent_dim % 8 > 0, "a multiple of 8 with simnorm"),
            "q_sample": (c.q_sample > c.num_critics, f"at most agent.num_critics={c.num_critics}"),
            "plan_samples": (c.plan_samples <= c.plan_policy or (c.use_top_k and c.plan_samples < c.plan_elites),
                             "more than agent.plan_policy and no fewer than agent.plan_elites"),
            "plan_max_std": (c.plan_max_std < c.plan_min_std, f"at least agent.plan_min_std={c.plan_min_std}"),
            "consistency_coef": (not (c.consistency_coef or c.reward_coef or c.use_decoder),
                                 "more than 0, or agent.reward_coef so: nothing trains the encoder"),
        }  # fmt: skip
        for key, (found, expected) in wrong.items():
            if found:
                raise InputError(f"agent.{key}={getattr(c, key)}: expected {expected}")

    def __init__(self, config: Config, spec: TaskSpec, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(config, spec, dtype)
        c, a, hidden = config, spec.action_dim, tuple(config.mlp_dims)
        self.model = WorldModel(c, spec, dtype)
        self.world, seen = self.model.group, self.model.seen
        critic = MLP(seen + a, hidden, 1, ensemble=c.num_critics, initialisation=c.init, precise_output=True)
        self.actor = ParameterGroup({"actor": MLP(seen, hidden, a, initialisation=c.init, precise_output=True)})
        self.critic = ParameterGroup({"critic": critic})
        self.act_bytes = 4 * c.plan_samples * self.model.predicted if c.mpc else 0
        self.world_optimiser = Adam(c.enc_lr, weight_decay=c.enc_weight_decay, clip=c.clip)
        self.optimiser = Adam(c.lr, clip=c.clip)
        self.planner = MPPI(
            c.plan_horizon, a, c.plan_iterations, c.plan_samples - c.plan_policy, c.plan_elites if c.use_top_k else 0,
            c.plan_min_std, c.plan_max_std, c.plan_temperature, c.use_mppi_mean,
        )  # fmt: skip

    def initialise(self, generator: torch.Generator) -> dict[str, Tensor]:
        world, actor, critic = (g.initialise(generator) for g in (self.world, self.actor, self.critic))
        return {
            **self.world_optimiser.initialise("world", world),
            **self.optimiser.initialise("actor", actor),
            **self.optimiser.initialise("critic", critic),
            "target_actor": actor.clone(),
            "target_critic": critic.clone(),
            **self.model.quantise.initialise(generator),
        }

    # --- networks (section 2)

    def policy(self, actor: Parameters, seen: Tensor) -> Tensor:
        """pi in [-1, 1]: (..., n) -> (..., A)."""
        return torch.tanh(self.actor.networks["actor"](actor["actor"], seen))

    def values(self, critic: Parameters, seen: Tensor, action: Tensor) -> Tensor:
        """q_k of every critic: (K, B)."""
        return self.critic.networks["critic"](critic["critic"], torch.cat([seen, action], -1))[..., 0]

    def drawn(self, critic: Parameters, noise: Tensor | None) -> Parameters:
        """The critics drawn by uniform numbers (K,); all of them without."""
        return critic if noise is None else {"critic": draw_members(critic["critic"], noise, self.config.q_sample)}

    # --- acting: planning, or the actor (section 5)

    def act(
        self, state: State, carry: State, observation: Tensor, noise: Mapping[str, Tensor], clock: State
    ) -> tuple[Tensor, State]:
        world = self.model.bind(state["world"], self.model.codebook(state))
        actor, critic = self.actor.unpack(state["actor"], self.dtype), self.critic.unpack(state["critic"], self.dtype)
        latent, sigma = world.encode(observation), clock["sigma"]

        def plan(code: Tensor, mean: Tensor, noise: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
            start, keys = Latent(code), noise.get("propagation")

            def value(j: int, sequences: Tensor) -> Tensor:
                critics = self.drawn(critic, noise["critics"][j] if "critics" in noise else None)
                last = sigma * noise["terminal"][j] if "terminal" in noise else None
                key = None if keys is None else keys[j + 1]
                return self.sequence_value(world, actor, critics, start, sequences, last, key)

            proposed = self.policy_sequences(world, actor, start, noise, sigma)
            return self.planner.plan(value, proposed, mean, noise)

        if self.config.mpc:
            action, mean = torch.func.vmap(plan)(latent.code, carry["mean"], dict(noise))
            carry = {"mean": mean}
        else:
            action = self.policy(actor, world.seen(latent))
        if "action" in noise:
            action = action + sigma * noise["action"]
        return torch.clamp(action, -1.0, 1.0), carry

    def policy_sequences(
        self, world: World, actor: Parameters, start: Latent, noise: Mapping[str, Tensor], sigma: Tensor
    ) -> Tensor:
        """The actor's own sequences (P, T, A), rolled through the model, with exploration noise if it is given."""
        c, keys, actions = self.config, noise.get("propagation"), []
        latent = Latent(start.code.expand(c.plan_policy, -1))
        for t in range(c.plan_horizon):
            action = self.policy(actor, world.seen(latent))
            if "policy" in noise:
                action = torch.clamp(action + sigma * noise["policy"][t], -1.0, 1.0)
            actions.append(action)
            if t + 1 < c.plan_horizon:
                latent = world.step(latent, action, c.plan_unc_prop, None if keys is None else keys[0, t])
        return torch.stack(actions, 1)

    def sequence_value(
        self, world: World, actor: Parameters, critic: Parameters, start: Latent, sequences: Tensor,
        last: Tensor | None = None, keys: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Phi (n,): predicted rewards of sequences (n, T, A), and the critics' mean at the end.

        last: (A,), noise on the action that the critics judge.
        """
        c, total = self.config, torch.zeros(len(sequences), device=sequences.device)
        latent = Latent(start.code.expand(len(sequences), -1))
        for t in range(c.plan_horizon):
            action = sequences[:, t]
            total = total + c.plan_discount**t * world.reward(latent, action)
            latent = world.step(latent, action, c.plan_unc_prop, None if keys is None else keys[t])
        seen = world.seen(latent)
        action = self.policy(actor, seen)
        if last is not None:
            action = torch.clamp(action + last, -1.0, 1.0)
        return total + c.plan_discount**c.plan_horizon * self.values(critic, seen, action).mean(0)

    def act_noise(self, explore: bool) -> Mapping[str, Noise]:
        c, a = self.config, self.spec.action_dim
        noise = {"action": Noise((a,))} if explore else {}
        if not c.mpc:
            return noise
        noise |= self.planner.noise()
        if c.plan_policy and (explore or c.released_pi_noise):
            noise["policy"] = Noise((c.plan_horizon, 1 if c.released_pi_noise else c.plan_policy, a))
        if c.released_pi_noise:
            noise["terminal"] = Noise((c.plan_iterations, a))
        if c.plan_q == "sample" and 0 < c.q_sample < c.num_critics:
            noise["critics"] = Noise((c.plan_iterations, c.num_critics), "uniform")
        if "sample" in c.plan_unc_prop and c.dynamics != "deterministic":
            noise["propagation"] = Noise((c.plan_iterations + 1, c.plan_horizon, 2), "bits")
        return noise

    def carry(self) -> dict[str, Tensor]:
        return {"mean": self.planner.first_mean()} if self.config.mpc else {}

    def acts_randomly(self, progress: Progress) -> bool:
        return progress.episodes < self.config.warmup_episodes

    # --- losses of actor and critics (section 4)

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
        c, codebook = self.config, self.model.codebook(state)
        gradient, (loss, parts) = grad_and_value(self.model.loss, has_aux=True)(
            state["world"], codebook, batch, noise.get("propagation")
        )
        metrics: Metrics = {"world_loss": loss, **parts}
        changed, metrics["world_gradient_norm"] = self.world_optimiser.step("world", state, gradient)
        changed |= self.model.learn_codebook(state, batch)
        world = self.model.bind(changed["world"], changed.get("codebook", codebook))  # just updated
        total, factor, last = (n_step_released if c.released_nstep else n_step)(batch, c.nstep, c.discount)
        seen, after = world.seen(world.encode(torch.stack([batch.observation[0], last]))).unbind()
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
        return self.model.width

    def latent(self, state: State, observation: Tensor) -> Tensor:
        return self.model.bind(state["world"], self.model.codebook(state)).encode(observation).code

    def codes(self, state: State, latent: Tensor) -> tuple[Tensor, int] | None:
        size = self.model.classes
        return (self.model.quantise.indices(latent, self.model.codebook(state)), size) if size else None

    def hidden(self, state: State, observation: Tensor, action: Tensor) -> list[Tensor]:
        layers: list[Tensor] = []
        world = self.model.bind(state["world"], self.model.codebook(state))
        latent = Latent(self.model.quantise(world.run("encoder", observation, layers), world.codebook))
        world.run("dynamics", torch.cat([latent.code, action], -1), layers)
        critic, actor = self.critic.unpack(state["critic"], self.dtype), self.actor.unpack(state["actor"], self.dtype)
        seen = world.seen(latent)
        self.critic.networks["critic"].forward(critic["critic"], torch.cat([seen, action], -1), layers)
        self.actor.networks["actor"].forward(actor["actor"], seen, layers)
        return layers
