"""TD7: TD3 with state-action embeddings, prioritised replay and policy checkpoints.

arXiv 2306.02451; spec page td7.md. Symbols: f and g, the state and state-action
encoders, give zs = f(s) and zsa = g(zs, a). Of the encoder there is the one in training, the `fixed_encoder`
that the current actor and critic read, and the `fixed_encoder_target` that their targets read. Losses are
those of one seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad_and_value

from iqrl.agent import Agent, Batch, Metrics, Noise, Progress, Slices, Stage, State, Tensors, Update, register, setting
from iqrl.environments.tasks import TaskSpec
from iqrl.networks import MLP, Adam, ParameterGroup, mean_min_max, soft_update
from iqrl.redundancy import COVARIANCE, REMEDY, VARIANCE, remedy_loss

FAR = 1e8  # where running extremes start


@dataclass(frozen=True)
class Config:
    """Defaults are the official ones, counted in decisions (td7.md, "Hyperparameters")."""

    profile: str = setting("official", "official, or `protocol`: warm-up as the other agents'")
    # state-action embeddings (td7.md, "Networks")
    use_sale: bool = setting(True, "embeddings; without them actor and critics see observations alone")
    width: int = setting(256, "width of every layer and embedding", low=1, high=65536)
    enc_lr: float = setting(3e-4, "Adam learning rate of the encoder", low=0.0, high=1.0)
    enc_target: str = setting(
        "current", "whose f(s') is predicted: its own, or a moving average's", choices=("current", "ema")
    )
    enc_tau: float = setting(0.005, "rate of that average", low=0.0, high=1.0)
    remedy: str = setting("none", **REMEDY)
    remedy_variance: float = setting(0.01, **VARIANCE)
    remedy_covariance: float = setting(0.01, **COVARIANCE)
    # actor and critic ("One training step")
    discount: float = setting(0.99, "gamma, per decision", low=0.0, high=1.0)
    actor_lr: float = setting(3e-4, "Adam learning rate of the actor", low=0.0, high=1.0)
    critic_lr: float = setting(3e-4, "Adam learning rate of the critic", low=0.0, high=1.0)
    actor_every: int = setting(2, "critic updates per actor update", low=1, high=1000)
    target_every: int = setting(250, "updates between hard copies to the targets", low=1, high=10**6)
    target_noise: float = setting(0.2, "target policy smoothing, standard deviation", low=0.0, high=10.0)
    noise_clip: float = setting(0.5, "and where it is clipped", low=0.0, high=10.0)
    use_value_clip: bool = setting(True, "clip target values to the range of targets seen before")
    bc_lambda: float = setting(0.0, "weight of behaviour cloning in the actor's loss; 0.1 offline", low=0.0, high=1e6)
    # replay ("LAP buffer")
    use_lap: bool = setting(True, "prioritised replay and Huber loss; without it uniform, and squares")
    lap_alpha: float = setting(0.4, "exponent of priorities", low=0.0, high=1.0)
    lap_min: float = setting(1.0, "smallest error of a priority; where the Huber loss bends", low=1e-6, high=1e6)
    batch_size: int = setting(256, "transitions in a batch", low=2, high=1_000_000)
    buffer_size: int = setting(1_000_000, "replay capacity, transitions", low=1000, high=10**9)
    # collection and checkpoints ("Collection, exploration, policy checkpoints")
    warmup_decisions: int = setting(
        25_000, "uniform random decisions first, to the episode's end, without updates", low=0, high=10**9
    )
    exploration_noise: float = setting(0.1, "standard deviation", low=0.0, high=10.0)
    use_checkpoints: bool = setting(
        True, "assess policies over whole episodes and evaluate the best; otherwise update at each decision"
    )
    checkpoint_episodes: int = setting(20, "episodes of an assessment, once it is late", low=1, high=10**6)
    checkpoint_late: int = setting(750_000, "updates until it is; one episode before", low=0, high=10**9)
    checkpoint_reset: float = setting(0.9, "factor of the return to beat, at that time", low=0.0, high=100.0)


@register("td7")
class TD7(Agent[Config]):
    profiles = {"official": {}, "protocol": {"warmup_decisions": 5_000}}
    presets = {
        "default": {},
        "small": {"width": 128, "batch_size": 128},
        "tiny": {"width": 16, "batch_size": 16},
    }

    def __init__(self, config: Config, spec: TaskSpec, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(config, spec, dtype)
        o, a, w = spec.observation_dim, spec.action_dim, config.width
        embedded = w if config.use_sale else 0
        f, g = MLP(o, (w, w), w, "elu", "none", precise_input=True), MLP(w + a, (w, w), w, "elu", "none")
        policy = MLP(w + embedded, (w, w), a, "relu", "none", precise_output=True)
        value = MLP(w + 2 * embedded, (w, w), 1, "elu", "none", ensemble=2, precise_output=True)
        self.encoder = ParameterGroup({"f": f, "g": g}, dtype)
        self.actor = ParameterGroup({"input": MLP(o, (), w, precise_input=True), "trunk": policy}, dtype)
        first = MLP(o + a, (), w, ensemble=2, precise_input=True)
        self.critic = ParameterGroup({"input": first, "trunk": value}, dtype)
        self.encoder_optimiser = Adam(config.enc_lr)
        self.actor_optimiser, self.critic_optimiser = Adam(config.actor_lr), Adam(config.critic_lr)

    # --- networks

    def embed_state(self, encoder: Tensor, observation: Tensor) -> Tensor:
        """zs = f(s): (B, O) -> (B, w); of width 0 without embeddings."""
        if not self.config.use_sale:
            return observation[..., :0]
        return avg_l1_norm(self.encoder(encoder).f(observation))

    def embed_action(self, encoder: Tensor, zs: Tensor, action: Tensor) -> Tensor:
        """zsa = g(zs, a): (B, w), not normalised; of width 0 without embeddings."""
        if not self.config.use_sale:
            return zs
        return self.encoder(encoder).g(zs, action)

    def policy(self, actor: Tensor, observation: Tensor, zs: Tensor, hidden: list[Tensor] | None = None) -> Tensor:
        """pi(s, zs) in [-1, 1]: (B, A)."""
        net = self.actor(actor)
        return torch.tanh(net.trunk(avg_l1_norm(net.input(observation)), zs, hidden=hidden))

    def values(
        self,
        critic: Tensor,
        observation: Tensor,
        action: Tensor,
        zsa: Tensor,
        zs: Tensor,
        hidden: list[Tensor] | None = None,
    ) -> Tensor:
        """Q(s, a, zsa, zs) of both heads: (2, B)."""
        net = self.critic(critic)
        u = avg_l1_norm(net.input(observation, action))  # (2, B, w)
        embeddings = torch.cat([zsa, zs], -1)
        return net.trunk(u, embeddings.expand(2, *embeddings.shape), hidden=hidden)[..., 0]

    def initialise(self, generator: torch.Generator) -> dict[str, Tensor]:
        encoder, actor, critic = (g.initialise(generator) for g in (self.encoder, self.actor, self.critic))
        state = {
            **self.encoder_optimiser.initialise("encoder", encoder),
            **self.actor_optimiser.initialise("actor", actor),
            **self.critic_optimiser.initialise("critic", critic),
            "fixed_encoder": encoder.clone(),
            "fixed_encoder_target": encoder.clone(),
            "target_actor": actor.clone(),
            "target_critic": critic.clone(),
            "seen_range": torch.tensor([FAR, -FAR]),  # smallest and largest target value so far
            "clip_range": torch.zeros(2),  # and as they were at the last copy to the targets
        }
        if self.config.enc_target == "ema":
            state["average_encoder"] = encoder.clone()
        if self.config.use_checkpoints:
            state |= {"checkpoint_actor": actor.clone(), "checkpoint_encoder": encoder.clone()}
        return state

    # --- acting

    def act(
        self, state: State, carry: Tensors, observation: Tensor, noise: Tensors, schedule: Tensors
    ) -> tuple[Tensor, State]:
        """The current policy when exploring; the checkpoint, greedily, when evaluated."""
        if self.config.use_checkpoints and "action" not in noise:
            actor, encoder = state["checkpoint_actor"], state["checkpoint_encoder"]
        else:
            actor, encoder = state["actor"], state["fixed_encoder"]
        action = self.policy(actor, observation, self.embed_state(encoder, observation))
        if "action" in noise:
            action = torch.clamp(action + self.config.exploration_noise * noise["action"], -1.0, 1.0)
        return action, carry

    def acts_randomly(self, progress: Progress) -> bool:
        """Until the first episode that ends after the warm-up."""
        return progress.decisions - progress.episode_decisions < self.config.warmup_decisions

    # --- losses (td7.md, "One training step", by number)

    def encoder_loss(self, encoder: Tensor, source: Tensor, batch: Batch) -> Tensor:
        """1: the next state's embedding by `source`, predicted from this state's and the action."""
        observation, following = batch.observation
        zs = self.embed_state(encoder, observation)
        error = (self.embed_action(encoder, zs, batch.action[0]) - self.embed_state(source, following)).square().mean()
        return error + sum(remedy_loss(self.config, zs, self.encoder(encoder).g).values())

    def target_value(self, state: State, batch: Batch, noise: Tensors) -> Tensor:
        """2: y (B,), by the target networks on the targets' encoder; the value is clipped, not the reward."""
        c, following, encoder = self.config, batch.observation[1], state["fixed_encoder_target"]
        zs = self.embed_state(encoder, following)
        smoothing = torch.clamp(c.target_noise * noise["smoothing"], -c.noise_clip, c.noise_clip)
        action = torch.clamp(self.policy(state["target_actor"], following, zs) + smoothing, -1.0, 1.0)
        zsa = self.embed_action(encoder, zs, action)
        q = self.values(state["target_critic"], following, action, zsa, zs).min(0).values
        if c.use_value_clip:
            q = torch.clamp(q, state["clip_range"][0], state["clip_range"][1])
        return batch.reward[0] + (1.0 - batch.terminated[0]) * c.discount * q

    def critic_loss(
        self, critic: Tensor, batch: Batch, zsa: Tensor, zs: Tensor, y: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Metrics]]:
        """3: Huber loss of LAP, summed over the heads. Also gives the errors |Q - y| (2, B)."""
        q = self.values(critic, batch.observation[0], batch.action[0], zsa, zs)
        error = (q - y).abs()
        element = lap_huber(error, self.config.lap_min) if self.config.use_lap else error.square()
        return element.sum(0).mean(), (error.detach(), mean_min_max("q", q))

    def actor_loss(self, actor: Tensor, critic: Tensor, encoder: Tensor, batch: Batch, zs: Tensor) -> Tensor:
        """5: minus the mean value over both heads; the gradient passes through g into the action."""
        observation = batch.observation[0]
        action = self.policy(actor, observation, zs)
        q = self.values(critic, observation, action, self.embed_action(encoder, zs, action), zs)
        loss = -q.mean()
        if self.config.bc_lambda:
            cloning = (action - batch.action[0]).square().mean()
            loss = loss + self.config.bc_lambda * q.detach().abs().mean() * cloning
        return loss

    # --- learning

    @property
    def slices(self) -> Slices:
        return Slices(1, self.config.batch_size, prioritised=self.config.use_lap)

    def stages(self, update: int) -> tuple[str, ...]:
        step = "update_all" if update % self.config.actor_every == 0 else "update_critic"
        return (step, "copy_to_targets") if update % self.config.target_every == 0 else (step,)

    def stage(self, name: str) -> Stage:
        if name in ("copy_to_targets", "checkpoint_policy"):
            return Stage(batch=False, reset_priority=name == "copy_to_targets")
        noise = {"smoothing": Noise((self.config.batch_size, self.spec.action_dim))}
        return Stage(noise=noise, parts=("update_critic", "update_actor") if name == "update_all" else ())

    def update_critic(self, state: State, batch: Batch, noise: Tensors, schedule: Tensors) -> Update:
        """Encoder and critic (1 to 4)."""
        c = self.config
        changed: dict[str, Tensor] = {}
        metrics: Metrics = {}
        if c.use_sale:
            source = state["average_encoder" if c.enc_target == "ema" else "encoder"]
            gradient, loss = grad_and_value(self.encoder_loss)(state["encoder"], source, batch)
            changed, _ = self.encoder_optimiser.step("encoder", state, gradient)
            metrics["encoder_loss"] = loss
            if c.enc_target == "ema":
                changed["average_encoder"] = soft_update(source, changed["encoder"], c.enc_tau)
        y = self.target_value(state, batch, noise)
        low, high = state["seen_range"]
        changed["seen_range"] = torch.stack([torch.minimum(low, y.min()), torch.maximum(high, y.max())])
        zs = self.embed_state(state["fixed_encoder"], batch.observation[0])
        zsa = self.embed_action(state["fixed_encoder"], zs, batch.action[0])
        gradient, (loss, (error, parts)) = grad_and_value(self.critic_loss, has_aux=True)(
            state["critic"], batch, zsa, zs, y
        )
        stepped, _ = self.critic_optimiser.step("critic", state, gradient)
        metrics |= {"critic_loss": loss, **parts, "target_mean": y.mean(), "target_std": y.std()}
        if c.use_lap:
            metrics["priority"] = lap_priority(error, c.lap_min, c.lap_alpha)
        return {**changed, **stepped}, metrics

    def update_actor(self, state: State, batch: Batch, noise: Tensors, schedule: Tensors) -> Update:
        """The actor, by the critic that `update_critic` has just changed (5)."""
        encoder = state["fixed_encoder"]
        zs = self.embed_state(encoder, batch.observation[0])
        gradient, loss = grad_and_value(self.actor_loss)(state["actor"], state["critic"], encoder, batch, zs)
        changed, _ = self.actor_optimiser.step("actor", state, gradient)
        return changed, {"actor_loss": loss}

    def copy_to_targets(self, state: State, batch: None, noise: Tensors, schedule: Tensors) -> Update:
        """6: hard copies, each encoder one place further; the range seen so far becomes the clip's."""
        return {
            "target_actor": state["actor"],
            "target_critic": state["critic"],
            "fixed_encoder_target": state["fixed_encoder"],
            "fixed_encoder": state["encoder"],
            "clip_range": state["seen_range"],
        }, {}

    def checkpoint_policy(self, state: State, batch: None, noise: Tensors, schedule: Tensors) -> Update:
        """Keep the current policy as the one to evaluate."""
        return {"checkpoint_actor": state["actor"], "checkpoint_encoder": state["fixed_encoder"]}, {}

    # --- schedule

    def counters(self) -> dict[str, float]:
        """The policy's assessment so far, and the return to beat: the worst of the checkpoint's episodes."""
        return {"episodes": 0, "decisions": 0, "worst": FAR, "to_beat": -FAR, "wanted": 1}

    def after_decision(self, progress: Progress) -> int:
        return int(not self.config.use_checkpoints and not self.acts_randomly(progress))

    def after_episode(self, progress: Progress, counters: dict[str, float]) -> tuple[int, tuple[str, ...]]:
        """Train once a policy is rejected by one bad episode, or has passed all of them and is kept."""
        c = self.config
        if not c.use_checkpoints or self.acts_randomly(progress):
            return 0, ()
        counters["episodes"] += 1
        counters["decisions"] += progress.episode_decisions
        counters["worst"] = min(counters["worst"], progress.episode_return)
        rejected = counters["worst"] < counters["to_beat"]
        if not rejected and counters["episodes"] < counters["wanted"]:
            return 0, ()
        if not rejected:
            counters["to_beat"] = counters["worst"]
        updates = int(counters["decisions"])
        counters |= {"episodes": 0, "decisions": 0, "worst": FAR}
        if progress.updates <= c.checkpoint_late < progress.updates + updates:  # falls within this training
            counters["to_beat"] *= c.checkpoint_reset
            counters["wanted"] = c.checkpoint_episodes
        return updates, () if rejected else ("checkpoint_policy",)

    # --- looking inside

    def latent_width(self) -> int:
        return self.config.width if self.config.use_sale else 0

    def latent(self, state: State, observation: Tensor) -> Tensor | None:
        """zs of the encoder that the current actor and critic read."""
        return self.embed_state(state["fixed_encoder"], observation) if self.config.use_sale else None

    def target_latent(self, state: State, observation: Tensor) -> Tensor | None:
        """As the loss has it, but for the fixed encoder, which is what `latent` is of."""
        source = "average_encoder" if self.config.enc_target == "ema" else "fixed_encoder"
        return self.embed_state(state[source], observation) if self.config.use_sale else None

    def predicted_latent(self, state: State, latent: Tensor, action: Tensor, *told: Tensor) -> Tensor:
        return self.embed_action(state["fixed_encoder"], latent, action)

    def hidden(self, state: State, observation: Tensor, action: Tensor) -> list[Tensor]:
        layers: list[Tensor] = []
        zs = zsa = self.embed_state(state["fixed_encoder"], observation)
        if self.config.use_sale:
            encoder = self.encoder(state["fixed_encoder"])
            encoder.f(observation, hidden=layers)
            zsa = encoder.g(zs, action, hidden=layers)
        self.values(state["critic"], observation, action, zsa, zs, layers)
        self.policy(state["actor"], observation, zs, layers)
        return layers


def avg_l1_norm(x: Tensor) -> Tensor:
    """x over the mean of its absolute entries, at least 1e-8; last axis."""
    return x / torch.clamp(x.abs().mean(-1, keepdim=True), min=1e-8)


def lap_huber(error: Tensor, bend: float) -> Tensor:
    """error^2 / 2 below `bend`, bend * error from there on: LAP's form, which jumps where bend is not 1."""
    return torch.where(error < bend, 0.5 * error.square(), bend * error)


def lap_priority(error: Tensor, smallest: float, alpha: float) -> Tensor:
    """max(largest error of the heads, smallest)^alpha: (heads, B) -> (B,)."""
    return torch.clamp(error.amax(0), min=smallest) ** alpha
