"""TD7 against spec page td7.md: golden numbers, plain restatements of every loss, schedules, packs, compilation."""

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
    relative_difference,
    slope,
    update,
)
from torch.func import grad

from baselines.td7 import avg_l1_norm, lap_huber, lap_priority
from iqrl.agent import Batch, Progress
from iqrl.config import parse_words, resolve
from iqrl.environments.tasks import TaskSpec
from iqrl.errors import InputError

SWITCHES = [
    "agent.use_sale=false", "agent.use_lap=false", "agent.use_checkpoints=false", "agent.use_value_clip=false",
    "agent.enc_target=ema", "agent.bc_lambda=0.1",
]  # fmt: skip


# --- golden numbers


def test_parameter_counts() -> None:
    for observation, action, expected in ((24, 6, (336_896, 205_062, 541_698)), (223, 38, (396_032, 264_230, 659_970))):
        agent = make_agent("td7", preset="default", spec=TaskSpec("", observation, action, 2, 500, False, "easy"))
        assert (agent.encoder.count, agent.actor.count, agent.critic.count) == expected


def test_avg_l1_norm() -> None:
    x = torch.tensor([[1.0, -2.0, 3.0, -4.0], [0.0, 0.0, 0.0, 0.0], [1e-9, -1e-9, 0.0, 0.0]])
    expected = torch.tensor([[0.4, -0.8, 1.2, -1.6], [0.0, 0.0, 0.0, 0.0], [0.1, -0.1, 0.0, 0.0]])
    torch.testing.assert_close(avg_l1_norm(x), expected, atol=1e-6, rtol=0)


def test_lap_loss_and_priorities() -> None:
    error = torch.tensor([[0.5, 0.2, 3.0, 0.0], [2.0, 0.7, 1.0, 10.0]])  # (heads, B)
    elements = lap_huber(error, 1.0)
    torch.testing.assert_close(elements.T, torch.tensor([[0.125, 2], [0.02, 0.245], [3, 1], [0, 10]]))
    assert float(elements.sum(0).mean()) == pytest.approx(4.0975, abs=1e-4)
    expected = torch.tensor([1.319508, 1.0, 1.551846, 2.511886])
    torch.testing.assert_close(lap_priority(error, 1.0, 0.4), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("clip, expected", [((-0.5, 3.2), 4.168), ((0.0, 0.0), 1.0), ((-1e8, 1e8), 4.96)])
def test_golden_target(clip: tuple[float, float], expected: float) -> None:
    agent = make_agent("td7")
    state = initial_state(agent)
    state["target_critic"] = torch.zeros_like(state["target_critic"])
    agent.critic.unpack(state["target_critic"])["trunk"]["2.bias"].fill_(4.0)  # Q' = 4 everywhere
    state["clip_range"] = torch.tensor(clip)
    batch = dataclasses.replace(random_batch(agent), reward=torch.ones(1, 16), terminated=torch.zeros(1, 16))
    y = agent.target_value(state, batch, random_noise(agent, "update_all"))
    torch.testing.assert_close(y, torch.full((16,), expected), atol=1e-4, rtol=0)
    ended = dataclasses.replace(batch, terminated=torch.ones(1, 16))
    assert (agent.target_value(state, ended, random_noise(agent, "update_all")) == 1.0).all()


def test_golden_checkpoint_trace() -> None:
    agent = make_agent(
        "td7", "agent.warmup_decisions=0", "agent.checkpoint_late=40", "agent.checkpoint_episodes=3",
    )  # fmt: skip
    progress, memory, outcome, trained = Progress(), agent.counters(), [], []
    for episode_return in (50, 40, 60, 55, 70, 30, 80, 75, 90, 95):
        progress.decisions += 10
        progress.episodes += 1
        progress.episode_decisions, progress.episode_return = 10, episode_return
        updates, stages = agent.after_episode(progress, memory)
        outcome.append("checkpoint" if stages else "reject" if updates else "keep")
        assert stages in ((), ("checkpoint_policy",))
        progress.updates += updates
        trained.append(progress.updates)
        if episode_return == 70:
            assert memory["to_beat"] == pytest.approx(63)
    assert outcome == [
        "checkpoint", "reject", "checkpoint", "reject", "checkpoint", "reject", "keep", "keep", "checkpoint", "keep",
    ]  # fmt: skip
    assert trained == [10, 20, 30, 40, 50, 60, 60, 60, 90, 90]
    assert memory["to_beat"] == 75


# --- losses against plain restatements: one sample at a time, NumPy, float64


def elu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1)


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def dense(p: dict[str, np.ndarray], i: int, x: np.ndarray, head: int | None = None) -> np.ndarray:
    w, b = p[f"{i}.weight"], p[f"{i}.bias"]
    return x @ w + b if head is None else x @ w[head] + b[head, 0]


