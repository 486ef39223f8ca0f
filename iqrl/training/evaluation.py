"""Evaluations during training: greedy episodes and latent diagnostics of every run at fixed env steps."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from iqrl.diagnostics import READ_SAMPLES, diagnose
from iqrl.environments.environment import EVALUATION
from iqrl.environments.environment_pool import EnvironmentPool
from iqrl.training.pack import Pack, Run, fit, unfit
from iqrl.training.random_numbers import DIAGNOSTICS, generator
from iqrl.training.sampling import gather, gather_apart, sample


class Evaluator:
    """Evaluates the runs of a pack when they are due.

    Args:
        stop: asked at every decision; an evaluation that stops is repeated by the next session.
        tick: called after every decision.
    """

    def __init__(self, pack: Pack, stop: Callable[[], bool], tick: Callable[[], None]) -> None:
        self.pack, self.stop, self.tick = pack, stop, tick
        setting = pack.runs[0].config.evaluate
        self.every = max(1, setting.every // pack.spec.action_repeat)  # decisions
        self.episodes = setting.episodes * pack.spec.task_count
        self.environments: EnvironmentPool | None = None

    def evaluate(self) -> bool:
        """Do every evaluation that is due. False if asked to stop before they are done."""
        due = [run for run in self.pack.living if self._due(run)]
        side_by_side = self.pack.engine.packed and due
        for runs in [due] if side_by_side else [[run] for run in due]:
            results = self._play(runs)
            if results is None:
                return False
            for run, returns, lengths, success, diagnostics in zip(
                runs, *results, self.diagnose_all(runs), strict=True
            ):
                if run.alive:
                    with run.isolated():
                        self._record(run, returns, lengths, success, diagnostics())
        return True

    def close(self) -> None:
        if self.environments is not None:
            self.environments.close()
            self.environments = None

    def _due(self, run: Run) -> bool:
        p = run.progress
        at_evaluation = p.decisions % self.every == 0 or p.decisions >= self.pack.budget
        return at_evaluation and p.evaluated < p.decisions

    def _play(self, runs: Sequence[Run]) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Returns and lengths (env steps) of the evaluation episodes of these runs: (n, episodes) each; their success.

        Success is (n, episodes, 2), as `Environment.success` gives it.

        None if asked to stop before they end: with a planner that may be minutes, longer than a job's grace, and since
        they are a function of the checkpoint the next session repeats them.
        """
        n, count, engine = len(runs), self.episodes, self.pack.engine
        places = [run.place for run in runs]
        pool = self._environments(n * count)
        keys = [(run.seed, EVALUATION, run.env_step, episode) for run in runs for episode in range(count)]
        spare = [None] * (pool.count - len(keys))
        observation = pool.reset([*keys, *spare])[: n * count]
        carry = engine.initial_carry(n, count)
        active = np.array([True] * len(keys) + [False] * len(spare))
        total = np.zeros(pool.count)
        length = np.zeros(pool.count, int)
        action = np.zeros((pool.count, self.pack.spec.action_dim), np.float32)
        self._fail_for_environments(runs, pool, active)
        step = 0
        while active.any():
            if self.stop():
                return None
            noise = [engine.random.evaluation(run.place, run.progress.decisions, step, count) for run in runs]
            observed = observation.reshape(n, count, *self.pack.spec.observation_shape)
            chosen, carry = engine.act(places, observed, carry, noise, self.pack.progress)
            action[: len(keys)] = chosen.reshape(len(keys), -1)
            for i in np.flatnonzero(active & ~fit(action)).tolist():
                active[i] = False
                if runs[i // count].alive:
                    runs[i // count].fail(f"{unfit(action[i])}, while evaluating")
            after, reward, terminated, truncated = pool.step(action, active)
            total += np.where(active, reward, 0.0)
            length += active
            observation = after[: len(keys)]
            active &= ~(terminated | truncated)
            step += 1
            self._fail_for_environments(runs, pool, active)
            self.tick()
        shape = (n, count)
        lengths = length[: len(keys)].reshape(shape) * self.pack.spec.action_repeat
        success = pool.success[: len(keys)].reshape(*shape, 2)
        return total[: len(keys)].reshape(shape), lengths, success

    def _fail_for_environments(self, runs: Sequence[Run], pool: EnvironmentPool, active: np.ndarray) -> None:
        """Runs of whose episodes an environment failed end, for the first reason; those episodes are active no more."""
        for i in [i for i in pool.errors if active[i]]:
            if (run := runs[i // self.episodes]).alive:
                run.fail(f"environment, while evaluating: {pool.errors[i]}")
            active[i] = False

    def _environments(self, count: int) -> EnvironmentPool:
        """At least `count` of them; made at the first evaluation and kept."""
        if self.environments is not None and self.environments.count < count:
            self.close()
        if self.environments is None:
            self.environments = self.pack.new_environments(count)
        return self.environments

    def _record(
        self, run: Run, returns: np.ndarray, lengths: np.ndarray, success: np.ndarray, diagnostics: dict[str, Any]
    ) -> None:
        """Write one evaluation."""
        step, succeeds = run.env_step, self.pack.spec.reports_success
        for episode, (episode_return, length) in enumerate(zip(returns, lengths, strict=True)):
            row: dict[str, Any] = {"env_step": step, "episode": episode, "episode_return": float(episode_return)}
            row["length"] = int(length)
            if task := self.pack.spec.task_name(episode):
                row["task"] = task
            if succeeds:
                row |= {"success": int(success[episode, 0]), "success_at_end": int(success[episode, 1])}
            run.directory.append("evaluations.csv", row)
        if diagnostics:
            run.directory.append("latents.csv", {"env_step": step, **diagnostics})
        seconds = self.pack.wall_seconds(run)
        timing = {"env_step": step, "wall_seconds": round(seconds, 3), "updates": run.progress.updates}
        run.directory.append("timing.csv", timing)
        run.progress.evaluated = run.progress.decisions
        rank = f"  rank {diagnostics['rank_0.01']}/{diagnostics['width']}" if "rank_0.01" in diagnostics else ""
        mean = returns.mean()
        rate = f"  success {success[:, 0].mean():4.0%}" if succeeds else ""
        self.pack.announce(f"{run.name}  step {step:>9,}  return {mean:7.1f}{rate}{rank}  {seconds / 60:.1f} min")

    def diagnose_all(self, runs: Sequence[Run]) -> list[Callable[[], dict[str, Any]]]:
        """For each run, what gives its `diagnose` or raises what that raised.

        Several are computed side by side: singular values keep a core each busy.
        """
        if len(runs) == 1:
            return [functools.partial(self.diagnose, runs[0])]
        self.pack.replay.tables()  # what waits is written here, by one thread
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(min(len(runs), self.pack.plan.threads)) as pool:
                return [pool.submit(self.diagnose, run).result for run in runs]
        finally:
            torch.set_num_threads(self.pack.plan.threads)

    def diagnose(self, run: Run) -> dict[str, Any]:
        """Latent diagnostics on transitions drawn from the replay; nothing while it is empty."""
        agent, replay, engine = self.pack.agent, self.pack.replay, self.pack.engine
        if not replay.available(run.place):
            return {}
        width = agent.latent_width()
        source = generator("cpu", run.seed, DIAGNOSTICS, run.progress.decisions)
        counts = (width, (READ_SAMPLES - 1) * width) if width else (1024,)
        uniform = torch.cat([torch.rand(count, generator=source, dtype=torch.float64) for count in counts])
        tables = {k: v[run.place] for k, v in replay.tables().items()}
        uniformly = dataclasses.replace(agent.slices, prioritised=False)
        drawn = sample(tables, uniformly, replay.ring, uniform.to(engine.device))
        slices = dataclasses.replace(agent.slices, horizon=1, cross_episodes=False)  # no more is looked at
        seen = gather_apart(replay, [run.place], drawn[None], slices)[0] if replay.apart else None
        batch = gather(tables, drawn, self.pack.spec, slices, seen)
        if self.pack.spec.tasks:  # they come task after task, and the rank is of the first Z
            order = torch.randperm(sum(counts), generator=source).to(engine.device)
            batch = batch.at(order)
        state = {k: v[run.place] for k, v in engine.state.items()}
        return diagnose(agent, state, batch)
