"""MR.Q against spec page mrq.md: golden numbers, plain restatements of every loss, schedules, packs, compilation."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from packs import (
    DISCRETE,
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

from baselines.mrq import n_step_mrq_released
from iqrl.agent import Batch, Progress
from iqrl.config import parse_words, resolve
from iqrl.environments.tasks import TaskSpec
from iqrl.errors import InputError
from iqrl.two_hot import symexp_bins, two_hot, two_hot_cross_entropy

# --- golden numbers


def test_parameter_counts() -> None:
    for observation, action, encoder, policy in ((24, 6, 1_755_458, 528_390), (223, 38, 1_865_538, 544_806)):
        agent = make_agent("mrq", preset="default", spec=TaskSpec("", observation, action, 2, 500, False, "easy"))
        assert (agent.encoder.count, agent.value.count, agent.policy.count) == (encoder, 1_576_962, policy)


def test_bins() -> None:
    bins = symexp_bins(65, 10.0).tolist()
    assert bins[30:36] == pytest.approx([-0.868246, -0.366838, 0, 0.366838, 0.868246, 1.553589], abs=1e-6)
    assert bins[64] == -bins[0] == pytest.approx(22025.465795, abs=1e-3)


@pytest.mark.parametrize(
    "reward, expected",
    [
        (0.0, {32: 1.0}),
        (0.25, {32: 0.3185, 33: 0.6815}),
        (0.5, {33: 0.734424, 34: 0.265576}),
        (1.0, {34: 0.807755, 35: 0.192245}),
        (2.0, {35: 0.523449, 36: 0.476551}),
        (-0.3, {31: 0.8178, 32: 0.1822}),
        (100.0, {46: 0.260157, 47: 0.739843}),
        (1e6, {64: 1.0}),
        (-1e6, {0: 1.0}),
    ],
)
def test_two_hot(reward: float, expected: dict[int, float]) -> None:
    upper, weight = two_hot(torch.tensor([reward]), symexp_bins(65, 10.0))
    code = np.zeros(65)
    code[int(upper)] += float(weight)
    code[int(upper) - 1] += 1 - float(weight)
    wanted = np.zeros(65)
    wanted[list(expected)] = list(expected.values())
    np.testing.assert_allclose(code, wanted, atol=1e-4)


def test_two_hot_cross_entropy() -> None:
    logits = torch.zeros(2, 65)
    logits[0, 33], logits[0, 34] = 2.0, 1.0
    loss = two_hot_cross_entropy(logits, torch.tensor([0.5, 0.5]), 10.0)
    assert loss.tolist() == pytest.approx([2.557505, 4.174387], abs=1e-4)


def constant_value(agent: Any, state: dict[str, torch.Tensor], value: float) -> None:
    state["target_value"] = torch.zeros_like(state["target_value"])
    agent.value.unpack(state["target_value"])["value"]["3.bias"].fill_(value)


def test_golden_target() -> None:
    agent = make_agent("mrq")
    state, noise = initial_state(agent), random_noise(agent, "update_rl")
    constant_value(agent, state, 5.0)
    state["reward_scale"], state["target_reward_scale"] = torch.tensor(0.8), torch.tensor(0.5)
    reward = torch.tensor([1.0, 2.0, 4.0, 9.0, 9.0])[:, None].expand(5, 16)
    batch = dataclasses.replace(random_batch(agent, terminations=0.0), reward=reward)
    expected = torch.full((16,), 11.657684)
    torch.testing.assert_close(agent.target_value(state, batch, noise), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("end, alive, released", [(0, 1.0, 5.9004), (1, 2.98, 4.9204), (2, 6.9004, 2.98)])
def test_returns_at_a_termination(end: int, alive: float, released: float) -> None:
    terminated = torch.zeros(5, 16)
    terminated[end] = 1.0
    reward = torch.tensor([1.0, 2.0, 4.0, 9.0, 9.0])[:, None].expand(5, 16)
    for mask, expected in (("alive", alive), ("released", released)):
        agent = make_agent("mrq", f"agent.reward_mask={mask}")
        state = initial_state(agent)
        constant_value(agent, state, 5.0)
        state["target_reward_scale"] = torch.tensor(1.0)
        batch = dataclasses.replace(random_batch(agent), reward=reward, terminated=terminated)
        y = agent.target_value(state, batch, random_noise(agent, "update_rl"))
        torch.testing.assert_close(y, torch.full((16,), expected), atol=1e-5, rtol=0)


def test_released_returns_without_an_end() -> None:
    batch = random_batch(make_agent("mrq"), terminations=0.0)
    total, factor, last = n_step_mrq_released(batch, 3, 0.99)
    torch.testing.assert_close(total, batch.reward[0] + 0.99 * batch.reward[1] + 0.9801 * batch.reward[2])
    assert torch.equal(last, batch.observation[3]) and factor.tolist() == pytest.approx([0.970299] * 16)


# --- losses against plain restatements: one sample at a time, NumPy, float64


def elu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1)


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def normalise(x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean() + 1e-5)


def base_mlp(p: Any, x: np.ndarray, activation: Any, head: int | None = None) -> np.ndarray:
    """Linear, LN, act, Linear, LN, act, Linear."""
    for i in range(3):
        w, b = p[f"{i}.weight"], p[f"{i}.bias"]
        x = x @ w + b if head is None else x @ w[head] + b[head, 0]
        x = activation(normalise(x)) if i < 2 else x
    return x


def plain_f(encoder: Any, s: np.ndarray) -> np.ndarray:
    return elu(normalise(base_mlp(encoder["f"], s, elu)))


def plain_g(encoder: Any, zs: np.ndarray, a: np.ndarray) -> np.ndarray:
    za = elu(a @ encoder["embedding"]["0.weight"] + encoder["embedding"]["0.bias"])
    return base_mlp(encoder["g"], np.concatenate([zs, za]), elu)


def plain_q(value: Any, k: int, zsa: np.ndarray) -> float:
    p = value["value"]
    x = elu(normalise(base_mlp(p, zsa, elu, k)))
    return float((x @ p["3.weight"][k] + p["3.bias"][k, 0])[0])


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def plain_squash(x: np.ndarray, uniform: np.ndarray | None) -> np.ndarray:
    """Of discrete actions if there is noise for them."""
    return np.tanh(x) if uniform is None else softmax((x - np.log(-np.log(uniform))) / 10)


def plain_realise(a: np.ndarray, discrete: bool) -> np.ndarray:
    return np.eye(len(a))[a.argmax()] if discrete else np.clip(a, -1, 1)


def plain_encoder_loss(encoder: Any, target: Any, data: Any, seen: float, discrete: bool) -> float:
    s, a, r, terminated = data
    bins = [math.copysign(math.exp(abs(x)) - 1, x) for x in np.linspace(-10, 10, 65)]
    samples = []
    for b in range(16):
        z, mask, loss = plain_f(encoder, s[0, b]), 1.0, 0.0
        for i in range(5):
            zsa = plain_g(encoder, z, plain_realise(a[i, b], discrete))
            out = zsa @ encoder["m"]["0.weight"] + encoder["m"]["0.bias"]
            done, z, logits = out[0], out[1:17], out[17:]
            low = max(k for k in range(65) if bins[k] < r[i, b])
            weight = (r[i, b] - bins[low]) / (bins[low + 1] - bins[low])
            log_p = np.log(softmax(logits))
            loss += mask * np.mean((z - plain_f(target, s[i + 1, b])) ** 2)
            loss += mask * 0.1 * -((1 - weight) * log_p[low] + weight * log_p[low + 1])
            loss += mask * 0.1 * seen * (done - terminated[i, b]) ** 2
            mask *= 1 - terminated[i, b]
        samples.append(loss)
    return float(np.mean(samples))


def plain_target(arrays: Any, data: Any, noise: Any, scales: tuple[float, float], discrete: bool) -> np.ndarray:
    s, _, r, terminated = data
    y = []
    for b in range(16):
        total, alive = 0.0, 1.0
        for k in range(3):
            total += 0.99**k * r[k, b] * alive
            alive *= 1 - terminated[k, b]
        zs = plain_f(arrays["target_encoder"], s[3, b])
        x = base_mlp(arrays["target_policy"]["policy"], zs, relu)
        action = plain_squash(x, noise["target_gumbel"][b] if discrete else None)
        half = 0.5 if discrete else 1.0
        action = action + np.clip(0.2 * half * noise["smoothing"][b], -0.3 * half, 0.3 * half)
        zsa = plain_g(arrays["target_encoder"], zs, plain_realise(action, discrete))
        q = min(plain_q(arrays["target_value"], k, zsa) for k in (0, 1))
        y.append((total + alive * 0.99**3 * q * scales[1]) / scales[0])
    return np.array(y)


def plain_errors(value: Any, arrays: Any, data: Any, y: np.ndarray, discrete: bool) -> np.ndarray:
    s, a, _, _ = data
    errors = np.zeros((2, 16))
    for b in range(16):
        zsa = plain_g(arrays["encoder"], plain_f(arrays["encoder"], s[0, b]), plain_realise(a[0, b], discrete))
        errors[:, b] = [abs(plain_q(value, k, zsa) - y[b]) for k in (0, 1)]
    return errors


def plain_value_loss(value: Any, arrays: Any, data: Any, y: np.ndarray, discrete: bool) -> float:
    errors = plain_errors(value, arrays, data, y, discrete).reshape(-1)
    return float(np.mean([0.5 * error**2 if error < 1 else error - 0.5 for error in errors]))


def plain_policy_loss(policy: Any, arrays: Any, data: Any, noise: Any, discrete: bool, weight: float = 1e-5) -> float:
    s, qs, squares = data[0], [], []
    for b in range(16):
        zs = plain_f(arrays["encoder"], s[0, b])
        x = base_mlp(policy["policy"], zs, relu)
        zsa = plain_g(arrays["encoder"], zs, plain_squash(x, noise["gumbel"][b] if discrete else None))
        qs += [plain_q(arrays["value"], k, zsa) for k in (0, 1)]
        squares.append(x**2)
    return float(-np.mean(qs) + weight * np.mean(squares))


@dataclasses.dataclass
class Case:
    """An agent whose copies of every network differ, with a batch, noise, and all of it as arrays."""

    agent: Any
    state: dict[str, torch.Tensor]
    batch: Batch
    noise: dict[str, torch.Tensor]
    arrays: Any
    data: Any
    plain_noise: Any
    discrete: bool


@pytest.fixture(params=["continuous", "discrete"])
def case(request: pytest.FixtureRequest) -> Case:
    discrete = request.param == "discrete"
    agent = make_agent("mrq", "agent.pre_activation_weight=0.01", spec=DISCRETE if discrete else SPEC)
    state, arrays = initial_state(agent), {}
    groups = {
        "encoder": agent.encoder, "policy": agent.policy, "value": agent.value,
        "target_encoder": agent.target, "target_policy": agent.policy, "target_value": agent.value,
    }  # fmt: skip
    for i, (k, group) in enumerate(groups.items()):
        state[k] = state[k] + 0.1 * torch.randn(group.size, generator=torch.Generator().manual_seed(i))
        arrays[k] = as_arrays(group.unpack(state[k]))
    state |= {"reward_scale": torch.tensor(0.8), "target_reward_scale": torch.tensor(0.5)}
    batch, noise = random_batch(agent), random_noise(agent, "update_rl")
    data = [as_arrays(v) for v in (batch.observation, batch.action, batch.reward, batch.terminated)]
    return Case(agent, state, batch, noise, arrays, data, as_arrays(noise), discrete)


def test_losses_equal_plain_restatements(case: Case) -> None:
    agent, state, batch, arrays, data, discrete = (
        case.agent, case.state, case.batch, case.arrays, case.data, case.discrete,
    )  # fmt: skip
    for seen in (0.0, 1.0):
        loss, parts = agent.encoder_loss(state["encoder"], state["target_encoder"], torch.tensor(seen), batch)
        expected = plain_encoder_loss(arrays["encoder"], arrays["target_encoder"], data, seen, discrete)
        assert float(loss) == pytest.approx(expected, rel=1e-5)
        assert (float(parts["termination_loss"]) > 0) == (seen > 0)
    y = agent.target_value(state, batch, case.noise)
    expected_y = plain_target(arrays, data, case.plain_noise, (0.8, 0.5), discrete)
    np.testing.assert_allclose(y, expected_y, rtol=1e-5, atol=1e-5)
    encoder = agent.encoder(state["encoder"])
    zs = agent.embed_state(encoder, batch.observation[0])
    zsa = agent.embed_action(encoder, zs, agent.realise(batch.action[0]))
    loss, (error, _) = agent.value_loss(state["value"], zsa, y)
    assert error.shape == (2, 16) and float(error.max()) > 1 > float(error.min())  # both sides of the bend
    assert float(loss) == pytest.approx(plain_value_loss(arrays["value"], arrays, data, expected_y, discrete), rel=1e-5)
    loss = agent.policy_loss(state["policy"], state["value"], state["encoder"], zs, case.noise)
    expected = plain_policy_loss(arrays["policy"], arrays, data, case.plain_noise, discrete, 0.01)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_one_update_is_put_together_rightly(case: Case) -> None:
    """Which network reads which copy: the losses and priorities that `update_rl` reports."""
    agent, arrays, data, discrete = case.agent, case.arrays, case.data, case.discrete
    changed, metrics = agent.update_rl(case.state, case.batch, case.noise, {})
    y = plain_target(arrays, data, case.plain_noise, (0.8, 0.5), discrete)
    after = {**arrays, "value": as_arrays(agent.value.unpack(changed["value"]))}
    expected = {
        "value_loss": plain_value_loss(arrays["value"], arrays, data, y, discrete),
        "policy_loss": plain_policy_loss(arrays["policy"], after, data, case.plain_noise, discrete, 0.01),
        "target_mean": y.mean(),
    }
    for k, v in expected.items():
        assert float(metrics[k]) == pytest.approx(v, rel=1e-5, abs=1e-6), k
    errors = plain_errors(arrays["value"], arrays, data, y, discrete)
    np.testing.assert_allclose(metrics["priority"], np.maximum(errors.max(0), 1) ** 0.4, rtol=1e-4)
    assert float(metrics["priority"].max()) > 1


def test_gradients_are_those_of_the_restatements(case: Case) -> None:
    """Finite differences of the plain losses: targets hold still, the policy's gradient passes through g alone."""
    agent, state, batch, arrays, data, discrete = (
        case.agent, case.state, case.batch, case.arrays, case.data, case.discrete,
    )  # fmt: skip
    one, y = torch.tensor(1.0), agent.target_value(state, batch, case.noise)
    encoder = agent.encoder(state["encoder"])
    zs = agent.embed_state(encoder, batch.observation[0])
    zsa = agent.embed_action(encoder, zs, agent.realise(batch.action[0]))
    plain_y = y.numpy().astype(np.float64)
    gradients = {
        "encoder": grad(agent.encoder_loss, has_aux=True)(state["encoder"], state["target_encoder"], one, batch)[0],
        "value": grad(agent.value_loss, has_aux=True)(state["value"], zsa, y)[0],
        "policy": grad(agent.policy_loss)(state["policy"], state["value"], state["encoder"], zs, case.noise),
    }
    losses = {
        "encoder": lambda p: plain_encoder_loss(p, arrays["target_encoder"], data, 1.0, discrete),
        "value": lambda p: plain_value_loss(p, arrays, data, plain_y, discrete),
        "policy": lambda p: plain_policy_loss(p, arrays, data, case.plain_noise, discrete, 0.01),
    }
    for name, gradient in gradients.items():
        group = getattr(agent, name)
        direction = torch.randn(group.size, generator=torch.Generator().manual_seed(7)).abs() * torch.sign(gradient)
        expected = slope(losses[name], arrays[name], as_arrays(group.unpack(direction)))
        assert float(gradient @ direction) == pytest.approx(expected, rel=1e-3), name


