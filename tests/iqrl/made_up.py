"""A small made-up task and batches of it, for tests of networks, losses and engines."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iqrl.agent import Agent, Batch, Slices
from iqrl.environments.tasks import TaskSpec
from iqrl.training.replay import Replay

SPEC = TaskSpec("made-up", 5, 2, 2, 20, False, "easy")


def random_batch(horizon: int, size: int, seed: int = 0, ends: float = 0.15, spec: TaskSpec = SPEC) -> Batch:
    """Normal observations and rewards; each transition ends its episode with probability `ends`, by either kind."""
    g = torch.Generator().manual_seed(seed)
    ended = torch.rand(horizon, size, generator=g) < ends
    by_termination = torch.rand(horizon, size, generator=g) < 0.5
    return Batch(
        torch.randn(horizon + 1, size, spec.observation_dim, generator=g),
        torch.rand(horizon, size, spec.action_dim, generator=g) * 2 - 1,
        torch.randn(horizon, size, generator=g),
        (ended & by_termination).float(),
        (ended & ~by_termination).float(),
    )


def filled_replay(
    slices: Slices,
    seeds: list[int],
    decisions: int = 120,
    scale: dict[int, float] | None = None,
    spec: TaskSpec = SPEC,
    device: str = "cpu",
) -> Replay:
    """A replay whose content is a function of each seed alone; `scale` multiplies a seed's rewards and observations."""
    replay = Replay(spec, len(seeds), slices, 1000, device)
    for place, seed in enumerate(seeds):
        random = np.random.default_rng(seed)
        factor = (scale or {}).get(seed, 1.0)
        observation = factor * random.standard_normal(spec.observation_dim)
        for i in range(decisions):
            last = (i + 1) % spec.episode_decisions == 0
            following = factor * random.standard_normal(spec.observation_dim)
            action = random.uniform(-1, 1, spec.action_dim)
            terminated = last and random.random() < 0.5
            reward = factor * float(random.standard_normal())
            replay.add(place, observation, action, reward, terminated, last and not terminated, following)
            observation = factor * random.standard_normal(spec.observation_dim) if last else following
    return replay


def make(cls: type[Agent[Any]], spec: TaskSpec = SPEC, dtype: torch.dtype = torch.float32, **values: Any) -> Any:
    """An agent of the preset `tiny` with some values changed."""
    settings = {**cls.presets["tiny"], **cls.profiles.get(values.get("profile", ""), {}), **values}
    settings |= {k: v for k, v in cls.presets["tiny"].items() if k not in values}
    return cls(dataclasses.replace(cls.Config(), **settings), spec, dtype)


def first_state(agent: Agent[Any], seed: int = 0) -> dict[str, Tensor]:
    return agent.initialise(torch.Generator().manual_seed(seed))
