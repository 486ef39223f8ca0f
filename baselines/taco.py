"""TACO: contrastive learning of states and action sequences, on DrQ-v2 (arXiv 2306.13229; spec page taco.md).

Symbols as in `baselines/drqv2.py`, and: u(a), tokens of an action, which the critics take in its place; s = p(h), a
projection of the features; W, a bilinear form that compares. TACO has s and the tokens of K actions name the s that
follows, among those of all the batch. From states, which is our adaptation, h is an MLP's output. Losses are those of
one seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad_and_value

from baselines import drqv2
from iqrl.agent import Agent, Batch, Metrics, Noise, Slices, Stage, State, Tensors, Update, register, setting
from iqrl.environments.tasks import TaskSpec
from iqrl.networks import MLP, Adam, Network, ParameterGroup, Parameters
from iqrl.returns import n_step

CONTRASTED = "encoder/contrast"  # entries of the optimiser that the encoder has for the contrastive losses


@dataclass(frozen=True)
class Config(drqv2.Config):
    """DrQ-v2's settings, with TACO's own (table at the end of taco.md)."""

    batch_size: int = setting(1024, "slices in a batch", low=2, high=1_000_000)
    multistep: int = setting(3, "K, actions between a state and the one it is to name", low=1, high=100)
    token_dim: int = setting(0, "width of an action's tokens; 0 is the whole part of 1.25 A, plus 1", low=0, high=65536)
    curl: bool = setting(True, "s is to name itself under another shift; off from states")
    predict_reward: bool = setting(True, "the N-step reward from s and tokens")
    encoder_lr: float = setting(1e-4, "Adam learning rate of the contrastive losses", low=0.0, high=1.0)
    state_dims: list[int] = setting(
        [256, 512], "hidden widths of the encoder from states, and its output's", low=1, high=65536
    )


@dataclass(frozen=True)
class Bilinear:
    """q W k for every pair of rows; W is uniform on [0, 1) at first."""

    width: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.width, self.width)}

    def castable(self, name: str) -> bool:
        return False

    def initialise(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {"weight": torch.rand(self.width, self.width, generator=generator)}

    def __call__(self, parameters: Parameters, *inputs: Tensor, hidden: list[Tensor] | None = None) -> Tensor:
        """Queries (B, width) and keys (B, width) -> (B, B)."""
        query, key = inputs
        return query @ parameters["weight"] @ key.T


Settings = Config  # within the class that name is the class's own


@register("taco")
class TACO(drqv2.DrQv2):
    Config = Config
    sees_states = True
    valued = ("critic", "encoder")
    presets = {
        "default": {},
        "small": {"filters": 16, "hidden_dim": 256, "batch_size": 128, "state_dims": [128, 128]},
        "tiny": {"filters": 8, "feature_dim": 8, "hidden_dim": 16, "batch_size": 8, "state_dims": [16, 16]},
    }
    config: Settings

    @classmethod
    def task_defaults(cls, task: str, group: str) -> dict[str, Any]:
        values = super().task_defaults(task, group)
        values.pop("batch_size", None)
        if task.startswith("manipulator-"):
            values["noise_decisions"] = drqv2.NOISE_DECISIONS["hard"]
        return values if "@pixels" in task else {**values, "curl": False}

    def __init__(self, config: Settings, spec: TaskSpec, dtype: torch.dtype = torch.float32) -> None:
        Agent.__init__(self, config, spec, dtype)
        c, a, z = config, spec.action_dim, config.feature_dim
        token = c.token_dim or int(1.25 * a) + 1
        self.images = spec.frame_shape is not None
        *first, last = c.state_dims
        seen = self.convolutions() if self.images else MLP(spec.observation_dim, tuple(first), last, precise_input=True)
        width = self.convolutions().outputs if self.images else last

        def mlp(inputs: int, hidden: int, outputs: int, activation: str = "relu") -> MLP:
            return MLP(inputs, (hidden,), outputs, activation, "none", initialisation="orthogonal", precise_output=True)

        self.encoder = ParameterGroup({"encoder": seen, "token": mlp(a, 64, token, "tanh")}, dtype)
        self.critic = ParameterGroup({"trunk": self.trunk(width), "q": self.head(z + token, 1, ensemble=2)}, dtype)
        self.target = self.critic
        self.actor = ParameterGroup({"trunk": self.trunk(width), "policy": self.head(z, a)}, dtype)
        both = z + c.multistep * token
        contrast: dict[str, Network] = {
            "projection": self.trunk(width),
            "sequence": MLP(both - z, (both - z,), 0, "tanh", initialisation="orthogonal"),
            "query": mlp(both, c.hidden_dim, z),
            "similarity": Bilinear(z),
        }
        if c.predict_reward:
            contrast["reward"] = mlp(both, c.hidden_dim, 1)
        self.contrast = ParameterGroup(contrast, dtype)
        self.optimiser, self.contrast_optimiser = Adam(c.lr), Adam(c.encoder_lr)

    # --- networks

    def features(self, nets: Tensors, image: Tensor, hidden: list[Tensor] | None = None) -> Tensor:
        """h: (B, C, height, width) uint8, or states (B, O) -> (B, F)."""
        return self.encoder(nets["encoder"]).encoder(image / 255.0 - 0.5 if self.images else image, hidden=hidden)

    def values(
        self, nets: Tensors, h: Tensor, action: Tensor, bar: bool = False, hidden: list[Tensor] | None = None
    ) -> Tensor:
        """As DrQ-v2's, of the action's tokens; those are the current ones for the target, too."""
        return super().values(nets, h, self.encoder(nets["encoder"]).token(action), bar, hidden)

    def shifted(self, image: Tensor, uniform: Tensor) -> Tensor:
        return super().shifted(image, uniform) if self.images else image

    def initialise(self, generator: torch.Generator) -> dict[str, Tensor]:
        encoder, contrast = self.encoder.initialise(generator), self.contrast.initialise(generator)
        moments = self.contrast_optimiser.initialise(CONTRASTED, encoder)
        return {
            **super().initialise(generator),
            **self.optimiser.initialise("encoder", encoder),
            **{k: v for k, v in moments.items() if k != CONTRASTED},  # the weights are the encoder's
            **self.contrast_optimiser.initialise("contrast", contrast),
        }

    # --- losses

    def contrast_loss(self, nets: Tensors, batch: Batch, noise: Tensors) -> tuple[Tensor, Metrics]:
        """Cross-entropies of finding each row's own key among all of the batch, and the reward's error."""
        c, net, steps = self.config, self.contrast(nets["contrast"]), self.config.multistep
        now, later = batch.observation[0], batch.observation[steps]
        mask = batch.alive[steps - 1]  # (B,): whether `later` is of the same episode
        s = net.projection(self.features(nets, self.shifted(now, noise["anchor"])))
        with torch.no_grad():
            goal = net.projection(self.features(nets, self.shifted(later, noise["later"])))
        tokens = self.encoder(nets["encoder"]).token(batch.action[:steps])  # (K, B, tokens)
        both = torch.cat([s, net.sequence(tokens.movedim(0, 1).flatten(1))], -1)

        def found(query: Tensor, key: Tensor) -> Tensor:
            return -torch.log_softmax(net.similarity(query, key), -1).diagonal(dim1=-2, dim2=-1)  # (B,)

        losses = {"taco_loss": (mask * found(net.query(both), goal)).mean()}
        if c.curl:
            with torch.no_grad():
                positive = net.projection(self.features(nets, self.shifted(now, noise["positive"])))
            losses["curl_loss"] = found(s, positive).mean()
        if c.predict_reward:
            total, _, _ = n_step(batch, c.nstep, c.discount)
            losses["reward_loss"] = F.mse_loss(net.reward(both)[:, 0], total)
        return torch.stack(list(losses.values())).sum(), {k: v.detach() for k, v in losses.items()}

    # --- learning

    @property
    def slices(self) -> Slices:
        return Slices(max(self.config.nstep, self.config.multistep), self.config.batch_size)

    def stages(self, update: int) -> tuple[str, ...]:
        return ("update_all",)

    def stage(self, name: str) -> Stage:
        noise = dict(super().stage(name).noise) if name != "update_contrast" else {}
        if name != "update":
            noise |= dict.fromkeys(("anchor", "positive", "later"), Noise((self.config.batch_size, 2), "uniform"))
        return Stage(noise=noise, parts=("update", "update_contrast") if name == "update_all" else ())

    def update_contrast(self, state: State, batch: Batch, noise: Tensors, schedule: Tensors) -> Update:
        """Projections and, by an optimiser of its own for these losses, the encoder with the tokens once more."""
        nets = {name: state[name] for name in ("encoder", "contrast")}
        gradients, (_, metrics) = grad_and_value(self.contrast_loss, has_aux=True)(nets, batch, noise)
        changed, _ = self.contrast_optimiser.step("contrast", state, gradients["contrast"])
        shared = {**state, CONTRASTED: state["encoder"]}
        stepped, _ = self.contrast_optimiser.step(CONTRASTED, shared, gradients["encoder"])
        encoder = stepped.pop(CONTRASTED)
        return {**changed, **stepped, "encoder": encoder}, metrics