# --- what an update changes


def run_stage(engine: Any, stage: str, progress: list[Progress]) -> set[str]:
    before = {k: v.clone() for k, v in engine.state.items()}
    engine.run(stage, [0], progress)
    return {k for k, v in engine.state.items() if not torch.equal(v, before[k])}


def moved(*names: str) -> set[str]:
    return {k for n in names for k in (n, f"{n}/mean", f"{n}/square", f"{n}/steps")}


def test_each_stage_changes_what_it_should() -> None:
    agent = make_agent("mrq")
    engine, progress = make_engine(agent, [0])
    assert engine.replay.priority is not None
    rewards = engine.replay.rows[0, : engine.replay.written[0]]
    mean = float(rewards[rewards[:, -1] != 3.0, -2].abs().mean())
    assert run_stage(engine, "synchronise", progress) == {"reward_scale", "target_reward_scale"}
    assert float(engine.state["target_reward_scale"]) == 1.0  # S was 1
    assert float(engine.state["reward_scale"]) == pytest.approx(mean, rel=1e-6)
    priorities = engine.replay.priority.values.clone()
    assert run_stage(engine, "update_encoder", progress) == moved("encoder")
    assert torch.equal(engine.replay.priority.values, priorities)  # the RL batch alone changes them
    assert run_stage(engine, "update_rl", progress) == moved("value", "policy")
    assert not torch.equal(engine.replay.priority.values, priorities)
    assert run_stage(engine, "synchronise", progress) == {
        "target_encoder", "target_policy", "target_value", "target_reward_scale",
    }  # fmt: skip
    assert float(engine.state["target_reward_scale"]) == pytest.approx(mean, rel=1e-6)
    for k in ("policy", "value"):
        assert torch.equal(engine.state[f"target_{k}"], engine.state[k])
    online = agent.encoder.unpack(engine.state["encoder"][0])
    for network, parameters in agent.target.unpack(engine.state["target_encoder"][0]).items():
        for k, v in parameters.items():
            assert torch.equal(v, online[network][k])


