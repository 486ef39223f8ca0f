"""DCWM's world model with each of its switches (dcwm.md section 8), against one plain restatement of them all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from packs import as_arrays, initial_state, make_agent, random_batch, random_noise, slope
from test_dcwm import plain_mlp
from torch.func import grad

from iqrl import counter_random

FSQ_CODES = np.array([(i / 2, j) for j in (-1, 0, 1) for i in (-2, -1, 0, 1, 2)])  # of levels [5, 3]


@dataclass
class Arm:
    """The settings that a restatement depends on, as `tiny` has them but for those given."""

    quantizer: str = "fsq"
    dynamics: str = "stochastic"
    consistency: str = "ce"
    head_encoding: str = "codebook"
    ce_logits: str = "dot"
    unc_prop: str = "sample"
    st_hard: str = "true"
    use_delta: str = "false"
    use_decoder: str = "false"

    @property
    def words(self) -> list[str]:
        return [f"agent.{k}={v}" for k, v in vars(self).items()]

    def __str__(self) -> str:
        return ",".join(f"{k}={v}" for k, v in vars(self).items() if v != getattr(Arm, k)) or "default"


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def nearest(vector: np.ndarray, codes: np.ndarray) -> int:
    return int(np.argmin([((vector - code) ** 2).sum() for code in codes]))


def quantised(arm: Arm, x: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """The latent that a vector becomes, and the index of each latent dimension's code."""
    if arm.quantizer == "none":
        return x, []
    if arm.quantizer == "simnorm":
        return softmax(x), []  # 8 wide: one group
    pairs = x.reshape(8, 2)
    if arm.quantizer == "vq":
        index = [nearest(pair, codes) for pair in pairs]
    else:
        rounded = np.round(np.tanh(pairs) * [2.002, 1.001])
        index = [int(q1 + 2 + 5 * (q2 + 1)) for q1, q2 in rounded]
    return np.concatenate([codes[i] for i in index]), index


def seen(arm: Arm, latent: np.ndarray, weights: np.ndarray | None, codes: np.ndarray) -> np.ndarray:
    """What the reward sees; weights (8, |C|) of classes, or None where a latent is made of codes."""
    if arm.head_encoding == "codebook":
        return latent
    if weights is None:
        weights = np.eye(len(codes))[[nearest(pair, codes) for pair in latent.reshape(8, 2)]]
    return weights.T.reshape(-1) if arm.head_encoding == "onehot" else weights @ np.arange(len(codes))