def norm(x: np.ndarray) -> np.ndarray:
    return x / max(np.abs(x).sum() / len(x), 1e-8)


def plain_f(encoder: Any, s: np.ndarray) -> np.ndarray:
    if not encoder:  # use_sale=false: there are no embeddings
        return np.zeros(0)
    p = encoder["f"]
    return norm(dense(p, 2, elu(dense(p, 1, elu(dense(p, 0, s))))))


def plain_g(encoder: Any, zs: np.ndarray, a: np.ndarray) -> np.ndarray:
    if not encoder:
        return np.zeros(0)
    p = encoder["g"]
    return dense(p, 2, elu(dense(p, 1, elu(dense(p, 0, np.concatenate([zs, a]))))))


def plain_policy(actor: Any, s: np.ndarray, zs: np.ndarray) -> np.ndarray:
    x = np.concatenate([norm(dense(actor["input"], 0, s)), zs])
    p = actor["trunk"]
    return np.tanh(dense(p, 2, relu(dense(p, 1, relu(dense(p, 0, x))))))


def plain_q(critic: Any, k: int, s: np.ndarray, a: np.ndarray, zsa: np.ndarray, zs: np.ndarray) -> float:
    u = norm(dense(critic["input"], 0, np.concatenate([s, a]), k))
    x, p = np.concatenate([u, zsa, zs]), critic["trunk"]
    return float(dense(p, 2, elu(dense(p, 1, elu(dense(p, 0, x, k)), k)), k)[0])


def perturbed(*words: str) -> Any:
    """An agent whose copies of every network differ, with a batch, noise, and all of it as arrays."""
    agent = make_agent("td7", *words)
    state = initial_state(agent)
    arrays = {}
    groups = {"encoder": agent.encoder, "actor": agent.actor, "critic": agent.critic}
    for i, k in enumerate(sorted(state)):
        for name, group in groups.items():
            if name in k and "/" not in k:
                noise = 0.1 * torch.randn(group.size, generator=torch.Generator().manual_seed(i))
                state[k] = state[k] + noise
                without = name == "encoder" and not agent.config.use_sale
                arrays[k] = {} if without else as_arrays(group.unpack(state[k]))
    state["clip_range"] = torch.tensor([-0.05, 0.1])
    batch, noise = random_batch(agent), random_noise(agent, "update_all")
    data = [as_arrays(v) for v in (batch.observation, batch.action, batch.reward, batch.terminated)]
    return agent, state, batch, noise, arrays, data


@pytest.fixture
def case() -> Any:
    return perturbed()


def plain_encoder_loss(encoder: Any, source: Any, data: Any) -> float:
    s, a, _, _ = data
    rows = [(plain_g(encoder, plain_f(encoder, s[0, b]), a[0, b]) - plain_f(source, s[1, b])) ** 2 for b in range(16)]
    return float(np.mean(rows))


def plain_target(arrays: Any, data: Any, noise: Any, clip: bool = True) -> np.ndarray:
    s, _, r, terminated = data
    y = []
    for b in range(16):
        encoder = arrays["fixed_encoder_target"]
        zs = plain_f(encoder, s[1, b])
        smoothing = np.clip(0.2 * noise["smoothing"][b].numpy(), -0.5, 0.5)
        action = np.clip(plain_policy(arrays["target_actor"], s[1, b], zs) + smoothing, -1, 1)
        zsa = plain_g(encoder, zs, action)
        q = min(plain_q(arrays["target_critic"], k, s[1, b], action, zsa, zs) for k in (0, 1))
        y.append(r[0, b] + (1 - terminated[0, b]) * 0.99 * (min(max(q, -0.05), 0.1) if clip else q))
    return np.array(y)


