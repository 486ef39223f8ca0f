"""Every arm of every sweep, as a pack of two with tiny networks: three updates on real data, evaluation."""

import functools

import numpy as np
import pytest
import torch

import ablations
from ablations import sweep, sweep_file
from iqrl import config
from iqrl.agent import Batch, Progress
from iqrl.diagnostics import diagnose
from iqrl.environments.environment import make_environment
from iqrl.errors import InputError
from iqrl.training.engine import Engine
from iqrl.training.replay import Replay

SEEDS = (0, 1)
DECISIONS = 40  # of data for each seed
EVALUATED = 50


def arms():
    """One run of each different configuration that a sweep's arms have once their networks are tiny."""
    found = {}
    for name in ablations.names():
        content = sweep_file.read(sweep_file.find(name))
        usual = ablations.load(name, "lite").runs[0].config.task
        for scale in sweep_file.SCALES:
            base, _ = sweep_file.at_scale(content, scale)
            for arm in ablations.load(name, scale).arms:
                drawn = "@pixels" in usual  # the lite scale's pictures are the smaller ones
                task = usual if usual in arm.tasks or drawn else arm.tasks[0]
                rest = {"preset": "tiny", "task": task, "seeds": list(SEEDS), "agent": {"buffer_size": 1000}}
                runs = config.resolve([*sweep.arm_layers(arm, base), ("test", rest)])[0]
                settings = {k: v for k, v in runs[0].resolved()["agent"].items() if k != "profile"}
                key = runs[0].task, runs[0].agent.name, str(settings)
                found.setdefault(key, pytest.param(runs, id=f"{name}-{arm.name}-{scale}"))
    return list(found.values())


@functools.cache
def environment(task):
    return make_environment(task)


@functools.cache
def transitions(task, seed):
    """(observation, action, reward, terminated, truncated, next observation) of random decisions, as many a task."""
    world, random = environment(task), np.random.default_rng(seed)
    found = []
    for episode in range(world.spec.task_count):
        observation = world.reset((seed, 0, episode)).copy()
        for _ in range(DECISIONS):
            action = random.uniform(-1, 1, world.spec.action_dim).astype(np.float32)
            after, *rest = world.step(action)
            found.append((observation, action, *rest, after.copy()))
            observation = after.copy()
    return found


@pytest.mark.parametrize("runs", arms())
def test_an_arm_learns_and_acts(runs):
    task = runs[0].task
    try:
        spec = environment(task).spec
    except InputError as error:
        pytest.skip(str(error))  # no renderer on this machine, or a suite that is not installed
    agent = runs[0].agent(runs[0].settings, spec)
    replay = Replay(spec, len(SEEDS), agent.slices, 1000)
    for place, seed in enumerate(SEEDS):
        for step in transitions(task, seed):
            replay.add(place, *step)
    engine = Engine(agent, SEEDS, replay, packed=True)
    before = {k: v.clone() for k, v in engine.state.items()}
    progress = [Progress(decisions=DECISIONS) for _ in SEEDS]
    for _ in range(3):
        engine.update([0, 1], progress)
    assert all(torch.isfinite(v).all() for v in engine.state.values())
    changed = {
        k for k, v in engine.state.items() if (v != before[k]).reshape(len(SEEDS), -1).any(1).all()
    }  # of both seeds
    assert any("critic" in k for k in changed) or any("value" in k for k in changed), changed
    metrics = [engine.metrics(place) for place in (0, 1)]
    assert metrics[0].keys() == metrics[1].keys() and all(np.isfinite(list(m.values())).all() for m in metrics)

    for place, seed in enumerate(SEEDS):
        carry, total = engine.initial_carry(1, 1), 0.0
        observation = environment(task).reset((seed, 1, 0))
        for step in range(EVALUATED):
            noise = [engine.random.evaluation(place, DECISIONS, step, 1)]
            action, carry = engine.act([place], observation[None, None], carry, noise, progress)
            assert action.shape == (1, 1, spec.action_dim) and (np.abs(action) <= 1).all()
            observation, reward, _, _ = environment(task).step(action[0, 0])
            total += reward
        suite = task.startswith(("gym:", "mw-", "myo-"))  # whose rewards have no bounds, or others
        assert np.isfinite(total) if suite else 0 <= total <= spec.action_repeat * EVALUATED

    data = transitions(task, 0)
    observed, taken, reward, after = (torch.from_numpy(np.stack([step[i] for step in data])) for i in (0, 1, 2, 5))
    none = torch.zeros(1, len(data))
    batch = Batch(torch.stack([observed, after]), taken[None], reward[None].float(), none, none)
    row = diagnose(agent, {k: v[0] for k, v in engine.state.items()}, batch)
    assert 0 <= row["dormant_percent"] <= 100
    if agent.latent_width():
        assert row["width"] == agent.latent_width() and 0 < row["rank_0.001"] <= len(data)
