"""The world model of DC-MPC: latents made of codes, dynamics that classify the next code, rewards, and their loss.

Latents are those of dcwm.md section 1, networks of dcwm.md section 2, the loss of dcwm.md section 3; the arms listed in
dcwm.md section 8 replace one part each. Symbols: e encoder, f quantiser, K codebook of |C| codes, d_phi dynamics, R
reward. A latent is a flat vector of Z = d b entries, d latent dimensions of b channels. Logits and class weights are
laid out (..., |C|, d), classes before dimensions: sums over classes then run along contiguous memory, which on a CPU
makes sampling several times faster.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from baselines.dcwm.configuration import COMPONENTS, Config
from iqrl import counter_random
from iqrl.agent import Batch, Metrics, State
from iqrl.environments.tasks import TaskSpec
from iqrl.networks import MLP, BoundNetworks, ParameterGroup, mean_min_max
from iqrl.quantisers import FSQ, VQ, Continuous, make_quantiser


@dataclass(frozen=True)
class Latent:
    """A latent `code` (..., Z) and the class `weights` (..., |C|, d) that it was made of, if it was."""

    code: Tensor
    weights: Tensor | None = None


class WorldModel:
    """The description of a world model; `bind` makes it one that can be unrolled.

    Attributes:
        width: Z.
        classes: |C|, 0 for latents without codes.
        head_width: n, width of what reward, actor and critics read of a latent.
        predicted: width of what the dynamics put out.
        group: the networks.
    """

    def __init__(self, config: Config, spec: TaskSpec, dtype: torch.dtype) -> None:
        self.config, self.action_repeat = config, spec.action_repeat
        c, o, a, hidden = config, spec.observation_dim, spec.action_dim, tuple(config.mlp_dims)
        coded = c.quantizer in ("fsq", "vq")
        self.quantise = make_quantiser(c.quantizer, c.fsq_levels, c.vq_codes, c.vq_beta, c.vq_decay)
        self.width = z = c.latent_dim * (len(c.fsq_levels) if coded else 1)
        self.classes = self.quantise.codebook_size
        self.components = COMPONENTS.get(c.dynamics, 0)
        self.head_width = {"codebook": z, "onehot": c.latent_dim * self.classes, "label": c.latent_dim}[c.head_encoding]
        predicted = c.latent_dim * self.classes if c.dynamics == "stochastic" else z
        if self.components:
            predicted = self.components * (2 * z + 1)  # means, logarithms of deviations, logits
        self.predicted = predicted
        networks = {
            "encoder": MLP(o, tuple(c.enc_mlp_dims), z, initialisation=c.init, precise_input=True),
            "dynamics": MLP(z + a, hidden, predicted, initialisation=c.init),
            "reward": MLP(self.head_width + a, hidden, 1, initialisation=c.init, precise_output=True),
        }
        if c.use_decoder:
            networks["decoder"] = MLP(z, hidden, o, initialisation=c.init)
        self.group = ParameterGroup(networks, dtype)

    def codebook(self, state: State) -> Tensor | None:
        """K (|C|, b), or None without one."""
        if isinstance(self.quantise, FSQ):
            return self.quantise.codebook(state["world"].device)
        return state.get("codebook")

    def bind(self, flat: Tensor, codebook: Tensor | None) -> World:
        """The model with one seed's parameters (P,)."""
        return World(self, self.group(flat), codebook)

    def loss(self, flat: Tensor, codebook: Tensor | None, batch: Batch, keys: Tensor | None) -> tuple[Tensor, Metrics]:
        """L of dcwm.md section 3, consistency and reward over an unroll of H steps, and optional terms.

        keys: (H, 2) bits, for the samples.
        """
        c, world = self.config, self.bind(flat, codebook)
        going = batch.alive[: c.horizon] * (1.0 - batch.terminated[: c.horizon])  # the mask of W8; 1 on DM Control
        powers = c.rep_discount ** torch.arange(c.horizon, device=flat.device, dtype=going.dtype)
        scale = powers[:, None] * going / c.horizon  # (H, B)
        with torch.no_grad():  # no target encoder: the online one, without gradient
            vector = world.net.encoder(batch.observation[1 : c.horizon + 1])
            goal = self.quantise(vector, codebook)
            goal_index = None if isinstance(self.quantise, Continuous) else self.quantise.classify(vector, codebook)
        vector = world.net.encoder(batch.observation[0])
        latent = Latent(self.quantise(vector, codebook))
        codes, consistency, mistakes = [], [], []  # no loss needs the last code that is sampled: it is not kept
        for h in range(c.horizon):
            codes.append(latent.code)
            mistakes.append((world.reward(latent, batch.action[h]) - batch.reward[h]).square())
            out = world.dynamics(latent, batch.action[h])
            following = world.following(out, latent, c.unc_prop, None if keys is None else keys[h])
            index = None if goal_index is None else goal_index[h]
            consistency.append(world.error(out, latent, following, goal[h], index))
            latent = following
        parts: Metrics = {
            "consistency_loss": (scale * torch.stack(consistency)).mean(1).sum(),
            "reward_loss": (scale * torch.stack(mistakes)).mean(1).sum(),
        }
        loss = c.consistency_coef * parts["consistency_loss"] + c.reward_coef * parts["reward_loss"]
        unrolled = torch.stack(codes)  # (H, B, Z)
        if c.use_decoder:
            error = (world.net.decoder(unrolled) - batch.observation[: c.horizon]).square().mean(-1)
            parts["reconstruction_loss"] = (scale * error).mean(1).sum()
            loss = loss + parts["reconstruction_loss"]
        if isinstance(self.quantise, VQ):
            parts["commitment_loss"] = self.quantise.commitment(vector, codes[0]).mean()
            loss = loss + parts["commitment_loss"]
        return loss, {k: v.detach() for k, v in parts.items()} | mean_min_max("latent", unrolled)

    def learn_codebook(self, state: State, batch: Batch) -> dict[str, Tensor]:
        """Entries of the state that change without a gradient: the codebook of vector quantisation."""
        if not isinstance(self.quantise, VQ):
            return {}
        encoder = self.group(state["world"]).encoder
        return self.quantise.learn(state, [encoder(o) for o in batch.observation[: self.config.horizon + 1]])


