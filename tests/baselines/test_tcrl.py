"""TCRL against spec page tcrl.md: golden numbers, plain restatements of every loss, schedules, packs, compilation."""

from __future__ import annotations

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

from baselines.tcrl import TCRL, cosine, linear, truncate
from iqrl.agent import Batch, Progress
from iqrl.config import parse_words, resolve
from iqrl.environments.tasks import TaskSpec
from iqrl.errors import InputError

SIGMA = torch.tensor(0.7)

# --- golden numbers


def test_parameter_counts() -> None:
    rows = [
        (24, 6, "agent.latent_dim=50", (301_106, 609_843, 292_870, 556_546)),
        (223, 38, "agent.latent_dim=100", (428_644, 719_461, 334_886, 598_530)),
    ]
    for observation, action, word, expected in rows:
        spec = TaskSpec("", observation, action, 2, 500, False, "easy")
        agent = make_agent("tcrl", word, preset="default", spec=spec)
        encoder = agent.target.count
        assert (encoder, agent.world.count - encoder, agent.actor.count, agent.critic.count) == expected


def test_golden_consistency() -> None:
    predicted = torch.tensor([[[1, 0], [0.6, 0.8]], [[0, -1], [1, 1]], [[1, 2], [-1, 0]]])  # (H, B, 2)
    goal = torch.tensor([[[1.0, 0], [1, 0]], [[0, 1], [1, 0]], [[2, 4], [-2, 0]]])
    loss = (0.9 ** torch.arange(3)[:, None] * (2 - 2 * cosine(predicted, goal))).sum(0).mean()
    assert float(loss) == pytest.approx(2.463604, abs=1e-5)


def test_golden_schedule() -> None:
    expected = {1: 0.982, 10: 0.82, 25: 0.55, 49: 0.118, 50: 0.1, 500: 0.1}
    for episode, value in expected.items():
        assert linear(1.0, 0.1, 50, episode) == pytest.approx(value)


def test_truncation_clamps_the_value_and_not_the_gradient() -> None:
    action = torch.tensor([-3.0, 0.25, 1.0], requires_grad=True)
    clamped = truncate(action)
    np.testing.assert_array_equal(clamped.detach(), np.float32([-1 + 1e-6, 0.25, 1 - 1e-6]))
    clamped.backward(torch.tensor([1.0, 2.0, 3.0]))
    assert action.grad is not None and action.grad.tolist() == [1.0, 2.0, 3.0]


# --- losses against plain restatements: one sample at a time, NumPy, float64


def elu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1)


def plain_mlp(p: Any, x: np.ndarray, head: int | None = None) -> np.ndarray:
    layers = 1 + max(int(k.split(".")[0]) for k in p)
    for i in range(layers):
        w, b = (p[f"{i}.weight"], p[f"{i}.bias"]) if head is None else (p[f"{i}.weight"][head], p[f"{i}.bias"][head, 0])
        x = x @ w + b
        x = elu(x) if i < layers - 1 else x
    return x


def plain_trunk(p: Any, x: np.ndarray) -> np.ndarray:
    x = x @ p["0.weight"] + p["0.bias"]
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
    return np.tanh(x * p["0.scale"] + p["0.shift"])


def plain_action(actor: Any, z: np.ndarray, noise: np.ndarray) -> np.ndarray:
    mean = np.tanh(plain_mlp(actor["head"], plain_trunk(actor["trunk"], z)))
    return np.clip(mean + np.clip(0.7 * noise, -0.3, 0.3), -1 + 1e-6, 1 - 1e-6)


def plain_q(critic: Any, z: np.ndarray, action: np.ndarray) -> list[float]:
    feature = plain_trunk(critic["trunk"], np.concatenate([z, action]))
    return [float(plain_mlp(critic["heads"], feature, k)[0]) for k in (0, 1)]


def plain_quantise(kind: str, x: np.ndarray) -> np.ndarray:
    if kind == "fsq":  # levels [8, 8]: tanh(x + s) a - 1/2, rounded, by 4
        return np.round(np.tanh(x + np.arctanh(0.5 / 3.5035)) * 3.5035 - 0.5) / 4
    if kind == "tanh":
        return (np.tanh(x + np.arctanh(0.5 / 3.5035)) * 3.5035 - 0.5) / 4
    if kind == "simnorm":
        return np.exp(x) / np.exp(x).sum()  # 8 wide: one group
    return x / np.linalg.norm(x) if kind == "l2" else x