def plain_errors(critic: Any, arrays: Any, data: Any, y: np.ndarray) -> np.ndarray:
    s, a, _, _ = data
    errors = np.zeros((2, 16))
    for b in range(16):
        zs = plain_f(arrays["fixed_encoder"], s[0, b])
        zsa = plain_g(arrays["fixed_encoder"], zs, a[0, b])
        for k in (0, 1):
            errors[k, b] = abs(plain_q(critic, k, s[0, b], a[0, b], zsa, zs) - y[b])
    return errors


def plain_critic_loss(critic: Any, arrays: Any, data: Any, y: np.ndarray, lap: bool = True) -> float:
    total = 0.0
    for error in plain_errors(critic, arrays, data, y).reshape(-1):
        total += (0.5 * error**2 if error < 1 else error) if lap else error**2
    return total / 16


def plain_actor_loss(actor: Any, critic: Any, arrays: Any, data: Any, cloning: float = 0.0) -> float:
    s, a, _, _ = data
    qs, squares = [], []
    for b in range(16):
        zs = plain_f(arrays["fixed_encoder"], s[0, b])
        action = plain_policy(actor, s[0, b], zs)
        zsa = plain_g(arrays["fixed_encoder"], zs, action)
        qs += [plain_q(critic, k, s[0, b], action, zsa, zs) for k in (0, 1)]
        squares.append((action - a[0, b]) ** 2)
    return float(-np.mean(qs) + cloning * np.mean(np.abs(qs)) * np.mean(squares))


def test_losses_equal_plain_restatements(case: Any) -> None:
    agent, state, batch, noise, arrays, data = case
    loss = agent.encoder_loss(state["encoder"], state["fixed_encoder"], batch)
    assert float(loss) == pytest.approx(plain_encoder_loss(arrays["encoder"], arrays["fixed_encoder"], data), rel=1e-5)
    y = agent.target_value(state, batch, noise)
    expected = plain_target(arrays, data, noise)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert (np.isclose(expected - data[2][0], 0.099) | np.isclose(expected - data[2][0], -0.0495)).sum() >= 3  # clips
    zs = agent.embed_state(state["fixed_encoder"], batch.observation[0])
    zsa = agent.embed_action(state["fixed_encoder"], zs, batch.action[0])
    loss, (error, _) = agent.critic_loss(state["critic"], batch, zsa, zs, y)
    np.testing.assert_allclose(error, plain_errors(arrays["critic"], arrays, data, expected), rtol=1e-4, atol=1e-5)
    assert float(loss) == pytest.approx(plain_critic_loss(arrays["critic"], arrays, data, expected), rel=1e-5)
    loss = agent.actor_loss(state["actor"], state["critic"], state["fixed_encoder"], batch, zs)
    assert float(loss) == pytest.approx(plain_actor_loss(arrays["actor"], arrays["critic"], arrays, data), rel=1e-5)
    cloning = make_agent("td7", "agent.bc_lambda=0.3")
    loss = cloning.actor_loss(state["actor"], state["critic"], state["fixed_encoder"], batch, zs)
    expected = plain_actor_loss(arrays["actor"], arrays["critic"], arrays, data, 0.3)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("switch", ["", *SWITCHES])
