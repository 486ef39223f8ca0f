"""Random numbers of a pack: each a function of (seed, stream, counter), and of nothing else.

They are drawn in chunks of many invocations at once, a chunk for each seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from iqrl.agent import Agent, Noise

# Streams: the second entry of a key.
INITIALISATION, EXPLORATION, EVALUATION_NOISE, DIAGNOSTICS, STAGES = 0, 1, 2, 3, 100
CHUNK_NUMBERS = 1_000_000  # random numbers drawn at once, at most


def generator(device: torch.device | str, *key: int) -> torch.Generator:
    """A generator whose numbers depend on the key alone."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator(device).manual_seed(seed)


def draw(noise: Noise, count: int, source: torch.Generator) -> Tensor:
    """(count, *shape) random numbers."""
    shape = (count, *noise.shape)
    if noise.kind == "normal":
        return torch.randn(shape, generator=source, device=source.device)
    if noise.kind == "bits":
        return torch.randint(-(2**31), 2**31, shape, generator=source, device=source.device, dtype=torch.int32)
    dtype = torch.float64 if noise.kind == "uniform64" else torch.float32
    return torch.rand(shape, generator=source, device=source.device, dtype=dtype)


class RandomNumbers:
    """What an agent's stages and decisions ask for, for the seeds of a pack.

    Args:
        agent: asks, by `stage` and `act_noise`.
        seeds: of the pack, by place.
        device: where the numbers are drawn.
    """

    def __init__(self, agent: Agent, seeds: Sequence[int], device: torch.device) -> None:
        self.agent, self.seeds, self.device = agent, seeds, device
        self._stages: dict[tuple[str, tuple[int, ...]], tuple[int, dict[str, Tensor]]] = {}  # chunks, by number
        self._decisions: dict[int, tuple[int, dict[str, Tensor]]] = {}

    def stage(self, name: str, places: Sequence[int], count: int) -> dict[str, Tensor]:
        """Numbers (n, ...) of invocation `count` of a stage, for the seeds at n places."""
        wants = self.agent.stage(name)
        noise = dict(wants.noise)
        if wants.batch:
            noise["slices"] = Noise((self.agent.slices.batch_size,), "uniform64")
        total = sum(math.prod(n.shape) for n in noise.values())
        length = max(1, min(64, CHUNK_NUMBERS // max(total, 1)))
        chunk, offset = divmod(count, length)
        key = name, tuple(places)
        if self._stages.get(key, (-1, {}))[0] != chunk:
            stream = int.from_bytes(name.encode(), "little")
            sources = [generator(self.device, self.seeds[place], STAGES, stream, chunk) for place in places]
            drawn = {k: torch.stack([draw(n, length, source) for source in sources], 1) for k, n in noise.items()}
            self._stages[key] = (chunk, drawn)
        return {k: v[offset] for k, v in self._stages[key][1].items()}

    def decision(self, place: int, decision: int) -> dict[str, Tensor]:
        """Numbers of one decision in training, `warmup` among them: uniform on [0, 1) and on the CPU."""
        shapes = {**self.agent.act_noise(True), "warmup": Noise((self.agent.spec.action_dim,), "uniform")}
        length = max(1, min(512, CHUNK_NUMBERS // sum(math.prod(n.shape) for n in shapes.values())))
        chunk, offset = divmod(decision, length)
        if self._decisions.get(place, (-1, {}))[0] != chunk:
            source = generator(self.device, self.seeds[place], EXPLORATION, chunk)
            drawn = {k: draw(n, length, source) for k, n in shapes.items()}
            self._decisions[place] = (chunk, {**drawn, "warmup": drawn["warmup"].cpu()})
        return {k: v[offset] for k, v in self._decisions[place][1].items()}

    def evaluation(self, place: int, decisions: int, step: int, count: int) -> dict[str, Tensor]:
        """Numbers (count, ...) for decision `step` of the evaluation after so many training decisions."""
        shapes = self.agent.act_noise(False)
        if not shapes:
            return {}
        source = generator(self.device, self.seeds[place], EVALUATION_NOISE, decisions, step)
        return {k: draw(n, count, source) for k, n in shapes.items()}