@pytest.mark.parametrize("ends", ["time limit", "termination"])
def test_terminations_are_learned_once_seen(ends: str) -> None:
    agent = make_agent("mrq")
    engine, progress = make_engine(agent, [0], ends=ends)
    update(engine, progress, 3)
    seen = ends == "termination"
    assert float(engine.state["terminations_seen"]) == seen
    assert (engine.metrics(0)["termination_loss"] > 0) == seen
    gradient = agent.encoder.unpack(engine.state["encoder/mean"][0])["m"]["0.weight"][:, 0]
    assert bool((gradient != 0).any()) == seen


# --- acting and schedules


def test_actions_are_what_the_task_takes() -> None:
    for spec in (SPEC, DISCRETE):
        agent = make_agent("mrq", spec=spec)
        state, observation = initial_state(agent), torch.randn(200, spec.observation_dim)
        shapes = agent.act_noise(True)
        assert set(shapes) == ({"action", "gumbel"} if spec.discrete else {"action"}) and agent.act_noise(False) == {}
        noise = {k: torch.rand(200, *n.shape) if n.kind == "uniform" else torch.randn(200, *n.shape)
                 for k, n in shapes.items()}  # fmt: skip
        for numbers in ({}, noise):
            action, _ = agent.act(state, {}, observation, numbers, {})
            assert action.shape == (200, spec.action_dim) and float(action.abs().max()) <= 1
            if spec.discrete:
                assert set(action.unique().tolist()) == {0.0, 1.0} and (action.sum(-1) == 1).all()