def plain_representation_loss(world: Any, target: Any, data: Any, kind: str = "none", arm: str = "") -> float:
    """Of latents of a kind (quantizer), for dyn_mode=residual or rep_metric=mse if `arm` says so."""
    o, a, r, terminated = data
    total = 0.0
    for b in range(16):
        z = plain_quantise(kind, plain_mlp(world["encoder"], o[0, b]))
        consistency, mistake, alive = 0.0, 0.0, True
        for h in range(5):
            za = np.concatenate([z, a[h, b]])
            following, reward = plain_mlp(world["dynamics"], za), plain_mlp(world["reward"], za)[0]
            z = plain_quantise(kind, z + following if arm == "dyn_mode=residual" else following)
            goal = plain_quantise(kind, plain_mlp(target["encoder"], o[h + 1, b]))
            distance = 2 - 2 * z @ goal / np.linalg.norm(z) / np.linalg.norm(goal)
            if arm == "rep_metric=mse":
                distance = ((z - goal) ** 2).mean()
            if alive:  # beyond a termination, which DM Control does not have, there is nothing to predict
                consistency += 0.9**h * distance
                mistake += 0.9**h * (reward - r[h, b]) ** 2
            alive = alive and not terminated[h, b]
        total += min(consistency, 1e4) + min(mistake, 1e4)
    return total / 16


def plain_target(arrays: Any, z: np.ndarray, noise: np.ndarray, data: Any) -> np.ndarray:
    _, _, r, terminated = data
    y = []
    for b in range(16):
        total, factor = 0.0, 1.0
        for k in range(3):
            total, factor = total + factor * r[k, b], factor * 0.99
            if terminated[k, b]:
                factor = 0.0
                break
        action = plain_action(arrays["actor"], z[b], noise[b])
        y.append(total + factor * min(plain_q(arrays["target_critic"], z[b], action)))
    return np.array(y)


def plain_critic_loss(critic: Any, z: np.ndarray, a: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean([sum((q - y[b]) ** 2 for q in plain_q(critic, z[b], a[b])) for b in range(16)]))


def plain_actor_loss(actor: Any, critic: Any, z: np.ndarray, noise: np.ndarray) -> float:
    return -float(np.mean([min(plain_q(critic, z[b], plain_action(actor, z[b], noise[b]))) for b in range(16)]))


@pytest.fixture
def case() -> Any:
    """An agent whose copies of every network differ, with a batch, latents, noise, and all of it as arrays."""
    agent = make_agent("tcrl")
    state, arrays = initial_state(agent), {}
    groups = {"world": agent.world, "target": agent.target, "actor": agent.actor, "critic": agent.critic,
              "target_critic": agent.critic}  # fmt: skip
    for i, (k, group) in enumerate(groups.items()):
        state[k] = state[k] + 0.1 * torch.randn(group.size, generator=torch.Generator().manual_seed(i))
        arrays[k] = as_arrays(group.unpack(state[k]))
    batch, noise = random_batch(agent), random_noise(agent, "update_all")
    z = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(9))
    data = [as_arrays(v) for v in (batch.observation, batch.action, batch.reward, batch.terminated)]
    return agent, state, batch, noise, z, arrays, data


def test_losses_equal_plain_restatements(case: Any) -> None:
    agent, state, batch, noise, z, arrays, data = case
    loss, _ = agent.representation_loss(state["world"], state["target"], batch)
    expected = plain_representation_loss(arrays["world"], arrays["target"], data)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    plain_z, plain_noise = as_arrays(z), as_arrays(noise)
    y = agent.target_value(state, batch, z, noise["next_action"], SIGMA)
    plain_y = plain_target(arrays, plain_z[1], plain_noise["next_action"], data)
    np.testing.assert_allclose(y, plain_y, rtol=1e-5, atol=1e-5)
    loss, _ = agent.critic_loss(state["critic"], z[0], batch.action[0], y)
    assert float(loss) == pytest.approx(plain_critic_loss(arrays["critic"], plain_z[0], data[1][0], plain_y), rel=1e-5)
    loss = agent.actor_loss(state["actor"], state["critic"], z[0], noise["action"], SIGMA)
    expected = plain_actor_loss(arrays["actor"], arrays["critic"], plain_z[0], plain_noise["action"])
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind, arm", [
    ("fsq", ""), ("tanh", ""), ("simnorm", ""), ("l2", ""), ("none", "dyn_mode=residual"), ("none", "rep_metric=mse"),
    ("fsq", "dyn_mode=residual"), ("fsq", "rep_metric=mse"),
])  # fmt: skip
def test_representation_losses_of_the_switches(kind: str, arm: str) -> None:
    agent = make_agent("tcrl", f"agent.quantizer={kind}", *(f"agent.{arm}",) * bool(arm))
    state, batch = initial_state(agent), random_batch(agent)
    source = torch.Generator().manual_seed(0)
    world, target = (state[k] + 0.1 * torch.randn(state[k].shape, generator=source) for k in ("world", "target"))
    data = [as_arrays(v) for v in (batch.observation, batch.action, batch.reward, batch.terminated)]
    arrays = as_arrays(agent.world.unpack(world)), as_arrays(agent.target.unpack(target))
    loss, _ = agent.representation_loss(world, target, batch)
    assert float(loss) == pytest.approx(plain_representation_loss(*arrays, data, kind, arm), rel=1e-5)


