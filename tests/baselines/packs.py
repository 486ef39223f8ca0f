"""Engines with made-up experience, for tests of agents without a simulator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from iqrl.agent import Agent, Batch, Progress
from iqrl.agents import agent_class
from iqrl.config import parse_words, resolve
from iqrl.environments.tasks import TaskSpec
from iqrl.training.engine import Engine
from iqrl.training.random_numbers import draw, generator
from iqrl.training.replay import Replay

SPEC = TaskSpec("made-up", 5, 2, 2, 40, False, "easy")
DISCRETE = TaskSpec("made-up discrete", 5, 3, 1, 40, True, "easy")
PIXELS = TaskSpec("made-up@pixels", 2 * 17 * 17, 2, 2, 40, False, "easy", frame_shape=(1, 17, 17), stack=2)


def make_agent(
    name: str, *words: str, spec: TaskSpec = SPEC, preset: str = "tiny", dtype: torch.dtype = torch.float32
) -> Agent[Any]:
    task = "cartpole-balance" + ("@pixels" if spec.frame_shape else "")
    runs, _, _ = resolve([("test", parse_words([f"agent={name}", f"task={task}", f"preset={preset}", *words]))])
    return agent_class(name)[0](runs[0].settings, spec, dtype)


def make_engine(
    agent: Agent[Any],
    seeds: Sequence[int],
    *,
    packed: bool = False,
    compiled: bool = False,
    ends: str = "time limit",
    frames: Literal["device", "memory"] = "device",
) -> tuple[Engine, list[Progress]]:
    """A pack whose seeds have each seen six episodes of random numbers, of their own."""
    replay = Replay(agent.spec, len(seeds), agent.slices, 1000, frames=frames)
    for place, seed in enumerate(seeds):
        source = np.random.default_rng(seed)
        for episode in range(6):
            observation = first_observation(agent.spec, source)
            length = agent.spec.episode_decisions - (episode if ends == "termination" else 0)
            for t in range(length):
                after = next_observation(agent.spec, source, observation)
                action = source.uniform(-1, 1, agent.spec.action_dim)
                last = t == length - 1
                reward = float(observation.flat[0] / (255.0 if agent.spec.frame_shape else 1.0) + action[0])
                replay.add(place, observation, action, reward, last and ends == "termination",
                           last and ends != "termination", after)  # fmt: skip
                observation = after
    return Engine(agent, seeds, replay, packed=packed, compiled=compiled), [Progress() for _ in seeds]


def first_observation(spec: TaskSpec, source: np.random.Generator) -> np.ndarray:
    """Normal numbers, or the same picture in every place."""
    if spec.frame_shape:
        return np.tile(source.integers(0, 256, spec.frame_shape, np.uint8), (spec.stack, 1, 1))
    return source.normal(size=spec.observation_dim)


def next_observation(spec: TaskSpec, source: np.random.Generator, observation: np.ndarray) -> np.ndarray:
    if spec.frame_shape:
        return np.concatenate([observation[spec.frame_shape[0] :], source.integers(0, 256, spec.frame_shape, np.uint8)])
    return 0.9 * observation + 0.3 * source.normal(size=spec.observation_dim)


def update(engine: Engine, progress: list[Progress], count: int) -> None:
    for _ in range(count):
        engine.update(range(len(progress)), progress)


def initial_state(agent: Agent[Any], seed: int = 0) -> dict[str, torch.Tensor]:
    return agent.initialise(generator("cpu", seed, 0))


def random_noise(agent: Agent[Any], stage: str, seed: int = 0) -> dict[str, torch.Tensor]:
    return {k: draw(n, 1, generator("cpu", seed, 1))[0] for k, n in agent.stage(stage).noise.items()}


def random_batch(agent: Agent[Any], seed: int = 0, terminations: float = 0.2) -> Batch:
    """Slices of random numbers; a transition ends its episode with the probability given, and may do so anywhere."""
    source = np.random.default_rng(seed)
    h, b, spec = agent.slices.horizon, agent.slices.batch_size, agent.spec
    observation = source.normal(size=(h + 1, b, *spec.observation_shape))
    if spec.frame_shape:
        observation = np.clip(128 + 64 * observation, 0, 255).astype(np.uint8)
    arrays = (
        observation, source.uniform(-1, 1, (h, b, spec.action_dim)),
        2.0 * source.normal(size=(h, b)), source.random((h, b)) < terminations, np.zeros((h, b)),
    )  # fmt: skip
    return Batch(*(torch.tensor(a, dtype=None if a.dtype == np.uint8 else torch.float32) for a in arrays))


def as_arrays(parameters: Any) -> Any:
    """Unpacked parameters in float64 NumPy."""
    if isinstance(parameters, dict):
        return {k: as_arrays(v) for k, v in parameters.items()}
    return parameters.detach().numpy().astype(np.float64)


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / torch.clamp(b.norm(), min=1e-12))


def slope(loss: Any, parameters: Any, direction: Any, step: float = 1e-5) -> float:
    """Directional derivative of a function of nested NumPy parameters, by central differences."""

    def moved(by: float) -> Any:
        def move(p: Any, d: Any) -> Any:
            return {k: move(p[k], d[k]) for k in p} if isinstance(p, dict) else p + by * d

        return move(parameters, direction)

    return float(loss(moved(step)) - loss(moved(-step))) / (2 * step)