@dataclass(frozen=True)
class World:
    """A world model with one seed's parameters and codebook K (|C|, b): what losses and plans unroll."""

    model: WorldModel
    net: BoundNetworks
    codebook: Tensor | None

    def encode(self, observation: Tensor) -> Latent:
        """c = f(e(o)): (..., O) -> (..., Z)."""
        return Latent(self.model.quantise(self.net.encoder(observation), self.codebook))

    def one_hot(self, indices: Tensor) -> Tensor:
        """Class weights (..., |C|, d) of indices (..., d)."""
        place = torch.arange(self.model.classes, dtype=indices.dtype, device=indices.device)
        return (indices.unsqueeze(-2) == place[:, None]).float()

    def head_input(self, latent: Latent) -> Tensor:
        """What reward, actor and critics read of a latent (head_encoding): (..., n)."""
        kind, code, weights = self.model.config.head_encoding, latent.code, latent.weights
        if kind == "codebook":
            return code
        if weights is None:  # where there are weights, they carry the gradient
            weights = self.one_hot(self.model.quantise.indices(code, self.codebook))
        if kind == "onehot":
            return weights.flatten(-2)
        return (weights * torch.arange(self.model.classes, device=code.device)[:, None]).sum(-2)

    def reward(self, latent: Latent, action: Tensor) -> Tensor:
        """R(c, a) (...,); bounded by tanh to [0, action repeat] (dcwm.md section 2)."""
        raw = self.net.reward(self.head_input(latent), action)[..., 0]
        return (torch.tanh(raw) + 1.0) * (self.model.action_repeat / 2.0) if self.model.config.bound_reward else raw

    def dynamics(self, latent: Latent, action: Tensor) -> Tensor:
        """Output of d_phi: logits (..., |C|, d), or (..., n)."""
        out = self.net.dynamics(latent.code, action)
        return out.unflatten(-1, (self.model.classes, -1)) if self.model.config.dynamics == "stochastic" else out

    def step(self, latent: Latent, action: Tensor, mode: str, key: Tensor | None) -> Latent:
        """The latent that follows an action; mode and key as in `following`."""
        return self.following(self.dynamics(latent, action), latent, mode, key)

    def following(self, out: Tensor, latent: Latent, mode: str, key: Tensor | None) -> Latent:
        """The latent after one from which the dynamics put out `out`.

        mode: one of PROPAGATION; key: (2,) bits, for the samples.
        """
        c = self.model.config
        if c.dynamics == "stochastic":
            assert self.codebook is not None
            uniform = None if key is None else counter_random.uniform(key, tuple(out.shape))
            weights = class_weights(out, mode, uniform, c.st_hard)
            return Latent(decode(weights, self.codebook), weights)
        if self.model.components:
            return Latent(self._density_step(out, latent.code, mode, key))
        return Latent(self.model.quantise(latent.code + out if c.use_delta else out, self.codebook))

    def error(self, out: Tensor, latent: Latent, following: Latent, goal: Tensor, index: Tensor | None) -> Tensor:
        """Consistency (B,) of one step, that put out `out`, with the code that followed (B, Z), of indices (B, d)."""
        c, code = self.model.config, following.code
        if c.consistency == "ce":
            assert self.codebook is not None and index is not None
            logits = out if c.dynamics == "stochastic" else similarity(code, self.codebook, c.ce_logits)
            return cross_entropy(logits, self.one_hot(index))
        if c.consistency == "nll":
            mean, log_std, logits = self.density(out, latent.code)
            deviation = (goal.unsqueeze(-2) - mean) * torch.exp(-log_std)
            log_density = (-0.5 * deviation.square() - log_std - 0.5 * math.log(2.0 * math.pi)).sum(-1)
            return -torch.logsumexp(torch.log_softmax(logits, -1) + log_density, -1) / self.model.width
        if c.consistency == "mse":
            return (code - goal).square().mean(-1)
        norms = [torch.clamp(torch.linalg.vector_norm(v, dim=-1), min=1e-6) for v in (code, goal)]
        return -(code * goal).sum(-1) / (norms[0] * norms[1])

    def density(self, out: Tensor, code: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means and logarithms of deviations (..., M, Z), and logits (..., M), of M normal densities."""
        m, z = self.model.components, self.model.width
        values, logits = out.split([m * 2 * z, m], -1)
        mean, log_std = values.unflatten(-1, (2, m, z)).unbind(-3)
        mean = mean + code.unsqueeze(-2) if self.model.config.use_delta else mean
        return mean, torch.clamp(log_std, -5.0, 2.0), logits

    def _density_step(self, out: Tensor, code: Tensor, mode: str, key: Tensor | None) -> Tensor:
        mean, log_std, logits = self.density(out, code)
        if "sample" not in mode or key is None:
            weights = class_weights(logits[..., None], mode, None, True)
            return (weights * mean).sum(-2)
        uniform = counter_random.uniform(key, (*logits.shape, 1))
        pick = class_weights(logits[..., None], mode, uniform, self.model.config.st_hard)
        noise = counter_random.normal(key.flip(0), tuple(code.shape))
        sample = (pick * (mean + torch.exp(log_std) * noise.unsqueeze(-2))).sum(-2)
        return sample.detach() if mode == "sample_no_grad" else sample


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