def test_one_update_is_put_together_rightly(case: Any) -> None:
    """Which network reads which copy: the losses that an update with large steps reports."""
    _, state, batch, noise, _, arrays, data = case
    agent = make_agent("tcrl", "agent.lr=0.03")
    changed, metrics = agent.run_stage("update_all", state, batch, noise, {"sigma": SIGMA})
    encoder = as_arrays(agent.world.unpack(changed["world"]))["encoder"]  # the one just updated
    critic = as_arrays(agent.critic.unpack(changed["critic"]))
    z, last = (np.array([plain_mlp(encoder, o) for o in data[0][t]]) for t in (0, 3))  # N = 3
    plain_noise = as_arrays(noise)
    y = plain_target(arrays, last, plain_noise["next_action"], data)
    expected = {
        "representation_loss": plain_representation_loss(arrays["world"], arrays["target"], data),
        "target_mean": y.mean(),
        "critic_loss": plain_critic_loss(arrays["critic"], z, data[1][0], y),
        "actor_loss": plain_actor_loss(arrays["actor"], critic, z, plain_noise["action"]),
    }
    for k, v in expected.items():
        assert float(metrics[k]) == pytest.approx(v, rel=1e-5, abs=1e-6), k


def test_gradients_are_those_of_the_restatements(case: Any) -> None:
    """Finite differences of the plain losses: the target encoder's part of the consistency gets no gradient."""
    agent, state, batch, noise, z, arrays, data = case
    y, plain_z = torch.randn(16, generator=torch.Generator().manual_seed(1)), as_arrays(z)
    gradients = {
        "world": grad(agent.representation_loss, has_aux=True)(state["world"], state["target"], batch)[0],
        "critic": grad(agent.critic_loss, has_aux=True)(state["critic"], z[0], batch.action[0], y)[0],
        "actor": grad(agent.actor_loss)(state["actor"], state["critic"], z[0], 0 * noise["action"], SIGMA),
    }
    still = np.zeros((16, SPEC.action_dim))
    losses = {
        "world": lambda p: plain_representation_loss(p, arrays["target"], data),
        "critic": lambda p: plain_critic_loss(p, plain_z[0], data[1][0], y.numpy().astype(np.float64)),
        "actor": lambda p: plain_actor_loss(p, arrays["critic"], plain_z[0], still),
    }
    for name, gradient in gradients.items():
        group = getattr(agent, name)
        size = torch.randn(group.size, generator=torch.Generator().manual_seed(7)).abs()
        direction = torch.sign(gradient) * size  # uphill, so that the slope is not a small difference
        expected = slope(losses[name], arrays[name], as_arrays(group.unpack(direction)), 1e-6)
        assert float(gradient @ direction) == pytest.approx(expected, rel=1e-3), name


def test_losses_of_one_sample_are_limited() -> None:
    agent = make_agent("tcrl", "agent.consistency_coef=0")
    state, batch = initial_state(agent), random_batch(agent, terminations=0.0)
    reward = torch.zeros_like(batch.reward)
    reward[:, 0] = 1e6
    batch = Batch(batch.observation, batch.action, reward, batch.terminated, batch.truncated)
    gradient, _ = grad(agent.representation_loss, has_aux=True)(state["world"], state["target"], batch)
    loss, _ = agent.representation_loss(state["world"], state["target"], batch)
    assert 1e4 / 16 < float(loss) < 1e4 / 16 + 100 and gradient.norm() < 100  # the limit holds its gradient back


# --- one update


def changes(engine: Any, progress: list[Progress]) -> set[str]:
    before = {k: v.clone() for k, v in engine.state.items()}
    update(engine, progress, 1)
    return {k for k, v in engine.state.items() if not torch.equal(v, before[k])}


