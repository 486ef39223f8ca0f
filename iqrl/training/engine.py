"""The packed training engine: keeps the state of a pack of seeds, and has them learn and act.

State lives in tensors with a leading axis of S seeds. A seed's *place* is its index along that axis, in the replay and
in the trainer's pack. Seeds at neighbouring places learn and act together, by an agent's functions lifted over them
(`iqrl.training.lifting`).

On a CPU a pack runs seed after seed: batching would win nothing there, and each seed's arithmetic is then
bitwise the same in any pack. Large planners plan for one environment after another there, too: their buffers then
fit the cache, and an evaluation needs no compilation of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iqrl.agent import Agent, Progress
from iqrl.training.compilation import Compiled, Watch
from iqrl.training.cuda_graphs import Recorded
from iqrl.training.lifting import Lifted, act_all, lift, sample_all, unlike
from iqrl.training.random_numbers import INITIALISATION, RandomNumbers, generator
from iqrl.training.replay import Replay
from iqrl.training.sampling import gather_apart

CACHE = 32 * 2**20  # bytes of a CPU's last-level cache, about


class Engine:
    """S seeds of one agent on one device.

    Args:
        agent: the algorithm.
        seeds: the seeds of the pack, S of them.
        replay: their replay, on the same device.
        compiled: compile the learning stages (falls back to eager with one warning).
        packed: lift over the whole pack (the default off the CPU) or run seed after seed.
        recorded: repeat stages and actions as CUDA graphs (the default where a CUDA device runs compiled stages).
    Attributes:
        watch: gets what is being compiled, and "" once it is.
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
        self.random = RandomNumbers(agent, self.seeds, self.device)
        states = [agent.initialise(generator("cpu", s, INITIALISATION)) for s in self.seeds]
        self.state = {k: torch.stack([s[k] for s in states]).to(self.device) for k in states[0]}
        self.stage_counts = [dict[str, int]() for _ in self.seeds]  # invocations of each stage, per seed
        self.metric_sums: dict[str, Tensor] = {}  # (S,) each
        self.metric_counts: list[dict[str, int]] = [{} for _ in self.seeds]
        self.watch: Watch = lambda what: None
        self._functions: dict[str, Lifted] = {}
        self._acting: Callable[..., Any] = act_all(agent)
        if compiled and agent.compile_act:
            self._acting = self._compile("act", self._acting)
        if self.recorded:
            self._acting = Recorded("act", self._acting, fixed=1)
        self._schedule: tuple[list[dict[str, float]], dict[str, Tensor]] = ([], {})

    # --- learning

    def update(self, group: Sequence[int], progress: Sequence[Progress]) -> None:
        """One gradient update of the seeds at places `group`, which have done equally many."""
        for stage in self.agent.stages(progress[group[0]].updates + 1):
            self.run(stage, group, progress)
        for place in group:
            progress[place].updates += 1

    def run(self, stage: str, group: Sequence[int], progress: Sequence[Progress]) -> None:
        """Run one learning stage of the seeds at places `group`.

        All that live are run by neighbours where one between them has failed. Other groups with gaps, of seeds that
        happen to stand at the same update, go one by one: each new group would be compiled and recorded for itself.
        """
        neighbours = [list(group[cut]) for cut in self._neighbours(group)]
        if len(neighbours) > 1 and list(group) != self.living:
            neighbours = [[place] for place in group]
        for places in neighbours:
            self._run_neighbours(stage, places, progress)

    def _neighbours(self, places: Sequence[int]) -> list[slice]:
        """Where to cut places of the pack so that each part is a slice of it; every one alone if it is not packed."""
        cuts = [i for i in range(1, len(places)) if not self.packed or places[i] != places[i - 1] + 1]
        return [slice(i, j) for i, j in itertools.pairwise([0, *cuts, len(places)])]

    def _run_neighbours(self, stage: str, places: list[int], progress: Sequence[Progress]) -> None:
        wants, rows = self.agent.stage(stage), slice(places[0], places[-1] + 1)
        (count,) = {self.stage_counts[place].get(stage, 0) for place in places}  # who learn together have done as much
        for place in places:
            self.stage_counts[place][stage] = count + 1
        noise = self.random.stage(stage, places, count)
        schedule = self.schedule([progress[place] for place in places])
        if wants.statistics:
            kept = [self.replay.statistics(place) for place in places]
            schedule |= {k: torch.stack([entry[k] for entry in kept]) for k in kept[0]}
        state = {k: v[rows] for k, v in self.state.items()}
        tables = self.replay.tables()  # whether read or not: what waits is written before the stage
        tables = {k: v[rows] for k, v in tables.items()} if wants.batch else {}
        if wants.batch and self.replay.apart:
            sampled = sample_all(self.agent.slices, self.replay.ring, tables, noise["slices"])
            noise |= {"sampled": sampled, "observation": gather_apart(self.replay, places, sampled, self.agent.slices)}
        for part in self.agent.parts(stage):
            wanted = {*self.agent.stage(part).noise, "sampled" if "sampled" in noise else "slices", "observation"}
            given = {k: v for k, v in noise.items() if k in wanted}
            with torch.no_grad():
                metrics, noise["sampled"] = self._function(part)(state, tables, given, schedule)
            self._keep(metrics, noise["sampled"], places, rows)  # the next part may write over them
        if self.replay.priority is not None and wants.reset_priority:
            self.replay.reset_highest(rows)

    def _keep(self, metrics: dict[str, Tensor], sampled: Tensor, places: list[int], rows: slice) -> None:
        """Add up metrics (n,), and give the starts `sampled` (n, B) their new priorities."""
        priority = metrics.get("priority")
        if self.replay.priority is not None and priority is not None:
            self.replay.update_priorities(rows, sampled, priority)
        names = [k for k in metrics if k != "priority"]  # in order: it is that of the columns of training.csv
        if names:
            sums = [self._metric_sum(k, metrics[k].dtype)[rows] for k in names]
            torch._foreach_add_(sums, [metrics[k] for k in names])  # one launch for all of them
        for k in names:
            for place in places:
                self.metric_counts[place][k] = self.metric_counts[place].get(k, 0) + 1

    def _metric_sum(self, name: str, dtype: torch.dtype) -> Tensor:
        if name not in self.metric_sums:
            self.metric_sums[name] = torch.zeros(len(self.seeds), dtype=dtype, device=self.device)
        return self.metric_sums[name]

    def _function(self, part: str) -> Lifted:
        if part not in self._functions:
            function = lift(self.agent, part, self.replay)
            if self.compiled:
                function = self._compile(part, function)
            self._functions[part] = Recorded(part, function, fixed=2) if self.recorded else function
        return self._functions[part]

    def _compile(self, name: str, function: Callable[..., Any]) -> Compiled:
        agent = self.agent
        identity = type(agent).__qualname__, agent.config, agent.dtype
        return Compiled(name, function, self.device.type, identity, lambda what: self.watch(what))

    def schedule(self, progress: Sequence[Progress]) -> dict[str, Tensor]:
        """The agent's schedule for each seed given, (n,) each."""
        values = [self.agent.schedule(p) for p in progress]
        if self._schedule[0] != values:  # it seldom moves, and a copy to the device costs more than to compare
            self._schedule = values, {k: torch.tensor([v[k] for v in values], device=self.device) for k in values[0]}
        return dict(self._schedule[1])

    def metrics(self, place: int) -> dict[str, float]:
        """Means of the metrics since the last call, of the seed at one place; starts anew."""
        counts, self.metric_counts[place] = self.metric_counts[place], {}
        if not counts:
            return {}
        sums = torch.stack([self.metric_sums[k][place] for k in counts]).tolist()
        for k in counts:
            self.metric_sums[k][place] = 0.0
        return {k: total / counts[k] for k, total in zip(counts, sums, strict=True)}

    # --- acting

    @torch.no_grad()
    def act(
        self,
        places: Sequence[int],
        observation: np.ndarray,
        carry: dict[str, Tensor],
        noise: Sequence[dict[str, Tensor]],
        progress: Sequence[Progress],
    ) -> tuple[np.ndarray, dict[str, Tensor]]:
        """Actions of the seeds at n places of the pack, each for its own N environments.

        Args:
            places: of the seeds.
            observation: (n, N, O).
            carry: what planners carry between decisions, (n, N, ...) each.
            noise: of each seed, (N, ...) each; empty to act greedily.
            progress: of every seed of the pack.

        Returns:
            (n, N, A) in [-1, 1], and the new carry.
        """
        places = list(places)
        parts = self._neighbours(places)
        if len(parts) > 1:
            acted = [
                self.act(places[p], observation[p], {k: v[p] for k, v in carry.items()}, noise[p], progress)
                for p in parts
            ]
            after = {k: torch.cat([c[k] for _, c in acted]) for k in carry}
            return np.concatenate([action for action, _ in acted]), after
        count = observation.shape[1]
        if not self.packed and count > 1 and count * self.agent.act_bytes > CACHE:
            parts = [slice(i, i + 1) for i in range(count)]
            acted = [
                self.act(
                    places, observation[:, p], {k: v[:, p] for k, v in carry.items()},
                    [{k: v[p] for k, v in n.items()} for n in noise], progress,
                )
                for p in parts
            ]  # fmt: skip
            after = {k: torch.cat([c[k] for _, c in acted], 1) for k in carry}
            return np.concatenate([action for action, _ in acted], 1), after
        observed = {"observation": torch.from_numpy(np.ascontiguousarray(observation)).to(self.device)}
        schedule = self.schedule([progress[place] for place in places])
        numbers = {k: torch.stack([n[k] for n in noise]) for k in noise[0]}
        state = {k: v[places[0] : places[-1] + 1] for k, v in self.state.items()}
        action, after = self._acting(state, carry, observed, numbers, schedule)
        if action.shape[1:] != (count, self.agent.spec.action_dim):
            raise TypeError(f"act: the actions {unlike(action[0], (count, self.agent.spec.action_dim))}")
        if after.keys() != carry.keys():
            raise TypeError(f"act: carries {sorted(after)}; expected {sorted(carry)}, as in `carry`")
        return action.cpu().numpy(), {k: v.clone() for k, v in after.items()}

    def explore(
        self, places: Sequence[int], observation: np.ndarray, carry: dict[str, Tensor], progress: Sequence[Progress]
    ) -> tuple[np.ndarray, dict[str, Tensor]]:
        """Training actions (n, A) for observations (n, O) of the seeds at n places; carry (n, 1, ...)."""
        noise = [self.random.decision(place, progress[place].decisions) for place in places]
        uniform = np.stack([n.pop("warmup").numpy() for n in noise]) * 2.0 - 1.0
        if self.agent.spec.tasks:
            of_task = self.agent.told(torch.from_numpy(observation))
            uniform = self.agent.own(torch.from_numpy(uniform), of_task).numpy()
        random = np.array([self.agent.acts_randomly(progress[place]) for place in places])
        if random.all():
            return uniform, carry
        action, carry = self.act(
            places, observation[:, None], carry, [{k: v[None] for k, v in n.items()} for n in noise], progress
        )
        return np.where(random[:, None], uniform, action[:, 0]), carry

    def initial_carry(self, seeds: int, environments: int) -> dict[str, Tensor]:
        """What planners carry at an episode's start, (seeds, environments, ...)."""
        return {
            k: v.to(self.device).expand(seeds, environments, *v.shape).clone() for k, v in self.agent.carry().items()
        }

    # --- saving

    def save(self, place: int) -> dict[str, Any]:
        """Everything of the seed at one place that later learning depends on, on the CPU."""
        saved: dict[str, Any] = {
            "layout": self.agent.layout(),
            "state": {k: v[place].cpu().clone() for k, v in self.state.items()},
            "stage_counts": dict(self.stage_counts[place]),
            "metric_sums": {k: self.metric_sums[k][place].cpu().clone() for k in self.metric_counts[place]},
            "metric_counts": dict(self.metric_counts[place]),
        }
        return saved

    def load(self, place: int, saved: Mapping[str, Any]) -> None:
        """Restore what `save` gave.

        Raises:
            ValueError: if it belongs to networks of other sizes, or to code that orders their parameters otherwise.
        """
        if saved.get("layout") != self.agent.layout():
            raise ValueError("checkpoint does not fit: other settings or another version of the code ordered it")
        for k, v in self.state.items():
            if k not in saved["state"] or saved["state"][k].shape != v[place].shape:
                raise ValueError(f"checkpoint entry {k!r} does not fit this configuration")
            v[place].copy_(saved["state"][k])
        self.stage_counts[place] = dict(saved["stage_counts"])
        for v in self.metric_sums.values():
            v[place] = 0.0
        for k, v in saved["metric_sums"].items():
            self._metric_sum(k, v.dtype)[place] = v
        self.metric_counts[place] = dict(saved["metric_counts"])