def class_weights(arm: Arm, logits: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Of one latent dimension: (|C|,) from logits and numbers of that shape."""
    if arm.unc_prop == "weighted_avg":
        return softmax(logits)
    perturbed = logits - np.log(-np.log(uniform)) if arm.unc_prop == "sample" else logits
    return np.eye(len(logits))[np.argmax(perturbed)] if arm.st_hard == "true" else softmax(perturbed)


def distance(arm: Arm, latent: np.ndarray, goal: np.ndarray) -> float:
    if arm.consistency == "mse":
        return float(((latent - goal) ** 2).mean())
    return float(-(latent @ goal) / np.linalg.norm(latent) / np.linalg.norm(goal))


def likeness(arm: Arm, pair: np.ndarray, code: np.ndarray) -> float:
    if arm.ce_logits == "dot":
        return float(pair @ code)
    if arm.ce_logits == "neg_mse":
        return float(-((pair - code) ** 2).sum())
    return float(pair @ code / max(np.linalg.norm(pair) * np.linalg.norm(code), 1e-6))


def restated(
    arm: Arm, world: Any, goals: Any, data: Any, uniform: list[np.ndarray], codes: np.ndarray
) -> dict[str, float]:
    """Every term of the loss; `goals` are the parameters behind the latents to predict, which get no gradient."""
    o, a, r, terminated = data
    terms = dict.fromkeys(("consistency", "reward", "reconstruction", "commitment"), 0.0)
    for b in range(16):
        vector = plain_mlp(world["encoder"], o[0, b])
        latent, _ = quantised(arm, vector, codes)
        terms["commitment"] += 0.25 * float(((vector - latent) ** 2).mean()) / 16
        weights = None
        for h in range(5):
            if terminated[h, b]:
                break
            scale = 0.9**h / 16 / 5
            reward = np.tanh(plain_mlp(world["reward"], np.append(seen(arm, latent, weights, codes), a[h, b]))[0]) + 1
            terms["reward"] += scale * float(reward - r[h, b]) ** 2
            if arm.use_decoder == "true":
                mistake = plain_mlp(world["decoder"], latent) - o[h, b]
                terms["reconstruction"] += scale * float((mistake**2).mean())
            out = plain_mlp(world["dynamics"], np.append(latent, a[h, b]))
            if arm.dynamics == "stochastic":
                logits = out.reshape(len(codes), 8).T
                weights = np.array([class_weights(arm, logits[d], uniform[h][b][:, d]) for d in range(8)])
                latent = (weights @ codes).reshape(-1)
            else:
                latent, _ = quantised(arm, latent + out if arm.use_delta == "true" else out, codes)
                logits = np.array([[likeness(arm, pair, code) for code in codes] for pair in latent.reshape(-1, 2)])
            goal, index = quantised(arm, plain_mlp(goals["encoder"], o[h + 1, b]), codes)
            if arm.consistency == "ce":
                terms["consistency"] -= scale * float(np.mean([np.log(softmax(logits[d])[index[d]]) for d in range(8)]))
            else:
                terms["consistency"] += scale * distance(arm, latent, goal)
    return terms


def case(arm: Arm) -> Any:
    """An agent with a perturbed world model, a batch, random numbers, and all of it as arrays."""
    agent = make_agent("dcwm", *arm.words)
    state = initial_state(agent)
    state["world"] = state["world"] + 0.1 * torch.randn(agent.world.size, generator=torch.Generator().manual_seed(0))
    codes = state["codebook"].double().numpy() if arm.quantizer == "vq" else FSQ_CODES
    batch, noise = random_batch(agent), random_noise(agent, "update_all")
    data = [as_arrays(v) for v in (batch.observation, batch.action, batch.reward, batch.terminated)]
    keys = noise.get("propagation")
    uniform = [] if keys is None else [counter_random.uniform(k, (16, len(codes), 8)).double().numpy() for k in keys]
    uniform = uniform or [np.full((16, len(codes), 8), np.nan)] * 5  # of arms that draw none
    return agent, state, batch, keys, as_arrays(agent.world.unpack(state["world"])), data, uniform, codes


REGRESSION = {"dynamics": "deterministic", "consistency": "mse"}
ARMS = [
    Arm(), Arm(head_encoding="onehot"), Arm(head_encoding="label"), Arm(use_decoder="true"), Arm(st_hard="false"),
    Arm(unc_prop="weighted_avg", head_encoding="label"), Arm(unc_prop="mode"), Arm(consistency="mse"),
    Arm(consistency="cosine"), Arm(quantizer="vq"), Arm(quantizer="vq", head_encoding="onehot", use_decoder="true"),
    Arm(quantizer="vq", dynamics="deterministic"), Arm(dynamics="deterministic", head_encoding="label"),
    Arm(dynamics="deterministic", use_delta="true", ce_logits="neg_mse"),
    Arm(dynamics="deterministic", ce_logits="cos"), Arm(**REGRESSION, head_encoding="onehot"),
    Arm(quantizer="none", **REGRESSION, use_decoder="true"), Arm(quantizer="none", **REGRESSION, use_delta="true"),
    Arm(quantizer="simnorm", dynamics="deterministic", consistency="cosine"),
]  # fmt: skip


@pytest.mark.parametrize("arm", ARMS, ids=str)
def test_losses_equal_their_plain_restatement(arm: Arm) -> None:
    agent, state, batch, keys, world, data, uniform, codes = case(arm)
    loss, parts = agent.model.loss(state["world"], agent.model.codebook(state), batch, keys)
    terms = restated(arm, world, world, data, uniform, codes)
    reported = {k: terms[k] for k in ("consistency", "reward")}
    reported |= {"reconstruction": terms["reconstruction"]} if arm.use_decoder == "true" else {}
    reported |= {"commitment": terms["commitment"]} if arm.quantizer == "vq" else {}
    for name, expected in reported.items():
        assert float(parts[f"{name}_loss"]) == pytest.approx(expected, rel=1e-5), name
        assert expected != 0
    assert float(loss) == pytest.approx(sum(reported.values()), rel=1e-5)


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm.quantizer in ("none", "simnorm")], ids=str)
def test_gradients_of_smooth_arms_are_those_of_the_restatement(arm: Arm) -> None:
    """Finite differences; the latents to predict hold still."""
    agent, state, batch, _, world, data, uniform, codes = case(arm)
    gradient, _ = grad(agent.model.loss, has_aux=True)(state["world"], None, batch, None)
    direction = torch.sign(gradient) * torch.rand(gradient.shape, generator=torch.Generator().manual_seed(1))

    def loss(p: Any) -> float:
        terms = restated(arm, p, world, data, uniform, codes)
        return sum(v for k, v in terms.items() if k != "commitment")

    expected = slope(loss, world, as_arrays(agent.world.unpack(direction)), 1e-6)
    assert float(gradient @ direction) == pytest.approx(expected, rel=1e-3)


def test_the_codebook_follows_the_vectors_that_it_is_nearest_to() -> None:
    """Moving averages of counts and sums, over all observations of the slices, by the encoder before the update."""
    agent, state, batch, _, world, data, _, codes = case(Arm(quantizer="vq"))
    state["codebook/count"] = torch.rand(16, generator=torch.Generator().manual_seed(5)) * 20
    met, total = np.zeros(16), np.zeros((16, 2))
    for observation in data[0].reshape(-1, data[0].shape[-1]):
        for pair in plain_mlp(world["encoder"], observation).reshape(8, 2):
            i = nearest(pair, codes)
            met[i] += 1
            total[i] += pair
    count = 0.99 * state["codebook/count"].double().numpy() + 0.01 * met
    total = 0.99 * state["codebook/total"].double().numpy() + 0.01 * total
    smooth = (count + 1e-5) / (count.sum() + 16e-5) * count.sum()
    changed, _ = agent.update_critic(state, batch, random_noise(agent, "update_all"), {})
    np.testing.assert_allclose(changed["codebook/count"], count, rtol=1e-5)
    np.testing.assert_allclose(changed["codebook/total"], total, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(changed["codebook"], total / smooth[:, None], rtol=1e-4, atol=1e-6)
    assert not np.allclose(changed["codebook"], codes, atol=1e-3)