def test_exploration_noise() -> None:
    agent = make_agent("mrq")
    state, observation = initial_state(agent), torch.randn(9, SPEC.observation_dim)
    quiet, _ = agent.act(state, {}, observation, {}, {})
    noisy, _ = agent.act(state, {}, observation, {"action": torch.full((9, SPEC.action_dim), 0.5)}, {})
    torch.testing.assert_close(noisy, torch.clamp(quiet + 0.1, -1, 1))


def test_released_evaluation_draws_discrete_actions() -> None:
    agent, continuous = (make_agent("mrq", "agent.released_gumbel=true", spec=spec) for spec in (DISCRETE, SPEC))
    assert set(agent.act_noise(False)) == {"gumbel"} and continuous.act_noise(False) == {}
    state, observation = initial_state(agent), torch.randn(1, 5).expand(2000, 5)
    uniform = torch.rand(2000, 3, generator=torch.Generator().manual_seed(0))
    share = agent.act(state, {}, observation, {"gumbel": uniform}, {})[0].mean(0)
    zs = agent.embed_state(agent.encoder(state["encoder"]), observation[:1])
    probability = torch.softmax(agent.pre_activation(state["policy"], zs)[0], 0)  # the largest does not feel tau
    torch.testing.assert_close(share, probability, atol=0.04, rtol=0)