def test_one_update_is_put_together_rightly(switch: str) -> None:
    """Which network reads which copy: the losses and priorities that `update_all` with large steps reports."""
    rates = [f"agent.{network}_lr=0.03" for network in ("enc", "critic", "actor")]
    agent, state, batch, noise, arrays, data = perturbed(*rates, *filter(None, [switch]))
    changed, metrics = agent.run_stage("update_all", state, batch, noise, {})
    lap = switch != "agent.use_lap=false"
    y = plain_target(arrays, data, noise, clip=switch != "agent.use_value_clip=false")
    after = as_arrays(agent.critic.unpack(changed["critic"]))  # the actor is judged by the critic just updated
    cloning = 0.1 if switch == "agent.bc_lambda=0.1" else 0.0
    expected = {
        "critic_loss": plain_critic_loss(arrays["critic"], arrays, data, y, lap),
        "actor_loss": plain_actor_loss(arrays["actor"], after, arrays, data, cloning),
        "target_mean": y.mean(),
    }
    if agent.config.use_sale:
        source = "average_encoder" if switch == "agent.enc_target=ema" else "encoder"
        expected["encoder_loss"] = plain_encoder_loss(arrays["encoder"], arrays[source], data)
    for k, v in expected.items():
        assert float(metrics[k]) == pytest.approx(v, rel=1e-5, abs=1e-6), k
    errors = plain_errors(arrays["critic"], arrays, data, y)
    assert ("priority" in metrics) == lap
    if lap:
        np.testing.assert_allclose(metrics["priority"], np.maximum(errors.max(0), 1) ** 0.4, rtol=1e-5)
    np.testing.assert_allclose(changed["seen_range"], [y.min(), y.max()], rtol=1e-5)


def test_gradients_are_those_of_the_restatements(case: Any) -> None:
    """Finite differences of the plain losses: targets hold still, and the actor's gradient passes through g."""
    agent, state, batch, noise, arrays, data = case
    y = agent.target_value(state, batch, noise)
    zs = agent.embed_state(state["fixed_encoder"], batch.observation[0])
    zsa = agent.embed_action(state["fixed_encoder"], zs, batch.action[0])
    plain_y = plain_target(arrays, data, noise)
    gradients = {
        "encoder": grad(agent.encoder_loss)(state["encoder"], state["encoder"], batch),
        "critic": grad(agent.critic_loss, has_aux=True)(state["critic"], batch, zsa, zs, y)[0],
        "actor": grad(agent.actor_loss)(state["actor"], state["critic"], state["fixed_encoder"], batch, zs),
    }
    losses = {
        "encoder": lambda p: plain_encoder_loss(p, arrays["encoder"], data),
        "critic": lambda p: plain_critic_loss(p, arrays, data, plain_y),
        "actor": lambda p: plain_actor_loss(p, arrays["critic"], arrays, data),
    }
    for name, gradient in gradients.items():
        group = getattr(agent, name)
        direction = torch.randn(group.size, generator=torch.Generator().manual_seed(7)) * gradient.abs().sqrt()
        direction = torch.sign(gradient) * direction.abs()  # uphill, so that the slope is not a small difference
        expected = slope(losses[name], arrays[name], as_arrays(group.unpack(direction)))
        assert float(gradient @ direction) == pytest.approx(expected, rel=1e-3), name


# --- what an update changes


def changes(engine: Any, progress: list[Progress]) -> set[str]:
    before = {k: v.clone() for k, v in engine.state.items()}
    update(engine, progress, 1)
    return {k for k, v in engine.state.items() if not torch.equal(v, before[k])}


def moved(*names: str) -> set[str]:
    return {k for n in names for k in (n, f"{n}/mean", f"{n}/square", f"{n}/steps")}


def test_each_update_changes_what_it_should() -> None:
    agent = make_agent("td7", "agent.target_every=5")
    engine, progress = make_engine(agent, [0])
    assert changes(engine, progress) == moved("encoder", "critic") | {"seen_range"}
    assert changes(engine, progress) >= moved("encoder", "critic", "actor")
    update(engine, progress, 2)
    trained = engine.state["encoder"].clone()
    copies = {"target_actor", "target_critic", "fixed_encoder", "clip_range"}
    assert changes(engine, progress) - {"seen_range"} == moved("encoder", "critic") | copies
    assert not torch.equal(engine.state["encoder"], trained)
    for copy, original in (("target_actor", "actor"), ("target_critic", "critic"), ("fixed_encoder", "encoder"),
                           ("clip_range", "seen_range")):  # fmt: skip
        assert torch.equal(engine.state[copy], engine.state[original])
    fixed = engine.state["fixed_encoder"].clone()
    assert not torch.equal(engine.state["fixed_encoder_target"], fixed)
    update(engine, progress, 5)
    assert torch.equal(engine.state["fixed_encoder_target"], fixed)  # one place behind