def test_each_update_changes_what_it_should() -> None:
    everything = set(initial_state(make_agent("tcrl")))
    engine, progress = make_engine(make_agent("tcrl"), [0])
    assert changes(engine, progress) == everything  # no policy delay
    engine, progress = make_engine(make_agent("tcrl", "agent.actor_every=2"), [0])
    assert changes(engine, progress) == {k for k in everything if not k.startswith("actor")}
    assert changes(engine, progress) == everything


def test_what_each_loss_reaches(case: Any) -> None:
    """Rewards do not change the actor, Q does not change the encoder, the reward head trains the encoder."""
    agent, state, batch, noise, z, _, _ = case
    gradient = grad(agent.representation_loss, has_aux=True)(state["world"], state["target"], batch)[0]
    for network, parameters in agent.world.unpack(gradient).items():
        assert all(float(p.norm()) > 0 for p in parameters.values()), network
    quiet = make_agent("tcrl", "agent.consistency_coef=0")
    gradient = grad(quiet.representation_loss, has_aux=True)(state["world"], state["target"], batch)[0]
    parts = quiet.world.unpack(gradient)
    assert float(parts["encoder"]["0.weight"].norm()) > 0 and float(parts["reward"]["0.weight"].norm()) > 0
    noise = {**noise, "slices": torch.zeros(16)}
    changed, _ = agent.run_stage("update_all", state, batch, noise, {"sigma": SIGMA})
    other = {**state, "critic": state["critic"] + 1.0, "target_critic": state["target_critic"] - 1.0}
    again, _ = agent.run_stage("update_all", other, batch, noise, {"sigma": SIGMA})
    assert torch.equal(changed["world"], again["world"]) and not torch.equal(changed["actor"], again["actor"])


def test_gradient_is_averaged_over_the_horizon_and_decayed_after_the_clip() -> None:
    agent = make_agent("tcrl", "agent.clip=0.5")
    state, batch = initial_state(agent), random_batch(agent)
    changed, metrics = agent.run_stage("update_all", state, batch, random_noise(agent, "update_all"), {"sigma": SIGMA})
    gradient = grad(agent.representation_loss, has_aux=True)(state["world"], state["target"], batch)[0] / 5
    assert float(metrics["representation_gradient_norm"]) == pytest.approx(float(gradient.norm()), rel=1e-5)
    assert gradient.norm() > 0.5
    clipped = gradient * 0.5 / gradient.norm() + 1e-6 * state["world"]
    torch.testing.assert_close(changed["world/mean"], 0.1 * clipped, rtol=1e-4, atol=1e-8)
    online = agent.world.extract(changed["world"], agent.target)
    torch.testing.assert_close(changed["target"], 0.995 * state["target"] + 0.005 * online)
    torch.testing.assert_close(changed["target_critic"], 0.995 * state["target_critic"] + 0.005 * changed["critic"])


def test_targets_start_as_copies_or_apart() -> None:
    agent, apart = make_agent("tcrl"), make_agent("tcrl", "agent.unsynced_targets=true")
    state, other = initial_state(agent), initial_state(apart)
    assert torch.equal(state["target_critic"], state["critic"])
    assert torch.equal(state["target"], agent.world.extract(state["world"], agent.target))
    assert not torch.equal(other["target_critic"], other["critic"])
    assert not torch.equal(other["target"], apart.world.extract(other["world"], apart.target))
    weight = agent.actor.unpack(state["actor"])["trunk"]["0.weight"]  # (8, 16), orthogonal
    torch.testing.assert_close(weight @ weight.t(), torch.eye(8), atol=1e-5, rtol=0)


@pytest.mark.parametrize("switch", [
    "agent.quantizer=fsq", "agent.quantizer=simnorm", "agent.dyn_mode=residual", "agent.rep_metric=mse",
    "agent.next_policy=target", "agent.reward_coef=0", "agent.mean_gradient=false", "agent.decay_mode=decoupled",
    "agent.unsynced_targets=true", "agent.nstep=1", "agent.init=torch",
])  # fmt: skip
def test_switches(switch: str) -> None:
    engine, progress = make_engine(make_agent("tcrl", switch), [0])
    plain, plain_progress = make_engine(make_agent("tcrl"), [0])
    update(engine, progress, 3)
    update(plain, plain_progress, 3)
    assert all(np.isfinite(v) for v in engine.metrics(0).values())
    different = engine.state["actor"].shape != plain.state["actor"].shape or not torch.equal(
        engine.state["actor"], plain.state["actor"]
    )
    assert different
    state, agent = {k: v[0] for k, v in engine.state.items()}, engine.agent
    latent = agent.latent(state, torch.randn(7, SPEC.observation_dim))
    assert latent is not None and latent.shape == (7, agent.latent_width())
    assert agent.latent_width() == (16 if switch == "agent.quantizer=fsq" else 8)
    codes = agent.codes(state, latent)
    assert (codes is not None) == (switch == "agent.quantizer=fsq")