def test_gumbel_softmax() -> None:
    agent = make_agent("mrq", spec=DISCRETE)
    uniform = torch.tensor([[0.0, 0.5, 1 - 2.0**-24]])
    action = agent.squash(torch.zeros(1, 3), uniform)
    assert torch.isfinite(action).all() and float(action.sum()) == pytest.approx(1)
    expected = softmax(-np.log(-np.log([0.5, 0.9, 0.2])) / 10)
    np.testing.assert_allclose(agent.squash(torch.zeros(1, 3), torch.tensor([[0.5, 0.9, 0.2]]))[0], expected, rtol=1e-5)
    assert torch.equal(agent.realise(torch.tensor([[0.2, 0.9, -0.5]])), torch.tensor([[0.0, 1.0, 0.0]]))


def test_schedule() -> None:
    agent = make_agent("mrq", preset="default")
    random = [agent.acts_randomly(Progress(decisions=n)) for n in (0, 9_999, 10_000)]
    assert random == [True, True, False]
    assert [agent.after_decision(Progress(decisions=n)) for n in (9_999, 10_000, 10_001)] == [0, 0, 1]
    assert agent.after_episode(Progress(decisions=20_000), {}) == (0, ())
    phase = ("synchronise", *["update_encoder"] * 250, "update_rl")
    assert [agent.stages(n) == phase for n in (1, 2, 250, 251, 252, 501)] == [True, False, False, True, False, True]
    assert agent.stages(2) == ("update_rl",)
    assert agent.slices.horizon == 5 and agent.slices.prioritised
    assert make_agent("mrq", "agent.target_every=1").stages(7) == ("synchronise", "update_encoder", "update_rl")