def test_value_range_is_that_of_all_targets() -> None:
    agent = make_agent("td7", "agent.target_every=3")
    engine, progress = make_engine(agent, [0])
    assert engine.state["seen_range"][0].tolist() == [1e8, -1e8]
    update(engine, progress, 1)  # targets are rewards while the clip is [0, 0]
    low, high = engine.state["seen_range"][0].tolist()
    rewards = engine.replay.rows[0, :, -2]
    assert rewards.min() <= low < high <= rewards.max()
    assert engine.state["clip_range"][0].tolist() == [0.0, 0.0]
    update(engine, progress, 6)
    wider = engine.state["seen_range"][0].tolist()
    assert wider[0] <= low and wider[1] >= high


def test_priorities_after_an_update() -> None:
    agent = make_agent("td7", "agent.target_every=4")
    engine, progress = make_engine(agent, [0])
    assert engine.replay.priority is not None
    values = engine.replay.priority.values[0]
    assert set(values.tolist()) == {0.0, 1.0}
    update(engine, progress, 3)
    assert float(values.max()) > 1.0 and float(values[values > 0].min()) == 1.0
    engine.replay.priority.highest.fill_(99.0)  # of an item long gone
    update(engine, progress, 1)
    assert float(engine.replay.priority.highest) == float(values.max()) < 99.0


@pytest.mark.parametrize("switch", SWITCHES)
def test_switches(switch: str) -> None:
    agent = make_agent("td7", switch, "agent.target_every=3")
    engine, progress = make_engine(agent, [0])
    update(engine, progress, 6)
    metrics = engine.metrics(0)
    assert all(np.isfinite(v) for v in metrics.values())
    state = {k: v[0] for k, v in engine.state.items()}
    observation = torch.randn(7, SPEC.observation_dim)
    latent = agent.latent(state, observation)
    if switch == "agent.use_sale=false":
        assert latent is None and agent.latent_width() == 0 and "encoder_loss" not in metrics
        assert float(state["encoder/steps"]) == 0
    else:
        assert latent is not None and latent.shape == (7, agent.latent_width())
    assert (engine.replay.priority is None) == (switch == "agent.use_lap=false")
    if switch == "agent.enc_target=ema":
        assert 0 < relative_difference(state["average_encoder"], state["encoder"])
    layers = agent.hidden(state, observation, torch.zeros(7, SPEC.action_dim))
    assert len(layers) == (8 if agent.config.use_sale else 4)
    assert all(layer.shape[-2:] == (7, 16) for layer in layers)


def test_without_value_clip_and_lap() -> None:
    agent = make_agent("td7", "agent.use_value_clip=false", "agent.use_lap=false")
    state, batch, noise = initial_state(agent), random_batch(agent), random_noise(agent, "update_all")
    assert float((agent.target_value(state, batch, noise) - batch.reward[0]).abs().max()) > 0  # though range is [0, 0]
    zs = agent.embed_state(state["encoder"], batch.observation[0])
    loss, (error, _) = agent.critic_loss(state["critic"], batch, zs, zs, batch.reward[0])
    assert float(loss) == pytest.approx(float(error.square().sum(0).mean()))


# --- acting and schedules


