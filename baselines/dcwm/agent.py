"""DC-MPC's actor and critics, what a plan is worth, and what is updated when (dcwm.md sections 4 and 5).

Symbols: pi actor, q critics; a bar is a target network. Both read a latent as `World.head_input` gives it (..., n).
Losses and plans are those of one seed, plans of one environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value

from baselines.dcwm.configuration import COMPONENTS, Config
from baselines.dcwm.planner import MPPI
from baselines.dcwm.world_model import Latent, World, WorldModel
from iqrl.agent import Agent, Batch, Metrics, Noise, Progress, Slices, Stage, State, Tensors, Update, register
from iqrl.environments.suites import SUITES, suite_of
from iqrl.environments.tasks import TaskSpec
from iqrl.errors import InputError
from iqrl.networks import MLP, Adam, BoundNetwork, ParameterGroup, mean_min_max, soft_update
from iqrl.returns import n_step, n_step_iqrl_released
from iqrl.schedules import EXPLORATION_EPISODES, linear_by_episode


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
        if suite_of(task) is not SUITES["dmc"]:
            values["bound_reward"] = False
        if domain == "mw":  # MetaWorld in the released configuration (docs/tasks.md)
            values |= {"nstep": 3, "noise_final": 0.05, "noise_episodes": 500 if group == "hard" else 250}
        if domain == "myo":  # and MyoSuite
            values |= {"noise_final": 0.05, "noise_episodes": 250, "symlog_reward": True}
            if base in ("myo-pose", "myo-reach"):
                values["nstep"] = 5
            if base == "myo-pose":
                values["plan_temperature"] = 0.2
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
        self.world, n = self.model.group, self.model.head_width
        actor = MLP(n, hidden, a, initialisation=c.init, precise_output=True)
        critic = MLP(n + a, hidden, 1, ensemble=c.num_critics, initialisation=c.init, precise_output=True)
        self.actor = ParameterGroup({"actor": actor}, dtype)
        self.critic = ParameterGroup({"critic": critic}, dtype)
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

    def policy(self, actor: BoundNetwork, head_input: Tensor) -> Tensor:
        """pi in [-1, 1]: (..., n) -> (..., A)."""
        return torch.tanh(actor(head_input))

    def values(self, critic: BoundNetwork, head_input: Tensor, action: Tensor) -> Tensor:
        """q_k of every critic: (K, B)."""
        return critic(head_input, action)[..., 0]

    def critics(self, critic: Tensor, draw: Tensor | None) -> BoundNetwork:
        """The critics that uniform numbers (K,) draw; all of them without."""
        return self.critic(critic).critic.drawn(draw, self.config.q_sample)

    # --- acting: planning, or the actor (section 5)

    def act(
        self, state: State, carry: Tensors, observation: Tensor, noise: Tensors, schedule: Tensors
    ) -> tuple[Tensor, Tensors]:
        world = self.model.bind(state["world"], self.model.codebook(state))
        actor, critic = self.actor(state["actor"]).actor, self.critic(state["critic"]).critic
        latent, sigma = world.encode(observation), schedule["sigma"]

        def plan(code: Tensor, mean: Tensor, noise: Tensors) -> tuple[Tensor, Tensor]:
            start, keys = Latent(code), noise.get("propagation")

            def value(j: int, sequences: Tensor) -> Tensor:
                critics = critic.drawn(noise["critics"][j] if "critics" in noise else None, self.config.q_sample)
                last = sigma * noise["terminal"][j] if "terminal" in noise else None
                key = None if keys is None else keys[j + 1]
                return self.sequence_value(world, actor, critics, start, sequences, last, key)

            proposed = self.policy_sequences(world, actor, start, noise, sigma)
            return self.planner.plan(value, proposed, mean, noise)

        if self.config.mpc:
            action, mean = torch.func.vmap(plan)(latent.code, carry["mean"], dict(noise))
            carry = {"mean": mean}
        else:
            action = self.policy(actor, world.head_input(latent))
        if "action" in noise:
            action = action + sigma * noise["action"]
        return torch.clamp(action, -1.0, 1.0), carry

    def policy_sequences(
        self, world: World, actor: BoundNetwork, start: Latent, noise: Tensors, sigma: Tensor
    ) -> Tensor:
        """The actor's own sequences (P, T, A), rolled through the model, with exploration noise if it is given."""
        c, keys, actions = self.config, noise.get("propagation"), []
        latent = Latent(start.code.expand(c.plan_policy, -1))
        for t in range(c.plan_horizon):
            action = self.policy(actor, world.head_input(latent))
            if "policy" in noise:
                action = torch.clamp(action + sigma * noise["policy"][t], -1.0, 1.0)
            actions.append(action)
            if t + 1 < c.plan_horizon:
                latent = world.step(latent, action, c.plan_unc_prop, None if keys is None else keys[0, t])
        return torch.stack(actions, 1)

    def sequence_value(
        self, world: World, actor: BoundNetwork, critic: BoundNetwork, start: Latent, sequences: Tensor,
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
        head_input = world.head_input(latent)
        action = self.policy(actor, head_input)
        if last is not None:
            action = torch.clamp(action + last, -1.0, 1.0)
        return total + c.plan_discount**c.plan_horizon * self.values(critic, head_input, action).mean(0)

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

    def target_value(self, state: State, head_input: Tensor, total: Tensor, factor: Tensor, noise: Tensors) -> Tensor:
        """y (B,): N-step return, smoothed target policy, smaller of the target critics drawn (section 4)."""
        c = self.config
        smoothing = torch.clamp(c.policy_noise * noise["smoothing"], -c.noise_clip, c.noise_clip)
        action = self.policy(self.actor(state["target_actor"]).actor, head_input)
        action = torch.clamp(action + smoothing, -1.0, 1.0)
        q = self.values(self.critics(state["target_critic"], noise.get("target_critics")), head_input, action)
        return total + factor * q.min(0).values

    def critic_loss(self, critic: Tensor, head_input: Tensor, action: Tensor, y: Tensor) -> tuple[Tensor, Metrics]:
        """Mean over critics and batch of (q_k - y)^2."""
        q = self.values(self.critics(critic, None), head_input, action)
        return (q - y).square().mean(), mean_min_max("q", q)

    def actor_loss(self, actor: Tensor, critic: Tensor, head_input: Tensor, draw: Tensor | None) -> Tensor:
        """-E[mean of the critics drawn]."""
        action = self.policy(self.actor(actor).actor, head_input)
        return -self.values(self.critics(critic, draw), head_input, action).mean()

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
            if name != "update_critic":
                noise["actor_critics"] = Noise((c.num_critics,), "uniform")
        return Stage(noise=noise, parts=("update_critic", "update_actor") if name == "update_all" else ())

    def update_critic(self, state: State, batch: Batch, noise: Tensors, schedule: Tensors) -> Update:
        """World model, critics, target critics."""
        c, codebook = self.config, self.model.codebook(state)
        if c.symlog_reward:
            batch = replace(batch, reward=batch.reward.sign() * batch.reward.abs().log1p())
        gradient, (loss, parts) = grad_and_value(self.model.loss, has_aux=True)(
            state["world"], codebook, batch, noise.get("propagation")
        )
        metrics: Metrics = {"world_loss": loss, **parts}
        changed, metrics["world_gradient_norm"] = self.world_optimiser.step("world", state, gradient)
        changed |= self.model.learn_codebook(state, batch)
        world = self.model.bind(changed["world"], changed.get("codebook", codebook))  # just updated
        total, factor, last = (n_step_iqrl_released if c.released_nstep else n_step)(batch, c.nstep, c.discount)
        head_input, after = world.head_input(world.encode(torch.stack([batch.observation[0], last]))).unbind()
        y = self.target_value(state, after, total, factor, noise)
        gradient, (loss, parts) = grad_and_value(self.critic_loss, has_aux=True)(
            state["critic"], head_input, batch.action[0], y
        )
        stepped, norm = self.optimiser.step("critic", state, gradient)
        changed |= stepped
        changed["target_critic"] = soft_update(state["target_critic"], stepped["critic"], c.tau)
        metrics |= {"critic_loss": loss, **parts, "critic_gradient_norm": norm}
        metrics |= {"target_mean": y.mean(), "target_std": y.std()}
        return changed, metrics

    def update_actor(self, state: State, batch: Batch, noise: Tensors, schedule: Tensors) -> Update:
        """Actor and target actor, by the world model and the critics that `update_critic` has just changed."""
        world = self.model.bind(state["world"], self.model.codebook(state))
        head_input, draw = world.head_input(world.encode(batch.observation[0])), noise.get("actor_critics")
        gradient, loss = grad_and_value(self.actor_loss)(state["actor"], state["critic"], head_input, draw)
        changed, norm = self.optimiser.step("actor", state, gradient)
        changed["target_actor"] = soft_update(state["target_actor"], changed["actor"], self.config.tau)
        return changed, {"actor_loss": loss, "actor_gradient_norm": norm}

    # --- schedule (section 4)

    def schedule(self, progress: Progress) -> dict[str, float]:
        """sigma: the next value after each training phase, the catch-up phase being the first."""
        c = self.config
        index = progress.episodes - max(c.warmup_episodes, 1) + 1
        return {"sigma": linear_by_episode(c.noise_initial, c.noise_final, c.noise_episodes, index)}

    def after_episode(self, progress: Progress, counters: dict[str, float]) -> tuple[int, tuple[str, ...]]:
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

    def target_latent(self, state: State, observation: Tensor) -> Tensor:
        return self.latent(state, observation)  # there is no target encoder

    def predicted_latent(self, state: State, latent: Tensor, action: Tensor, *told: Tensor) -> Tensor:
        """The expected code."""
        world = self.model.bind(state["world"], self.model.codebook(state))
        return world.step(Latent(latent), action, "weighted_avg", None).code

    def codes(self, state: State, latent: Tensor) -> tuple[Tensor, int] | None:
        size = self.model.classes
        return (self.model.quantise.indices(latent, self.model.codebook(state)), size) if size else None

    def hidden(self, state: State, observation: Tensor, action: Tensor) -> list[Tensor]:
        layers: list[Tensor] = []
        world = self.model.bind(state["world"], self.model.codebook(state))
        latent = Latent(self.model.quantise(world.net.encoder(observation, hidden=layers), world.codebook))
        world.net.dynamics(latent.code, action, hidden=layers)
        head_input = world.head_input(latent)
        self.critic(state["critic"]).critic(head_input, action, hidden=layers)
        self.actor(state["actor"]).actor(head_input, hidden=layers)
        return layers