def test_bad_values() -> None:
    for words in (["agent.consistency_coef=0", "agent.reward_coef=0"], ["agent.quantizer=simnorm"], ["agent.nstep=0"]):
        with pytest.raises(InputError, match=r"agent\.(consistency_coef|latent_dim|nstep)="):
            resolve([("test", parse_words(["agent=tcrl", *words]))])


# --- acting and schedules


def test_acting() -> None:
    agent = make_agent("tcrl")
    state, observation = initial_state(agent), torch.randn(4, SPEC.observation_dim)
    greedy, _ = agent.act(state, {}, observation, {}, {"sigma": SIGMA})
    z = agent.latent(state, observation)
    torch.testing.assert_close(greedy, agent.policy(state["actor"], z))
    noise = torch.tensor([[9.0, -9.0], [0.1, -0.2], [0.0, 0.0], [0.3, 0.3]])  # not clipped at 0.3 when acting
    action, _ = agent.act(state, {}, observation, {"action": noise}, {"sigma": torch.tensor(0.5)})
    expected = np.clip(greedy.numpy() + 0.5 * noise.numpy(), -1 + 1e-6, 1 - 1e-6)
    np.testing.assert_allclose(action, expected, atol=1e-6)


def test_schedules() -> None:
    agent = make_agent("tcrl", "agent.noise_episodes=50")
    due, sigma = {}, {}
    for episodes in (1, 9, 10, 11, 12, 50, 51, 70):
        progress = Progress(decisions=500 * episodes, episodes=episodes, episode_decisions=500)
        due[episodes] = agent.after_episode(progress, {})[0]
        sigma[episodes] = agent.schedule(progress)["sigma"]
    assert due == {1: 0, 9: 0, 10: 0, 11: 250, 12: 250, 50: 250, 51: 250, 70: 250}
    # After episode number 10 (the eleventh) the updates, and the acting in the next, use the schedule at 10.
    expected = {1: 1, 9: 1, 10: 1, 11: 0.82, 12: 0.802, 50: 0.118, 51: 0.1, 70: 0.1}
    assert sigma == pytest.approx(expected)
    assert agent.schedule(Progress())["sigma"] == 1.0
    random = [agent.acts_randomly(Progress(episodes=n)) for n in (0, 9, 10)]
    assert random == [True, True, False]


@pytest.mark.parametrize("task, expected", [
    ("walker-walk", (50, 0.1, 50, 3)), ("cheetah-run", (50, 0.1, 150, 3)), ("dog-run", (100, 0.2, 500, 3)),
    ("humanoid-walk", (100, 0.2, 500, 1)), ("cartpole-swingup-sparse", (50, 0.1, 150, 3)),
    ("cup-spin", (50, 0.1, 150, 3)),
])  # fmt: skip
def test_task_groups(task: str, expected: tuple[Any, ...]) -> None:
    settings = resolve([("test", parse_words(["agent=tcrl", f"task={task}"]))])[0][0].settings
    assert (settings.latent_dim, settings.noise_final, settings.noise_episodes, settings.nstep) == expected


def test_hidden_layers() -> None:
    agent = make_agent("tcrl")
    layers = agent.hidden(initial_state(agent), torch.randn(7, SPEC.observation_dim), torch.zeros(7, SPEC.action_dim))
    assert [tuple(v.shape) for v in layers] == [(7, 16)] * 4 + [(7, 16), (2, 7, 16)] + [(7, 16)] * 2


# --- packs, compilation


def test_losses_go_down() -> None:
    engine, progress = make_engine(make_agent("tcrl"), [0])
    update(engine, progress, 10)
    first = engine.metrics(0)
    update(engine, progress, 200)
    engine.metrics(0)
    update(engine, progress, 10)
    last = engine.metrics(0)
    assert last["consistency_loss"] < 0.7 * first["consistency_loss"]
    assert last["reward_loss"] < 0.7 * first["reward_loss"]


def test_class_is_registered() -> None:
    assert TCRL.name == "tcrl"