def test_configuration() -> None:
    for word in ("agent.num_bins=1", "agent.reward_mask=all", "agent.lap_alpha=-1", "agent.zs_dim=0",
                 "agent.value_lr=1e9", "agent.exploration_noise=1e9"):  # fmt: skip
        with pytest.raises(InputError, match=word.split("=")[0]):
            resolve([("test", parse_words(["agent=mrq", word]))])


def test_looking_inside() -> None:
    agent = make_agent("mrq")
    state, observation = initial_state(agent), torch.randn(7, SPEC.observation_dim)
    assert agent.latent(state, observation).shape == (7, agent.latent_width())
    layers = agent.hidden(state, observation, torch.zeros(7, SPEC.action_dim))
    assert len(layers) == 2 + 2 + 3 + 2 and all(layer.shape[-2:] == (7, 16) for layer in layers)


# --- packs, compilation, learning


def test_losses_go_down() -> None:
    agent = make_agent("mrq", "agent.target_every=20")
    engine, progress = make_engine(agent, [0])
    update(engine, progress, 20)
    first = engine.metrics(0)
    update(engine, progress, 100)
    engine.metrics(0)
    update(engine, progress, 20)
    last = engine.metrics(0)
    assert last["dynamics_loss"] < first["dynamics_loss"] and last["reward_loss"] < first["reward_loss"]
    assert last["policy_loss"] < first["policy_loss"]