def test_greedy_actions_are_the_checkpoint_s() -> None:
    agent = make_agent("td7", "agent.target_every=4")
    engine, progress = make_engine(agent, [0])
    observation = torch.randn(9, SPEC.observation_dim)

    def act(**noise: torch.Tensor) -> torch.Tensor:
        state = {k: v[0] for k, v in engine.state.items()}
        return agent.act(state, {}, observation, noise, {})[0]

    quiet = torch.zeros(9, SPEC.action_dim)
    at_first = act()
    assert torch.equal(at_first, act(action=quiet))
    update(engine, progress, 6)
    assert torch.equal(act(), at_first)
    current = act(action=quiet)
    assert not torch.equal(current, at_first)
    engine.run("checkpoint_policy", [0], progress)
    assert torch.equal(act(), current)
    update(engine, progress, 6)  # the checkpoint is a copy
    assert torch.equal(act(), current)
    noisy = act(action=torch.ones(9, SPEC.action_dim))
    torch.testing.assert_close(noisy, torch.clamp(act(action=quiet) + 0.1, -1, 1))


def test_warm_up_ends_with_an_episode() -> None:
    agent = make_agent("td7", "agent.warmup_decisions=90", "agent.use_checkpoints=false")
    progress, random, due = Progress(), [], []
    for _ in range(160):
        random.append(agent.acts_randomly(progress))
        progress.decisions += 1
        progress.episode_decisions += 1
        due.append(agent.after_decision(progress))
        if progress.decisions % 40 == 0:
            progress.episodes += 1
            assert agent.after_episode(progress, {}) == (0, ())
            progress.episode_decisions = 0
    assert random == [True] * 120 + [False] * 40
    assert due == [0] * 120 + [1] * 40


def test_training_waits_for_the_first_episode_after_warm_up() -> None:
    agent = make_agent("td7", "agent.warmup_decisions=80")
    memory, due = agent.counters(), []
    for decisions in (40, 80, 120):
        progress = Progress(decisions=decisions, episode_decisions=40, episode_return=1.0)
        due.append(agent.after_episode(progress, memory))
        assert agent.after_decision(progress) == 0
    assert due == [(0, ()), (0, ()), (40, ("checkpoint_policy",))]


def test_stages() -> None:
    agent = make_agent("td7", preset="default")
    assert agent.stages(1) == ("update_critic",) and agent.stages(2) == ("update_all",)
    assert agent.stages(250) == ("update_all", "copy_to_targets")
    assert agent.stage("copy_to_targets").reset_priority and not agent.stage("copy_to_targets").batch


def test_configuration() -> None:
    assert make_agent("td7", preset="default").config.warmup_decisions == 25_000
    assert make_agent("td7", "agent.profile=protocol").config.warmup_decisions == 5_000
    for word in ("agent.target_every=0", "agent.enc_target=mean", "agent.lap_alpha=2", "agent.use_lap=1",
                 "agent.critic_lr=1e9", "agent.target_noise=1e9"):  # fmt: skip
        with pytest.raises(InputError, match=word.split("=")[0]):
            resolve([("test", parse_words(["agent=td7", word]))])


# --- packs, compilation, learning


def test_acting_in_a_pack() -> None:
    agent = make_agent("td7")
    engine, progress = make_engine(agent, [0, 1, 2], packed=True)
    observation = np.random.default_rng(0).normal(size=(3, 4, SPEC.observation_dim)).astype(np.float32)
    noise = [{"action": torch.randn(4, SPEC.action_dim)} for _ in range(3)]
    for numbers in (noise, [{}, {}, {}]):
        together, _ = engine.act([0, 1, 2], observation, {}, numbers, progress)
        for i in range(3):
            alone, _ = engine.act([i], observation[i : i + 1], {}, numbers[i : i + 1], progress)
            np.testing.assert_allclose(together[i], alone[0], rtol=1e-5, atol=1e-6)


def test_losses_go_down() -> None:
    agent = make_agent("td7", "agent.target_every=50")
    engine, progress = make_engine(agent, [0])
    update(engine, progress, 30)
    first = engine.metrics(0)
    update(engine, progress, 300)
    engine.metrics(0)
    update(engine, progress, 30)
    last = engine.metrics(0)
    assert last["encoder_loss"] < 0.5 * first["encoder_loss"]
    assert last["actor_loss"] < first["actor_loss"]


def test_batch_is_one_transition() -> None:
    assert isinstance(random_batch(make_agent("td7")), Batch)
    assert make_agent("td7", preset="default").config.batch_size == 256 and make_agent("td7").slices.horizon == 1
