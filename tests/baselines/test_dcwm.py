"""DCWM against spec page dcwm.md: golden numbers, plain restatements of losses and plans, switches, packs."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from packs import (
    SPEC,
    as_arrays,
    initial_state,
    make_agent,
    make_engine,
    random_batch,
    random_noise,
    slope,
    update,
)
from torch.func import grad

from baselines.dcwm.world_model import Latent, class_weights, cross_entropy, decode, similarity
from iqrl import counter_random
from iqrl.agent import Batch, Progress
from iqrl.config import parse_words, resolve
from iqrl.environments.tasks import TaskSpec
from iqrl.errors import InputError
from iqrl.quantisers import FSQ
from iqrl.training.engine import CACHE
from iqrl.training.random_numbers import draw, generator

CODEBOOK = FSQ((5, 3)).codebook()  # (15, 2)

# --- golden numbers


def test_parameter_counts() -> None:
    for observation, action, word, total, dynamics in (
        (24, 6, "agent.latent_dim=512", 10_553_612, 4_732_416),
        (223, 38, "agent.latent_dim=1024", 19_132_972, 9_212_928),
    ):  # fmt: skip
        spec = TaskSpec("", observation, action, 2, 500, False, "easy")
        agent = make_agent("dcwm", word, preset="default", spec=spec)
        assert agent.world.count + agent.actor.count + agent.critic.count == total
        shapes = agent.world.networks["dynamics"].shapes().values()
        assert sum(int(np.prod(s)) for s in shapes) == dynamics


def golden_logits() -> torch.Tensor:
    logits = torch.zeros(15, 1)
    logits[7], logits[14] = 2.0, 1.0
    return logits


def test_golden_expected_code_and_cross_entropy() -> None:
    weights = class_weights(golden_logits(), "weighted_avg", None, True)
    np.testing.assert_allclose(weights[[7, 14, 0], 0], [0.319771, 0.117637, 0.043276], atol=1e-6)
    np.testing.assert_allclose(decode(weights, CODEBOOK), [0.074361, 0.074361], atol=1e-6)
    for target, expected in ((7, 1.140150), (0, 3.140150)):
        goal = torch.nn.functional.one_hot(torch.tensor([target]), 15).float().t()
        assert float(cross_entropy(golden_logits(), goal)) == pytest.approx(expected, abs=1e-5)


def test_golden_gumbel() -> None:
    uniform = torch.full((15, 1), 0.5)
    uniform[3] = 0.99
    hard = class_weights(golden_logits(), "sample", uniform, True)
    assert int(hard.argmax()) == 3 and hard.sum() == 1 and hard.max() == 1
    assert decode(hard, CODEBOOK).tolist() == [0.5, -1.0]
    soft = class_weights(golden_logits(), "sample", uniform, False)
    np.testing.assert_allclose(decode(soft, CODEBOOK), [0.392008, -0.727415], atol=1e-5)
    assert torch.equal(class_weights(golden_logits(), "sample_no_grad", uniform, True), hard)
    assert int(class_weights(golden_logits(), "mode", None, True).argmax()) == 7


def test_golden_reward() -> None:
    agent = make_agent("dcwm")
    state = initial_state(agent)
    world = agent.model.bind(torch.zeros_like(state["world"]), CODEBOOK)
    for raw, expected in ((0.0, 1.0), (0.5, 1.462117)):
        world.net.reward.parameters["2.bias"].fill_(raw)
        reward = world.reward(Latent(torch.randn(3, 16)), torch.zeros(3, SPEC.action_dim))
        np.testing.assert_allclose(reward, 3 * [expected], atol=1e-6)
    free = dataclasses.replace(world, model=make_agent("dcwm", "agent.bound_reward=false").model)
    assert free.reward(Latent(torch.randn(3, 16)), torch.zeros(3, 2)).tolist() == [0.5] * 3


def test_golden_refit() -> None:
    agent = make_agent("dcwm", "agent.plan_elites=3")
    value = torch.tensor([1.0, 3.0, 2.0, 0.5, 2.5])
    actions = torch.tensor([[0.1, 0.9], [0.5, -0.5], [-0.2, 0.3], [1.0, 1.0], [0.6, -0.1]])[:, None]
    elites, weight, mean, std = agent.planner.refit(actions, value)
    assert torch.equal(elites, actions[[1, 4, 2]])
    np.testing.assert_allclose(weight, [0.419229, 0.326496, 0.254275], atol=1e-6)
    np.testing.assert_allclose(mean[0], [0.354657, -0.165981], atol=1e-6)
    np.testing.assert_allclose(std[0], [0.326704, 0.321570], atol=1e-6)
    everything = make_agent("dcwm", "agent.use_top_k=false").planner.refit(actions, value)
    assert len(everything[0]) == 5 and float(everything[1].sum()) == pytest.approx(1.0)
    narrow = make_agent("dcwm", "agent.plan_elites=1", "agent.plan_min_std=0.3").planner.refit(actions, value)
    np.testing.assert_allclose(narrow[3], [[0.3, 0.3]])


def test_golden_sequence_value() -> None:
    for word, expected in (("agent.plan_discount=0.9", 10.0), ("agent.plan_discount=0.99", 12.673090)):
        agent = make_agent("dcwm", word)
        state = {k: torch.zeros_like(v) for k, v in initial_state(agent).items()}  # raw reward 0 is a reward of 1
        agent.critic.unpack(state["critic"])["critic"]["2.bias"].fill_(10.0)
        value = agent.sequence_value(*model(agent, state), Latent(torch.zeros(16)), torch.zeros(4, 3, 2))
        np.testing.assert_allclose(value, 4 * [expected], rtol=1e-5)


# --- sampling


def test_straight_through_gradient_is_that_of_the_soft_sample() -> None:
    source = torch.Generator().manual_seed(0)
    logits, uniform = torch.randn(6, 15, 4, generator=source), torch.rand(6, 15, 4, generator=source)
    upstream = torch.randn(6, 8, generator=source)

    def total(logits: torch.Tensor, hard: bool) -> torch.Tensor:
        return (decode(class_weights(logits, "sample", uniform, hard), CODEBOOK) * upstream).sum()

    gradient = grad(total)(logits, True)
    torch.testing.assert_close(gradient, grad(total)(logits, False))
    gumbel = -torch.log(-torch.log(uniform))  # plain: perturb, soften, weigh codes
    soft = torch.softmax((logits + gumbel).transpose(1, 2), -1)  # (6, 4, 15)
    up = upstream.reshape(6, 4, 2) @ CODEBOOK.t()
    expected = soft * (up - (soft * up).sum(-1, keepdim=True))
    torch.testing.assert_close(gradient.transpose(1, 2), expected, rtol=1e-4, atol=1e-6)
    hard = class_weights(logits, "sample", uniform, True)
    assert torch.equal(hard.argmax(1), (logits + gumbel).argmax(1))
    for mode in ("sample_no_grad", "mode"):
        still = grad(lambda v, m=mode: decode(class_weights(v, m, uniform, True), CODEBOOK).sum() + 0 * v.sum())(logits)
        assert not still.any()


def test_samples_have_the_probabilities_of_the_logits() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])[:, None].expand(4, 200_000)
    uniform = counter_random.uniform(torch.tensor([5, 7], dtype=torch.int32), (4, 200_000))
    share = class_weights(logits, "sample", uniform, True).mean(-1)
    np.testing.assert_allclose(share, torch.softmax(logits[:, 0], 0), atol=4e-3)


def test_certain_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4], [0.0], [-1e4]])
    uniform = torch.tensor([[2.0**-24], [0.5], [1 - 2.0**-24]])
    gradient = grad(lambda v: class_weights(v, "sample", uniform, True)[0].sum())(logits)
    assert torch.isfinite(gradient).all()
    assert class_weights(logits, "sample", uniform, True)[:, 0].tolist() == [1, 0, 0]


def test_counter_random_numbers() -> None:
    key = torch.tensor([-123456, 98765], dtype=torch.int32)
    u = counter_random.uniform(key, (1000, 1000))
    assert 0 < float(u.min()) < 2e-5 and 1 - 2e-5 < float(u.max()) < 1
    assert float(u.mean()) == pytest.approx(0.5, abs=1.5e-3) and float(u.var()) == pytest.approx(1 / 12, abs=3e-4)
    shares = np.histogram2d(u[:, 1:].flatten(), u[:, :-1].flatten(), bins=16, range=[[0, 1], [0, 1]])[0] / 999_000
    np.testing.assert_allclose(shares, 1 / 256, atol=4e-4)  # neighbours are independent
    other = counter_random.uniform(key + torch.tensor([0, 1], dtype=torch.int32), (1000, 1000))
    assert abs(float(np.corrcoef(u.flatten(), other.flatten())[0, 1])) < 5e-3
    assert torch.equal(u.flatten()[:100], counter_random.uniform(key, (100,)))
    keys = torch.stack([key, key + 1])
    packed = torch.func.vmap(lambda k: counter_random.uniform(k, (5,)))(keys)
    assert torch.equal(packed[1], counter_random.uniform(key + 1, (5,)))
    n = counter_random.normal(key, (500_000,))
    moments = [float(m) for m in (n.mean(), n.std(), (n**3).mean(), (n**4).mean())]
    np.testing.assert_allclose(moments, [0, 1, 0, 3], atol=0.04)


@pytest.mark.parametrize("kind", ["dot", "neg_mse", "cos"])
def test_similarity(kind: str) -> None:
    code = torch.randn(3, 4, 2)  # (B, d, b)
    logits = similarity(code.reshape(3, 8), CODEBOOK, kind)
    for b in range(3):
        for d in range(4):
            for i in range(15):
                x, k = code[b, d].double().numpy(), CODEBOOK[i].double().numpy()
                expected = {"dot": x @ k, "neg_mse": -((x - k) ** 2).sum(),
                            "cos": x @ k / max(np.linalg.norm(x) * np.linalg.norm(k), 1e-9)}  # fmt: skip
                assert float(logits[b, i, d]) == pytest.approx(expected[kind], abs=1e-5)


# --- losses against plain restatements: one sample at a time, NumPy, float64


def plain_mlp(p: Any, x: np.ndarray, member: int | None = None) -> np.ndarray:
    layers = 1 + max(int(k.split(".")[0]) for k in p)
    for i in range(layers):
        q = {k: p[f"{i}.{k}"] for k in ("weight", "bias", "scale", "shift") if f"{i}.{k}" in p}
        if member is not None:
            q = {k: v[member] if k == "weight" else v[member, 0] for k, v in q.items()}
        x = x @ q["weight"] + q["bias"]
        if i < layers - 1:
            x = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * q["scale"] + q["shift"]
            x = x * np.tanh(np.log1p(np.exp(x)))
    return x


def plain_fsq(x: np.ndarray) -> tuple[np.ndarray, list[int]]:
    codes, indices = np.zeros(16), []
    for d in range(8):
        q1, q2 = np.round(np.tanh(x[2 * d]) * 2.002), np.round(np.tanh(x[2 * d + 1]) * 1.001)
        codes[2 * d : 2 * d + 2] = q1 / 2, q2
        indices.append(int(q1 + 2 + 5 * (q2 + 1)))
    return codes, indices


def plain_unroll(world: Any, o: np.ndarray, a: np.ndarray, uniform: Any) -> tuple[list[Any], list[Any]]:
    """Codes of one sample at steps 0..H, sampled or (without numbers) expected, and logits (d, |C|) at 0..H - 1."""
    codes, all_logits = [plain_fsq(plain_mlp(world["encoder"], o))[0]], []
    for h in range(len(a)):
        out = plain_mlp(world["dynamics"], np.concatenate([codes[h], a[h]]))
        following, logits = np.zeros(16), np.zeros((8, 15))
        for d in range(8):
            logits[d] = out[d::8]  # classes before dimensions
            if uniform is None:
                p = np.exp(logits[d]) / np.exp(logits[d]).sum()
                following[2 * d : 2 * d + 2] = p @ CODEBOOK.numpy()
            else:
                pick = int(np.argmax(logits[d] - np.log(-np.log(uniform[h][:, d]))))
                following[2 * d : 2 * d + 2] = CODEBOOK[pick].numpy()
        codes.append(following)
        all_logits.append(logits)
    return codes, all_logits


def plain_reward(world: Any, code: np.ndarray, action: np.ndarray) -> float:
    return float(np.tanh(plain_mlp(world["reward"], np.concatenate([code, action]))[0]) + 1.0)


def plain_world_loss(world: Any, target: Any, data: Any, uniform: list[np.ndarray]) -> tuple[float, float]:
    """Consistency and reward; `target` gives the codes to predict and gets no gradient."""
    o, a, r, terminated = data
    consistency = mistake = 0.0
    for b in range(16):
        codes, logits = plain_unroll(world, o[0, b], a[:, b], [u[b] for u in uniform])
        for h in range(5):
            if terminated[h, b]:
                break  # the mask of W8: a terminating transition does not count, nor what follows
            _, index = plain_fsq(plain_mlp(target["encoder"], o[h + 1, b]))
            for d in range(8):
                log_softmax = logits[h][d] - np.log(np.exp(logits[h][d]).sum())
                consistency -= 0.9**h * log_softmax[index[d]] / 8 / 16 / 5
            mistake += 0.9**h * (plain_reward(world, codes[h], a[h, b]) - r[h, b]) ** 2 / 16 / 5
    return consistency, mistake


def plain_q(critic: Any, members: list[int], code: np.ndarray, action: np.ndarray) -> list[float]:
    return [float(plain_mlp(critic["critic"], np.concatenate([code, action]), k)[0]) for k in members]


def plain_policy(actor: Any, code: np.ndarray) -> np.ndarray:
    return np.tanh(plain_mlp(actor["actor"], code))


@pytest.fixture
def case() -> Any:
    """An agent whose copies of every network differ, with a batch, codes, noise, and all of it as arrays."""
    agent = make_agent("dcwm", "agent.nstep=3")
    state, arrays = initial_state(agent), {}
    groups = {"world": agent.world, "actor": agent.actor, "critic": agent.critic, "target_actor": agent.actor,
              "target_critic": agent.critic}  # fmt: skip
    for i, (k, group) in enumerate(groups.items()):
        state[k] = state[k] + 0.1 * torch.randn(group.size, generator=torch.Generator().manual_seed(i))
        arrays[k] = as_arrays(group.unpack(state[k]))
    batch, noise = random_batch(agent), random_noise(agent, "update_all")
    data = [as_arrays(v) for v in (batch.observation, batch.action, batch.reward, batch.terminated)]
    return agent, state, batch, noise, arrays, data


def uniforms(noise: Any) -> list[np.ndarray]:
    return [counter_random.uniform(key, (16, 15, 8)).double().numpy() for key in noise["propagation"]]


def test_losses_equal_plain_restatements(case: Any) -> None:
    agent, state, batch, noise, arrays, data = case
    loss, parts = agent.model.loss(state["world"], CODEBOOK, batch, noise["propagation"])
    consistency, mistake = plain_world_loss(arrays["world"], arrays["world"], data, uniforms(noise))
    assert float(parts["consistency_loss"]) == pytest.approx(consistency, rel=1e-5)
    assert float(parts["reward_loss"]) == pytest.approx(mistake, rel=1e-5)
    assert float(loss) == pytest.approx(consistency + mistake, rel=1e-5)

    code = agent.latent(state, batch.observation[3])
    total, factor = torch.randn(16), torch.rand(16)
    y = agent.target_value(state, code, total, factor, noise)
    members = np.argsort(noise["target_critics"].numpy())[:2].tolist()
    for b in range(16):
        c, _ = plain_fsq(plain_mlp(arrays["world"]["encoder"], data[0][3, b]))
        np.testing.assert_allclose(code[b], c, atol=1e-6)
        smoothing = np.clip(0.2 * noise["smoothing"][b].numpy(), -0.3, 0.3)
        action = np.clip(plain_policy(arrays["target_actor"], c) + smoothing, -1, 1)
        expected = total[b] + factor[b] * min(plain_q(arrays["target_critic"], members, c, action))
        assert float(y[b]) == pytest.approx(float(expected), rel=1e-5, abs=1e-5)

    codes = as_arrays(code)
    loss, _ = agent.critic_loss(state["critic"], code, batch.action[0], y)
    errors = [(q - float(y[b])) ** 2 for b in range(16)
              for q in plain_q(arrays["critic"], [0, 1, 2, 3, 4], codes[b], data[1][0, b])]  # fmt: skip
    assert float(loss) == pytest.approx(float(np.mean(errors)), rel=1e-5)
    loss = agent.actor_loss(state["actor"], state["critic"], code, noise["actor_critics"])
    members = np.argsort(noise["actor_critics"].numpy())[:2].tolist()
    values = [plain_q(arrays["critic"], members, codes[b], plain_policy(arrays["actor"], codes[b])) for b in range(16)]
    assert float(loss) == pytest.approx(-float(np.mean(values)), rel=1e-5)


def test_n_step_targets_of_an_update(case: Any) -> None:
    """y of a whole update: the reward of the terminating transition counts, nothing after it."""
    agent, state, batch, noise, _, data = case
    frozen = {**state, "target_critic": torch.zeros_like(state["target_critic"])}
    _, metrics = agent.run_stage("update_all", frozen, batch, noise, {})
    y = []
    for b in range(16):
        ends = [k for k in range(3) if data[3][k, b]]
        y.append(sum(0.99**k * data[2][k, b] for k in range(ends[0] + 1 if ends else 3)))
    assert float(metrics["target_mean"]) == pytest.approx(float(np.mean(y)), abs=1e-5)


def test_one_update_is_put_together_rightly(case: Any) -> None:
    """Which network reads which copy: the losses that an update with large steps reports."""
    _, state, batch, noise, arrays, data = case
    agent = make_agent("dcwm", "agent.nstep=3", "agent.enc_lr=0.1", "agent.lr=0.03")
    changed, metrics = agent.run_stage("update_all", state, batch, noise, {})
    encoder = as_arrays(agent.world.unpack(changed["world"]))["encoder"]  # the one just updated
    critic = as_arrays(agent.critic.unpack(changed["critic"]))
    drawn = {k: np.argsort(noise[k].numpy())[:2].tolist() for k in ("target_critics", "actor_critics")}
    y, errors, values = [], [], []
    for b in range(16):
        code, after = (plain_fsq(plain_mlp(encoder, data[0][t, b]))[0] for t in (0, 3))
        ends = [k for k in range(3) if data[3][k, b]]
        total = sum(0.99**k * data[2][k, b] for k in range(ends[0] + 1 if ends else 3))
        smoothing = np.clip(0.2 * noise["smoothing"][b].numpy(), -0.3, 0.3)
        action = np.clip(plain_policy(arrays["target_actor"], after) + smoothing, -1, 1)
        q = min(plain_q(arrays["target_critic"], drawn["target_critics"], after, action))
        y.append(total + (0.0 if ends else 0.99**3 * q))
        errors += [(q - y[b]) ** 2 for q in plain_q(arrays["critic"], [0, 1, 2, 3, 4], code, data[1][0, b])]
        values += plain_q(critic, drawn["actor_critics"], code, plain_policy(arrays["actor"], code))
    expected = {"target_mean": np.mean(y), "critic_loss": np.mean(errors), "actor_loss": -np.mean(values)}
    for k, v in expected.items():
        assert float(metrics[k]) == pytest.approx(float(v), rel=1e-5, abs=1e-6), k


def test_dynamics_and_reward_gradients_are_those_of_the_restatement(case: Any) -> None:
    """Finite differences where the loss is smooth: one step ahead, before any sample."""
    agent, state, batch, noise, arrays, data = case
    one = make_agent("dcwm", "agent.horizon=1")
    first = Batch(*(v[: 2 if i == 0 else 1] for i, v in enumerate(vars(batch).values())))
    gradient, _ = grad(one.model.loss, has_aux=True)(state["world"], CODEBOOK, first, noise["propagation"])
    direction = torch.sign(gradient) * torch.rand(gradient.shape, generator=torch.Generator().manual_seed(1))
    direction = agent.world.unpack(direction)
    direction["encoder"] = {k: 0 * v for k, v in direction["encoder"].items()}  # reached through the rounding alone
    rows = [v[: 2 if i == 0 else 1] for i, v in enumerate(data)]

    def loss(world: Any) -> float:
        total = 0.0
        for b in range(16):
            if rows[3][0, b]:
                continue
            codes, logits = plain_unroll(world, rows[0][0, b], rows[1][:, b], None)
            _, index = plain_fsq(plain_mlp(world["encoder"], rows[0][1, b]))
            total += (plain_reward(world, codes[0], rows[1][0, b]) - rows[2][0, b]) ** 2 / 16
            for d in range(8):
                total -= (logits[0][d][index[d]] - np.log(np.exp(logits[0][d]).sum())) / 8 / 16
        return total

    parts = agent.world.unpack(gradient)
    product = sum(float((p * direction[n][k]).sum()) for n, group in parts.items() for k, p in group.items())
    assert product == pytest.approx(slope(loss, arrays["world"], as_arrays(direction), 1e-6), rel=1e-3)


# --- plans


def model(agent: Any, state: Any) -> tuple[Any, Any, Any]:
    """World, actor and critics."""
    world = agent.model.bind(state["world"], agent.model.codebook(state))
    return world, agent.actor(state["actor"]).actor, agent.critic(state["critic"]).critic


def decision_noise(agent: Any, explore: bool, count: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    return {k: draw(n, count, generator("cpu", seed, 3)) for k, n in agent.act_noise(explore).items()}


def plain_plan(
    agent: Any, arrays: Any, o: np.ndarray, mean: np.ndarray, noise: Any, sigma: float
) -> tuple[np.ndarray, np.ndarray]:
    """Section 5 in loops: the planned action before exploration noise, and the mean for the next decision."""
    c, world = agent.config, arrays["world"]
    code, _ = plain_fsq(plain_mlp(world["encoder"], o))

    def step(code: np.ndarray, action: np.ndarray) -> np.ndarray:
        out, following = plain_mlp(world["dynamics"], np.concatenate([code, action])), np.zeros(16)
        for d in range(8):
            p = np.exp(out[d::8]) / np.exp(out[d::8]).sum()
            following[2 * d : 2 * d + 2] = p @ CODEBOOK.numpy()
        return following

    sequences = []
    for p in range(c.plan_policy):
        z, sequence = code, []
        for t in range(3):
            action = plain_policy(arrays["actor"], z)
            if "policy" in noise:
                action = np.clip(action + sigma * noise["policy"][t, p], -1, 1)
            sequence.append(action)
            z = step(z, action)
        sequences.append(sequence)
    std = np.full((3, 2), 2.0)
    for j in range(c.plan_iterations):
        sampled = [np.clip(mean + std * e, -1, 1) for e in noise["samples"][j]]
        actions = np.array(sequences + sampled)
        members, values = np.argsort(noise["critics"][j])[:2].tolist(), []
        for sequence in actions:
            z, value = code, 0.0
            for t in range(3):
                value += 0.9**t * plain_reward(world, z, sequence[t])
                z = step(z, sequence[t])
            last = plain_policy(arrays["actor"], z)
            values.append(value + 0.9**3 * np.mean(plain_q(arrays["critic"], members, z, last)))
        best = np.argsort(values)[::-1][: c.plan_elites]
        weight = np.exp(0.5 * (np.array(values)[best] - max(values)))
        weight /= weight.sum()
        elites = actions[best]
        mean = sum(w * e for w, e in zip(weight, elites, strict=True)) / (1 + 1e-9)
        std = np.sqrt(sum(w * (e - mean) ** 2 for w, e in zip(weight, elites, strict=True)) / (1 + 1e-9))
        std = np.clip(std, 0.05, 2)
    chosen = int(np.searchsorted(np.cumsum(weight), float(noise["elite"]), side="right"))
    return elites[chosen][0], np.concatenate([mean[1:], np.zeros((1, 2))])


@pytest.mark.parametrize("explore", [True, False])
def test_plan_equals_its_plain_restatement(case: Any, explore: bool) -> None:
    agent, state, _, _, arrays, _ = case
    observation = torch.randn(4, SPEC.observation_dim, generator=torch.Generator().manual_seed(3))
    noise, sigma = decision_noise(agent, explore, 4), 0.4
    carry = {"mean": 0.3 * torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(4))}
    action, after = agent.act(state, carry, observation, noise, {"sigma": torch.tensor(sigma)})
    for n in range(4):
        own = {k: v[n].double().numpy() for k, v in noise.items()}
        plan, mean = plain_plan(agent, arrays, as_arrays(observation)[n], as_arrays(carry["mean"])[n], own, sigma)
        expected = np.clip(plan + sigma * own["action"], -1, 1) if explore else plan
        np.testing.assert_allclose(action[n], expected, atol=1e-5)
        np.testing.assert_allclose(after["mean"][n], mean, atol=1e-5)
    assert ("policy" in noise) == explore


def test_environments_are_planned_for_side_by_side(case: Any) -> None:
    agent, state, *_ = case
    observation, noise = torch.randn(10, SPEC.observation_dim), decision_noise(agent, False, 10)
    carry, schedule = {"mean": torch.zeros(10, 3, 2)}, {"sigma": torch.tensor(0.5)}
    together, after = agent.act(state, carry, observation, noise, schedule)
    for n in (0, 9):
        one = {k: v[n : n + 1] for k, v in noise.items()}
        alone, mean = agent.act(state, {"mean": torch.zeros(1, 3, 2)}, observation[n : n + 1], one, schedule)
        torch.testing.assert_close(together[n : n + 1], alone)
        torch.testing.assert_close(after["mean"][n : n + 1], mean["mean"])


def test_plan_variants(case: Any) -> None:
    _, state, *_ = case
    observation, schedule = torch.randn(2, SPEC.observation_dim), {"sigma": torch.tensor(0.5)}

    def act(*words: str, explore: bool = False) -> tuple[Any, Any, dict[str, torch.Tensor]]:
        agent = make_agent("dcwm", "agent.nstep=3", *words)
        noise = decision_noise(agent, explore, 2)
        start = {k: v.expand(2, 3, 2) for k, v in agent.carry().items()}
        action, carry = agent.act(state, start, observation, noise, schedule)
        return action, carry, noise

    usual = act()[0]
    for word in ("agent.use_mppi_mean=true", "agent.plan_q=all", "agent.plan_unc_prop=sample",
                 "agent.plan_discount=0.5", "agent.plan_unc_prop=mode", "agent.use_top_k=false",
                 "agent.plan_policy=0"):  # fmt: skip
        action, carry, noise = act(word)
        assert action.shape == (2, 2) and float(action.abs().max()) <= 1 and torch.isfinite(carry["mean"]).all()
        assert ("elite" in noise) == (word != "agent.use_mppi_mean=true")
        assert ("propagation" in noise) == (word == "agent.plan_unc_prop=sample")
        assert not torch.equal(action, usual), word
    released = act("agent.released_pi_noise=true")[2]  # in evaluation too, one vector for all sequences
    assert released["policy"].shape == (2, 3, 1, 2) and released["terminal"].shape == (2, 2, 2)
    assert act("agent.released_pi_noise=true", explore=True)[0].shape == (2, 2)
    agent = make_agent("dcwm", "agent.mpc=false")
    assert agent.carry() == {} and agent.act_noise(False) == {} and set(agent.act_noise(True)) == {"action"}
    greedy, _ = agent.act(state, {}, observation, {}, schedule)
    torch.testing.assert_close(greedy, agent.policy(model(agent, state)[1], agent.latent(state, observation)))


def test_policy_sequences_differ_unless_released(case: Any) -> None:
    _, state, *_ = case
    for word, same in (("agent.released_pi_noise=false", False), ("agent.released_pi_noise=true", True)):
        agent = make_agent("dcwm", word)
        noise = {k: v[0] for k, v in decision_noise(agent, True).items()}
        world, actor, _ = model(agent, state)
        sequences = agent.policy_sequences(world, actor, Latent(torch.zeros(16)), noise, torch.tensor(0.5))
        assert sequences.shape == (3, 3, 2) and bool((sequences[0] == sequences[1]).all()) == same


def test_nan_values_count_as_zero(case: Any) -> None:
    agent, state, *_ = case
    state = {**state, "critic": torch.full_like(state["critic"], float("nan"))}
    carry = {"mean": torch.zeros(1, 3, 2)}
    action, _ = agent.act(state, carry, torch.randn(1, 5), decision_noise(agent, False), {"sigma": torch.tensor(0.1)})
    assert torch.isfinite(action).all()


# --- one update


def changes(engine: Any, progress: list[Progress]) -> set[str]:
    before = {k: v.clone() for k, v in engine.state.items()}
    update(engine, progress, 1)
    return {k for k, v in engine.state.items() if not torch.equal(v, before[k])}


def test_each_update_changes_what_it_should() -> None:
    everything = set(initial_state(make_agent("dcwm")))
    engine, progress = make_engine(make_agent("dcwm"), [0])
    assert changes(engine, progress) == {k for k in everything if "actor" not in k}
    assert changes(engine, progress) == everything


def test_what_each_loss_reaches(case: Any) -> None:
    agent, state, batch, noise, _, _ = case

    def reached(*words: str) -> set[str]:
        agent = make_agent("dcwm", *words)
        gradient, _ = grad(agent.model.loss, has_aux=True)(state["world"], CODEBOOK, batch, noise["propagation"])
        norms = {n: sum(float(p.norm()) for p in g.values()) for n, g in agent.world.unpack(gradient).items()}
        return {n for n, v in norms.items() if v > 0}

    assert reached("agent.reward_coef=0") == {"encoder", "dynamics"}
    assert reached("agent.consistency_coef=0") == {"encoder", "dynamics", "reward"}  # through the samples
    assert reached("agent.consistency_coef=0", "agent.unc_prop=sample_no_grad") == {"encoder", "reward"}
    changed, _ = agent.run_stage("update_all", state, batch, noise, {})
    other, _ = agent.run_stage("update_all", {**state, "critic": state["critic"] * 2}, batch, noise, {})
    assert torch.equal(changed["world"], other["world"]) and not torch.equal(changed["actor"], other["actor"])
    torch.testing.assert_close(changed["target_critic"], 0.995 * state["target_critic"] + 0.005 * changed["critic"])
    torch.testing.assert_close(changed["target_actor"], 0.995 * state["target_actor"] + 0.005 * changed["actor"])


def test_every_gradient_is_clipped(case: Any) -> None:
    _, state, batch, noise, _, _ = case
    agent = make_agent("dcwm", "agent.nstep=3", "agent.clip=0.01")
    changed, metrics = agent.run_stage("update_all", state, batch, noise, {})
    for name in ("world", "critic", "actor"):
        assert float(metrics[f"{name}_gradient_norm"]) > 0.01
        assert float(changed[f"{name}/mean"].norm()) == pytest.approx(0.1 * 0.01, rel=1e-3)


VARIANTS = [
    ["agent.head_encoding=onehot"], ["agent.head_encoding=label"], ["agent.quantizer=vq"],
    ["agent.quantizer=vq", "agent.head_encoding=onehot"], ["agent.dynamics=deterministic"],
    ["agent.dynamics=deterministic", "agent.use_delta=true", "agent.ce_logits=neg_mse"],
    ["agent.dynamics=deterministic", "agent.ce_logits=cos"], ["agent.dynamics=deterministic", "agent.consistency=mse"],
    ["agent.quantizer=none", "agent.dynamics=deterministic", "agent.consistency=mse"],
    ["agent.quantizer=simnorm", "agent.dynamics=deterministic", "agent.consistency=cosine"],
    ["agent.quantizer=none", "agent.dynamics=gaussian", "agent.consistency=nll", "agent.use_delta=true"],
    ["agent.quantizer=none", "agent.dynamics=mixture", "agent.consistency=nll", "agent.plan_unc_prop=sample"],
    ["agent.consistency=mse"], ["agent.st_hard=false"], ["agent.unc_prop=weighted_avg"], ["agent.unc_prop=mode"],
    ["agent.use_decoder=true"], ["agent.released_nstep=true", "agent.cross_episode_slices=true"],
    ["agent.num_critics=2", "agent.q_sample=0"], ["agent.init=orthogonal"],
]  # fmt: skip


@pytest.mark.parametrize("words", VARIANTS, ids=lambda words: ",".join(w.removeprefix("agent.") for w in words))
def test_switches(words: list[str]) -> None:
    agent = make_agent("dcwm", *words)
    engine, progress = make_engine(agent, [0, 1], packed=True)
    update(engine, progress, 3)
    metrics = engine.metrics(0)
    assert all(np.isfinite(v) for v in metrics.values())
    assert ("reconstruction_loss" in metrics) == ("agent.use_decoder=true" in words)
    assert ("commitment_loss" in metrics) == ("agent.quantizer=vq" in words)
    observation = np.random.default_rng(0).normal(size=(2, SPEC.observation_dim)).astype(np.float32)
    progress = [Progress(episodes=20, decisions=800) for _ in progress]
    action, carry = engine.explore([0, 1], observation, engine.initial_carry(2, 1), progress)
    assert np.isfinite(action).all() and np.abs(action).max() <= 1 and float(carry["mean"].abs().max()) > 0
    state = {k: v[0] for k, v in engine.state.items()}
    latent = agent.latent(state, torch.randn(7, SPEC.observation_dim))
    assert latent.shape == (7, agent.latent_width())
    codes = agent.codes(state, latent)
    if agent.config.quantizer in ("fsq", "vq"):
        assert codes is not None and codes[0].shape == (7, 8) and int(codes[0].max()) < codes[1]
        torch.testing.assert_close(agent.model.codebook(state)[codes[0]].flatten(-2), latent, atol=1e-6, rtol=0)
    else:
        assert codes is None
    layers = agent.hidden(state, torch.randn(7, SPEC.observation_dim), torch.zeros(7, SPEC.action_dim))
    assert all(v.shape[-2:] == (7, 16) for v in layers) and len(layers) == 7


def test_head_encodings() -> None:
    code = torch.tensor([[0.0, 0.0] * 7 + [0.5, -1.0]])

    def seen(word: str) -> torch.Tensor:
        agent = make_agent("dcwm", word)
        return agent.model.bind(initial_state(agent)["world"], CODEBOOK).head_input(Latent(code))

    onehot = seen("agent.head_encoding=onehot").reshape(15, 8)
    assert onehot.argmax(0).tolist() == [7] * 7 + [3] and onehot.sum() == 8
    assert seen("agent.head_encoding=label").tolist() == [[7.0] * 7 + [3.0]]
    assert seen("agent.head_encoding=codebook") is code


def test_density_likelihood() -> None:
    agent = make_agent("dcwm", "agent.quantizer=none", "agent.dynamics=mixture", "agent.consistency=nll")
    source = np.random.default_rng(0)
    out, code, goal = source.normal(size=(2, 3 * (2 * 8 + 1))), source.normal(size=(2, 8)), source.normal(size=(2, 8))
    tensors = [torch.tensor(v, dtype=torch.float32) for v in (out, code, goal)]
    world = agent.model.bind(initial_state(agent)["world"], None)
    error = world.error(tensors[0], Latent(tensors[1]), Latent(tensors[1]), tensors[2], None)
    for b in range(2):
        likelihood, logits = 0.0, out[b, 48:]
        for m in range(3):
            mean, log_std = out[b, 8 * m : 8 * m + 8], np.clip(out[b, 24 + 8 * m : 32 + 8 * m], -5, 2)
            density = np.exp(-0.5 * ((goal[b] - mean) / np.exp(log_std)) ** 2) / np.exp(log_std) / np.sqrt(2 * np.pi)
            likelihood += np.exp(logits[m]) / np.exp(logits).sum() * density.prod()
        assert float(error[b]) == pytest.approx(-np.log(likelihood) / 8, rel=1e-5)


REGRESSION = ["agent.dynamics=deterministic", "agent.consistency=mse"]


@pytest.mark.parametrize("words, key", [
    (["agent.quantizer=none"], "dynamics"), (["agent.dynamics=gaussian"], "quantizer"),
    (["agent.plan_min_std=3"], "plan_max_std"),
    (["agent.consistency=nll"], "consistency"), (["agent.q_sample=9"], "q_sample"),
    (["agent.quantizer=none", "agent.dynamics=deterministic"], "consistency"),
    (["agent.quantizer=none", *REGRESSION, "agent.head_encoding=label"], "head_encoding"),
    (["agent.plan_policy=600"], "plan_samples"), (["agent.plan_elites=513"], "plan_samples"),
    (["agent.quantizer=simnorm", "agent.latent_dim=12", *REGRESSION], "latent_dim"),
    (["agent.consistency_coef=0", "agent.reward_coef=0"], "consistency_coef"), (["agent.fsq_levels=[2]"], "fsq_levels"),
])  # fmt: skip
def test_bad_values(words: list[str], key: str) -> None:
    with pytest.raises(InputError, match=f"^agent.{key}=.*expected"):
        resolve([("test", parse_words(["agent=dcwm", *words]))])


# --- schedules


def test_schedules() -> None:
    agent = make_agent("dcwm", "agent.noise_episodes=50", "agent.warmup_episodes=10")
    due, sigma = {}, {}
    for episodes in (1, 9, 10, 11, 12, 60, 70):
        progress = Progress(decisions=500 * episodes, episodes=episodes, episode_decisions=500)
        due[episodes] = agent.after_episode(progress, {})[0]
        sigma[episodes] = agent.schedule(progress)["sigma"]
    assert due == {1: 0, 9: 0, 10: 5000, 11: 500, 12: 500, 60: 500, 70: 500}
    step = 0.9 / 49
    expected = {1: 1.0, 9: 1.0, 10: 1 - step, 11: 1 - 2 * step, 12: 1 - 3 * step, 60: 0.1, 70: 0.1}
    assert sigma == pytest.approx(expected)
    assert agent.schedule(Progress())["sigma"] == 1.0
    assert [agent.acts_randomly(Progress(episodes=n)) for n in (0, 9, 10)] == [True, True, False]
    assert [agent.stages(n) for n in (1, 2)] == [("update_critic",), ("update_all",)]


@pytest.mark.parametrize("task, expected", [
    ("walker-walk", (512, 1, 50, True)), ("cheetah-run", (512, 1, 150, True)), ("dog-run", (1024, 3, 500, True)),
    ("humanoid-walk", (1024, 1, 500, True)), ("cartpole-swingup-sparse", (512, 3, 250, True)),
    ("cup-spin", (512, 3, 50, True)), ("finger-turn-hard", (512, 2, 150, True)), ("reacher-easy", (512, 3, 150, True)),
    ("gym:Pendulum-v1", (512, 1, 150, False)), ("mw-reach", (512, 3, 250, False)),
    ("mw-assembly+sticky=0.1", (512, 3, 500, False)), ("myo-reach-hard", (512, 1, 250, False)),
    ("myo-pose", (512, 5, 250, False)),
])  # fmt: skip
def test_task_groups(task: str, expected: tuple[Any, ...]) -> None:
    settings = resolve([("test", parse_words(["agent=dcwm", f"task={task}"]))])[0][0].settings
    assert (settings.latent_dim, settings.nstep, settings.noise_episodes, settings.bound_reward) == expected
    assert settings.symlog_reward == task.startswith("myo-")
    assert settings.plan_temperature == (0.2 if task == "myo-pose" else 0.5)


def test_rewards_are_learned_from_through_symlog() -> None:
    """As if the batch had held the scaled ones, in the model and in the targets alike."""
    found = []
    for word in ("agent.symlog_reward=true", "agent.symlog_reward=false"):
        agent = make_agent("dcwm", word, "agent.bound_reward=false")
        batch = random_batch(agent)
        if not agent.config.symlog_reward:
            reward = batch.reward.numpy()
            scaled = torch.tensor(np.sign(reward) * np.log(1.0 + np.abs(reward)))
            batch = dataclasses.replace(batch, reward=scaled)
        found.append(agent.update_critic(initial_state(agent), batch, random_noise(agent, "update_critic"), {})[0])
    for k, v in found[0].items():
        torch.testing.assert_close(v, found[1][k], rtol=1e-4, atol=1e-6)


# --- packs, compilation, learning


def test_a_pack_plans_for_all_its_evaluation_environments_at_once() -> None:
    agent, calls = make_agent("dcwm"), 0
    engine, progress = make_engine(agent, [0, 1, 2], packed=True)
    planned = agent.planner.refit

    def counted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        return planned(*arguments)

    object.__setattr__(agent.planner, "refit", counted)
    observation = np.random.default_rng(0).normal(size=(3, 10, SPEC.observation_dim)).astype(np.float32)
    carry = {"mean": torch.rand(3, 10, 3, 2) - 0.5}
    noise = [engine.random.evaluation(i, 480, 7, 10) for i in range(3)]
    action, after = engine.act([0, 1, 2], observation, carry, noise, progress)
    assert action.shape == (3, 10, 2) and calls == agent.config.plan_iterations
    for i in range(3):
        own = {k: v[i] for k, v in engine.state.items()}
        for n in (0, 9):
            numbers = {k: v[n : n + 1] for k, v in noise[i].items()}
            schedule = {k: v[0] for k, v in engine.schedule(progress[:1]).items()}
            alone, mean = agent.act(own, {"mean": carry["mean"][i, n : n + 1]}, torch.tensor(observation[i, n : n + 1]),
                                    numbers, schedule)  # fmt: skip
            np.testing.assert_allclose(action[i, n], alone[0], atol=1e-5)
            torch.testing.assert_close(after["mean"][i, n], mean["mean"][0], atol=1e-5, rtol=0)


def test_large_plans_are_made_for_one_environment_after_another() -> None:
    size = {preset: make_agent("dcwm", preset=preset).act_bytes for preset in ("default", "small", "tiny")}
    assert size == {"default": 4 * 512 * 512 * 15, "small": 4 * 128 * 64 * 15, "tiny": 4 * 12 * 8 * 15}
    agent, seeds = make_agent("dcwm"), [0, 1]
    engine, progress = make_engine(agent, seeds)
    observation = np.random.default_rng(0).normal(size=(2, 3, SPEC.observation_dim)).astype(np.float32)
    carry = {"mean": torch.rand(2, 3, 3, 2) - 0.5}
    noise = [engine.random.evaluation(i, 480, 7, 3) for i in seeds]
    together, mean = engine.act(seeds, observation, carry, noise, progress)
    agent.act_bytes, sizes, acting = CACHE // 3 + 1, [], engine._acting

    def counted(*arguments: Any) -> Any:
        sizes.append(arguments[2]["observation"].shape[:2])
        return acting(*arguments)

    engine._acting = counted
    alone, own_mean = engine.act(seeds, observation, carry, noise, progress)
    assert sizes == [(1, 1)] * 6
    agent.act_bytes -= 1
    engine.act(seeds, observation, carry, noise, progress)
    assert sizes[6:] == [(1, 3)] * 2
    np.testing.assert_allclose(alone, together, atol=1e-5)
    torch.testing.assert_close(own_mean["mean"], mean["mean"], atol=1e-5, rtol=0)


def test_losses_go_down() -> None:
    engine, progress = make_engine(make_agent("dcwm", "agent.bound_reward=false", "agent.enc_lr=1e-3"), [0])
    update(engine, progress, 10)
    first = engine.metrics(0)
    update(engine, progress, 100)
    engine.metrics(0)
    update(engine, progress, 10)
    last = engine.metrics(0)
    assert last["consistency_loss"] < 0.9 * first["consistency_loss"]
    assert last["reward_loss"] < 0.8 * first["reward_loss"]
