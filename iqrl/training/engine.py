"""The packed training engine: lifts an agent's single-seed functions over a pack and runs them.

State lives in tensors with a leading axis of S seeds. A learning stage of one seed runs as it is; of more
seeds, under `torch.func.vmap`, so that one kernel serves them all. Either way it is one function, which
may be compiled, and which is given everything it depends on: state, replay, random numbers, clock.

On a CPU a pack runs seed after seed: batching would win nothing there, and each seed's arithmetic is then
bitwise the same in any pack. Large planners plan for one environment after another there, too: their buffers then
fit the cache, and an evaluation needs no compilation of its own.
"""

from __future__ import annotations

import inspect
import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iqrl.agent import Agent, Noise, Progress
from iqrl.errors import one_line
from iqrl.training.cuda_graphs import Recorded
from iqrl.training.replay import Replay, gather, sample

# Streams of random numbers; each is a function of (seed, stream, counter) and of nothing else.
INITIALISATION, EXPLORATION, EVALUATION_NOISE, DIAGNOSTICS, STAGES = 0, 1, 2, 3, 100
CHUNK_NUMBERS = 1_000_000  # random numbers drawn at once, at most
CACHE = 32 * 2**20  # bytes of a CPU's last-level cache, about


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


class Engine:
    """S seeds of one agent on one device.

    Args:
        agent: the algorithm.
        seeds: the seeds of the pack, S of them.
        replay: their replay, on the same device.
        compiled: compile the learning stages (falls back to eager with one warning).
        packed: lift over the whole pack (the default off the CPU) or run seed after seed.
        recorded: repeat stages and actions as CUDA graphs (the default where a CUDA device runs compiled stages).
    """

    def __init__(
        self,
        agent: Agent,
        seeds: Sequence[int],
        replay: Replay,
        *,
        device: torch.device | str = "cpu",
        compiled: bool = False,
        packed: bool | None = None,
        recorded: bool | None = None,
    ) -> None:
        self.agent, self.seeds, self.replay = agent, list(seeds), replay
        self.device = torch.device(device)
        self.compiled = compiled
        self.recorded = compiled and self.device.type == "cuda" if recorded is None else recorded
        self.packed = self.device.type != "cpu" if packed is None else packed
        self.living = list(range(len(self.seeds)))  # places of the seeds that have not failed; the trainer says
        states = [agent.initialise(generator("cpu", s, INITIALISATION)) for s in self.seeds]
        self.state = {k: torch.stack([s[k] for s in states]).to(self.device) for k in states[0]}
        self.stage_counts = [dict[str, int]() for _ in self.seeds]  # invocations of each stage, per seed
        self.metric_sums: dict[str, Tensor] = {}  # (S,) each
        self.metric_counts: list[dict[str, int]] = [{} for _ in self.seeds]
        self._functions: dict[str, Lifted] = {}
        self._acting: Callable[..., Any] = act_all(agent)
        if compiled and agent.compile_act:
            self._acting = with_fallback("act", self._acting)
        if self.recorded:
            self._acting = Recorded("act", self._acting, fixed=1)
        self._chunks: dict[tuple[str, tuple[int, ...]], tuple[int, dict[str, Tensor]]] = {}
        self._exploration: dict[int, tuple[int, dict[str, Tensor]]] = {}
        self._clock: tuple[list[dict[str, float]], dict[str, Tensor]] = ([], {})

    # --- learning

    def update(self, group: Sequence[int], progress: Sequence[Progress]) -> None:
        """One gradient update of the seeds at places `group`, which have done equally many."""
        for stage in self.agent.stages(progress[group[0]].updates + 1):
            self.run(stage, group, progress)
        for s in group:
            progress[s].updates += 1

    def run(self, stage: str, group: Sequence[int], progress: Sequence[Progress]) -> None:
        """Run one learning stage of the seeds at places `group`.

        All that live are run by neighbours where one between them has failed. Other groups with gaps, of seeds that
        happen to stand at the same update, go one by one: each new lane would be compiled and recorded for itself.
        """
        lanes = [list(group[part]) for part in self._neighbours(group)]
        if len(lanes) > 1 and list(group) != self.living:
            lanes = [[s] for s in group]
        for lane in lanes:
            self._run_lane(stage, lane, progress)

    def _neighbours(self, places: Sequence[int]) -> list[slice]:
        """Where to cut places of the pack so that each part is a slice of it; every one alone if it is not packed."""
        cuts = [i for i in range(1, len(places)) if not self.packed or places[i] != places[i - 1] + 1]
        return [slice(i, j) for i, j in itertools.pairwise([0, *cuts, len(places)])]

    def _run_lane(self, stage: str, lane: list[int], progress: Sequence[Progress]) -> None:
        wants, rows = self.agent.stage(stage), slice(lane[0], lane[-1] + 1)
        noise = self._numbers(stage, lane)
        clock = self.clock([progress[s] for s in lane])
        if wants.statistics:
            kept = [self.replay.statistics(s) for s in lane]
            clock |= {k: torch.stack([entry[k] for entry in kept]) for k in kept[0]}
        state = {k: v[rows] for k, v in self.state.items()}
        replay = self.replay.memory()  # whether read or not: what waits is written before the stage
        memory = {k: v[rows] for k, v in replay.items()} if wants.batch else {}
        with torch.no_grad():
            metrics, places = self._function(stage)(state, memory, noise, clock)
        priority = metrics.get("priority")
        if self.replay.priority is not None:
            if priority is not None:
                self.replay.priority.update(rows, places, priority)
            if wants.reset_priority:
                self.replay.priority.reset_highest(rows)
        names = [k for k in metrics if k != "priority"]  # in order: it is that of the columns of training.csv
        if names:
            sums = [self._metric_sum(k, metrics[k].dtype)[rows] for k in names]
            torch._foreach_add_(sums, [metrics[k] for k in names])  # one launch for all of them
        for k in names:
            for s in lane:
                self.metric_counts[s][k] = self.metric_counts[s].get(k, 0) + 1

    def _metric_sum(self, name: str, dtype: torch.dtype) -> Tensor:
        if name not in self.metric_sums:
            self.metric_sums[name] = torch.zeros(len(self.seeds), dtype=dtype, device=self.device)
        return self.metric_sums[name]

    def _function(self, stage: str) -> Lifted:
        if stage not in self._functions:
            function = lift(self.agent, stage, self.replay)
            if self.compiled:
                function = with_fallback(stage, function)
            self._functions[stage] = Recorded(stage, function, fixed=2) if self.recorded else function
        return self._functions[stage]

    def _numbers(self, stage: str, lane: list[int]) -> dict[str, Tensor]:
        """The random numbers (n, ...) of the next invocation of a stage, from chunks drawn at once, one per seed."""
        wants = self.agent.stage(stage)
        noise = dict(wants.noise)
        if wants.batch:
            noise["slices"] = Noise((self.agent.slices.batch_size,), "uniform64")
        total = sum(math.prod(n.shape) for n in noise.values())
        length = max(1, min(64, CHUNK_NUMBERS // max(total, 1)))
        (count,) = {self.stage_counts[s].get(stage, 0) for s in lane}  # seeds that learn together have done as much
        for s in lane:
            self.stage_counts[s][stage] = count + 1
        chunk, offset = divmod(count, length)
        key = stage, tuple(lane)
        if self._chunks.get(key, (-1, {}))[0] != chunk:
            number = int.from_bytes(stage.encode(), "little")
            sources = [generator(self.device, self.seeds[s], STAGES, number, chunk) for s in lane]
            drawn = {k: torch.stack([draw(n, length, source) for source in sources], 1) for k, n in noise.items()}
            self._chunks[key] = (chunk, drawn)
        return {k: v[offset] for k, v in self._chunks[key][1].items()}

    def clock(self, progress: Sequence[Progress]) -> dict[str, Tensor]:
        """The agent's clock for each seed given, (n,) each."""
        values = [self.agent.clock(p) for p in progress]
        if self._clock[0] != values:  # it seldom moves, and a copy to the device costs more than to compare
            self._clock = values, {k: torch.tensor([v[k] for v in values], device=self.device) for k in values[0]}
        return dict(self._clock[1])

    def metrics(self, seed: int) -> dict[str, float]:
        """Means of the metrics since the last call, of the seed at place `seed`; starts anew."""
        counts, self.metric_counts[seed] = self.metric_counts[seed], {}
        if not counts:
            return {}
        sums = torch.stack([self.metric_sums[k][seed] for k in counts]).tolist()
        for k in counts:
            self.metric_sums[k][seed] = 0.0
        return {k: total / counts[k] for k, total in zip(counts, sums, strict=True)}

    # --- acting

    @torch.no_grad()
    def act(
        self,
        lane: Sequence[int],
        observation: np.ndarray,
        carry: dict[str, Tensor],
        noise: Sequence[dict[str, Tensor]],
        progress: Sequence[Progress],
    ) -> tuple[np.ndarray, dict[str, Tensor]]:
        """Actions of the seeds at places `lane`, each for its own N environments.

        Args:
            lane: n places in the pack.
            observation: (n, N, O).
            carry: planners' memory, (n, N, ...) each.
            noise: of each seed, (N, ...) each; empty to act greedily.
            progress: of every seed of the pack.

        Returns:
            (n, N, A) in [-1, 1], and the new carry.
        """
        lane = list(lane)
        parts = self._neighbours(lane)
        if len(parts) > 1:
            acted = [
                self.act(lane[p], observation[p], {k: v[p] for k, v in carry.items()}, noise[p], progress)
                for p in parts
            ]
            after = {k: torch.cat([c[k] for _, c in acted]) for k in carry}
            return np.concatenate([action for action, _ in acted]), after
        count = observation.shape[1]
        if not self.packed and count > 1 and count * self.agent.act_bytes > CACHE:
            parts = [slice(i, i + 1) for i in range(count)]
            acted = [
                self.act(
                    lane, observation[:, p], {k: v[:, p] for k, v in carry.items()},
                    [{k: v[p] for k, v in n.items()} for n in noise], progress,
                )
                for p in parts
            ]  # fmt: skip
            after = {k: torch.cat([c[k] for _, c in acted], 1) for k in carry}
            return np.concatenate([action for action, _ in acted], 1), after
        seen = {"observation": torch.from_numpy(np.ascontiguousarray(observation)).to(self.device)}
        clock = self.clock([progress[s] for s in lane])
        numbers = {k: torch.stack([n[k] for n in noise]) for k in noise[0]}
        state = {k: v[lane[0] : lane[-1] + 1] for k, v in self.state.items()}
        action, after = self._acting(state, carry, seen, numbers, clock)
        if action.shape[1:] != (count, self.agent.spec.action_dim):
            raise TypeError(f"act: the actions {_unlike(action[0], (count, self.agent.spec.action_dim))}")
        if after.keys() != carry.keys():
            raise TypeError(f"act: carries {sorted(after)}; expected {sorted(carry)}, as in `carry`")
        return action.cpu().numpy(), {k: v.clone() for k, v in after.items()}

    def explore(
        self, lane: Sequence[int], observation: np.ndarray, carry: dict[str, Tensor], progress: Sequence[Progress]
    ) -> tuple[np.ndarray, dict[str, Tensor]]:
        """Training actions (n, A) for observations (n, O) of the seeds at places `lane`; carry (n, 1, ...)."""
        noise = [self._decision_noise(s, progress[s].decisions) for s in lane]
        uniform = np.stack([n.pop("warmup").numpy() for n in noise]) * 2.0 - 1.0
        random = np.array([self.agent.acts_randomly(progress[s]) for s in lane])
        if random.all():
            return uniform, carry
        action, carry = self.act(
            lane, observation[:, None], carry, [{k: v[None] for k, v in n.items()} for n in noise], progress
        )
        return np.where(random[:, None], uniform, action[:, 0]), carry

    def initial_carry(self, seeds: int, environments: int) -> dict[str, Tensor]:
        """Planners' memory at an episode's start, (seeds, environments, ...)."""
        return {
            k: v.to(self.device).expand(seeds, environments, *v.shape).clone() for k, v in self.agent.carry().items()
        }

    def evaluation_noise(self, seed: int, decisions: int, step: int, count: int) -> dict[str, Tensor]:
        """(count, ...) random numbers for decision `step` of the evaluation after so many training decisions."""
        shapes = self.agent.act_noise(False)
        if not shapes:
            return {}
        source = generator(self.device, self.seeds[seed], EVALUATION_NOISE, decisions, step)
        return {k: draw(n, count, source) for k, n in shapes.items()}

    def _decision_noise(self, seed: int, decision: int) -> dict[str, Tensor]:
        shapes = {**self.agent.act_noise(True), "warmup": Noise((self.agent.spec.action_dim,), "uniform")}
        length = max(1, min(512, CHUNK_NUMBERS // sum(math.prod(n.shape) for n in shapes.values())))
        chunk, offset = divmod(decision, length)
        if self._exploration.get(seed, (-1, {}))[0] != chunk:
            source = generator(self.device, self.seeds[seed], EXPLORATION, chunk)
            drawn = {k: draw(n, length, source) for k, n in shapes.items()}
            self._exploration[seed] = (chunk, {**drawn, "warmup": drawn["warmup"].cpu()})
        return {k: v[offset] for k, v in self._exploration[seed][1].items()}

    # --- saving

    def save(self, seed: int) -> dict[str, Any]:
        """Everything of one seed that later learning depends on, on the CPU."""
        saved: dict[str, Any] = {
            "layout": self.agent.layout(),
            "state": {k: v[seed].cpu().clone() for k, v in self.state.items()},
            "stage_counts": dict(self.stage_counts[seed]),
            "metric_sums": {k: self.metric_sums[k][seed].cpu().clone() for k in self.metric_counts[seed]},
            "metric_counts": dict(self.metric_counts[seed]),
        }
        return saved

    def load(self, seed: int, saved: Mapping[str, Any]) -> None:
        """Restore what `save` gave.

        Raises:
            ValueError: if it belongs to networks of other sizes, or to code that orders their parameters otherwise.
        """
        if saved.get("layout") != self.agent.layout():
            raise ValueError("checkpoint does not fit: other settings or another version of the code ordered it")
        for k, v in self.state.items():
            if k not in saved["state"] or saved["state"][k].shape != v[seed].shape:
                raise ValueError(f"checkpoint entry {k!r} does not fit this configuration")
            v[seed].copy_(saved["state"][k])
        self.stage_counts[seed] = dict(saved["stage_counts"])
        for v in self.metric_sums.values():
            v[seed] = 0.0
        for k, v in saved["metric_sums"].items():
            self._metric_sum(k, v.dtype)[seed] = v
        self.metric_counts[seed] = dict(saved["metric_counts"])


Lifted = Callable[
    [dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]], tuple[dict[str, Tensor], Tensor]
]


def act_all(agent: Agent) -> Callable[..., Any]:
    """`Agent.act` of n seeds: every argument and result has a leading axis of n; n = 1 runs without it."""

    def acting(
        state: dict[str, Tensor],
        carry: dict[str, Tensor],
        seen: dict[str, Tensor],
        noise: dict[str, Tensor],
        clock: dict[str, Tensor],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        observation = seen["observation"]
        if len(observation) > 1:
            action, after = torch.func.vmap(agent.act)(state, carry, observation, noise, clock)
            return action, dict(after)
        first = [{k: v[0] for k, v in group.items()} for group in (state, carry, noise, clock)]
        action, after = agent.act(first[0], first[1], observation[0], first[2], first[3])
        return action[None], {k: v[None] for k, v in after.items()}

    return acting


def lift(agent: Agent, stage: str, replay: Replay) -> Lifted:
    """A learning stage as a function of n seeds: updates their state in place, gives metrics and places sampled.

    Every argument and result has a leading axis of n; n = 1 runs without it, so that products of matrices
    stay products of matrices.
    """
    method, wants, slices, spec, ring = getattr(agent, stage), agent.stage(stage), agent.slices, agent.spec, replay.ring
    device = replay.rows.device

    def one(
        state: dict[str, Tensor], memory: dict[str, Tensor], noise: dict[str, Tensor], clock: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        if not wants.batch:
            changed, metrics = _told(stage, method(state, None, noise, clock), state, 0)
            nowhere = torch.zeros((), dtype=torch.int64, device=device)
            return _unaliased(changed, state), metrics, nowhere
        places = sample(memory, slices, ring, noise["slices"])
        batch = gather(memory, places, spec, slices)
        changed, metrics = _told(stage, method(state, batch, noise, clock), state, slices.batch_size)
        return _unaliased(changed, state), metrics, places

    def lifted(
        state: dict[str, Tensor], memory: dict[str, Tensor], noise: dict[str, Tensor], clock: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], Tensor]:
        if next(iter(state.values())).shape[0] == 1:
            first = [{k: v[0] for k, v in group.items()} for group in (state, memory, noise, clock)]
            changed, metrics, places = one(*first)
            changed, metrics = ({k: v[None] for k, v in group.items()} for group in (changed, metrics))
            places = places[None]
        else:
            changed, metrics, places = torch.func.vmap(one)(state, memory, noise, clock)
        for k, v in changed.items():
            state[k].copy_(v)
        return metrics, places

    return lifted


def _told(
    stage: str, result: Any, state: Mapping[str, Tensor], batch_size: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What a stage returned for one seed, if it is what `Agent.stages` says; a smaller tensor would be broadcast.

    Raises:
        TypeError: naming the stage and what is wrong.
    """
    if not (isinstance(result, tuple) and len(result) == 2 and all(isinstance(part, dict) for part in result)):
        raise TypeError(f"stage {stage!r}: expected to return (changed state, metrics), two dicts")
    changed, metrics = result
    for name, value in changed.items():
        if name not in state:
            raise TypeError(f"stage {stage!r}: changes {name!r}; expected one of {', '.join(state)}")
        if not isinstance(value, Tensor) or value.shape != state[name].shape:
            raise TypeError(f"stage {stage!r}: the state's {name!r} {_unlike(value, state[name].shape)}")
    for name, value in metrics.items():
        shape = torch.Size((batch_size,) if name == "priority" else ())
        if not isinstance(value, Tensor) or value.shape != shape:
            raise TypeError(f"stage {stage!r}: the metric {name!r} {_unlike(value, shape)}")
    return changed, metrics


def _unlike(value: Any, shape: Sequence[int]) -> str:
    found = f"has shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"is a {type(value).__name__}"
    return f"{found}; expected a tensor of shape {tuple(shape)}"


def _unaliased(changed: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of entries that are handed over as they are ("target = online"): a later write would change them.

    By `maximum`, not `clone`: torch 2.13's compiler drops a clone of an input and then reads the input after it
    was written to.
    """
    return {k: torch.maximum(v, v) if any(v is old for old in state.values()) else v for k, v in changed.items()}


def with_fallback(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function compiled; if it cannot be, tried twice, the function itself, with one warning that says why."""
    # Of one function's code torch keeps 8 compilations in all, unless told to count each `torch.compile` by itself;
    # here stages share their code, and each is compiled once for every number of seeds that run together.
    counting: dict[str, Any] = {"isolate_recompiles": True, "recompile_limit": 64}
    known = inspect.signature(torch.compile).parameters  # since torch 2.13 or so
    if "recompile_limit" not in known:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    compiled = torch.compile(
        function, fullgraph=True, dynamic=False, **{k: v for k, v in counting.items() if k in known}
    )
    eager: set[Any] = set()  # shapes for which it could not be

    def call(*arguments: Any) -> Any:
        if not eager or shapes(arguments) not in eager:
            for again in (True, False):  # a C++ compiler dies of Ctrl-C and of Slurm's signal: eager is not bitwise
                try:
                    return compiled(*arguments)
                except Exception as error:  # whatever the compiler or the machine's tool chain raises
                    if not again:
                        print(f"warning: {stage} runs eager, compiling it failed: {one_line(error)}", file=sys.stderr)
                        eager.add(shapes(arguments))
        return function(*arguments)

    def shapes(arguments: Sequence[Mapping[str, Tensor]]) -> tuple[Any, ...]:
        return tuple((k, v.shape) for group in arguments for k, v in group.items())

    return call
