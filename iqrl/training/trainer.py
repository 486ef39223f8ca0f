"""Trains a pack of runs: environments, replay, engine, evaluations and files, one decision at a time.

Every step is a function of saved state, so a pack that is killed at any instant and started again from its
checkpoints writes the same files. Clocks decide when to save and what to tell, never what happens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iqrl.agent import Progress
from iqrl.config import RunConfig
from iqrl.diagnostics import diagnose
from iqrl.environments import tasks
from iqrl.environments.environment_pool import EnvironmentPool, WorkerError
from iqrl.errors import InputError, what_failed
from iqrl.runs.directory import LeaseLost, ReplayLog, RunDirectory, warn
from iqrl.training.engine import DIAGNOSTICS, Engine, generator
from iqrl.training.execution import Plan
from iqrl.training.packing import together
from iqrl.training.replay import Replay, gather, sample_uniform
from iqrl.training.transfer import inherited

TRAINING, EVALUATION = 0, 1  # second entry of an episode's key
REPORT_SECONDS = 2.0
TELL_SECONDS = 60.0


@dataclass
class Lane:
    """One run of the pack."""

    config: RunConfig
    directory: RunDirectory
    progress: Progress
    memory: dict[str, float]
    alive: bool = True  # not failed, not lost
    observation: np.ndarray | None = None  # (O,), of the running episode
    last_return: float | None = None
    reported: int = 0  # training episodes written to training.csv
    wall_seconds: float = 0.0  # in earlier sessions


class Trainer:
    """Trains runs that differ in nothing but their seed.

    Args:
        configs: the runs.
        directories: theirs, claimed by this process.
        plan: device, precision, compilation, threads and workers.
        stop: asked at every decision and update; when it says True, checkpoint and return.
        announce: told a line at evaluations and notable events.
        watched: told a line a minute, of how far things are.
    """

    def __init__(
        self,
        configs: Sequence[RunConfig],
        directories: Sequence[RunDirectory],
        plan: Plan,
        *,
        stop: Callable[[], bool] = lambda: False,
        announce: Callable[[str], None] = lambda line: None,
        watched: Callable[[str], None] = lambda line: None,
    ) -> None:
        first = configs[0]
        self.plan, self.stop, self.announce, self.watched = plan, stop, announce, watched
        self.spec = tasks.spec(first.task)
        self.budget = -(-first.train.env_steps // self.spec.action_repeat)  # decisions
        self.every = max(1, first.evaluate.every // self.spec.action_repeat)
        self.episodes = first.evaluate.episodes
        self.agent = first.agent(first.settings, self.spec, plan.dtype)
        seeds = [c.seed for c in configs]
        # No replay is larger than the budget: a short run does not reserve a million transitions.
        capacity = min(first.settings.buffer_size, self.budget + self.spec.episode_decisions)
        self.replay = Replay(self.spec, len(seeds), self.agent.slices, capacity, plan.device)
        self.engine = Engine(self.agent, seeds, self.replay, device=plan.device, compiled=plan.compiled)
        self.lanes = [Lane(c, d, Progress(), self.agent.remember()) for c, d in zip(configs, directories, strict=True)]
        self.carry = self.engine.initial_carry(len(seeds), 1)
        self.environments = EnvironmentPool(first.task, len(seeds), self.spec.action_repeat, plan.workers, plan.threads)
        self.evaluators: EnvironmentPool | None = None
        self.started = time.monotonic()
        self.saved_at = self.reported_at = self.told_at = self.started
        self.rate_marks: list[tuple[float, int, int]] = []  # time, decisions and updates of the first that lives
        self.rate_of: Progress | None = None

    # --- the loop

    def run(self) -> str:
        """Train to the end of the budget.

        Returns:
            "done" when every run has ended (each in its DONE or FAILED), or "interrupted".

        Raises:
            OSError: if a file cannot be written; what was saved before stands.
        """
        try:
            self._resume()
            outcome = self._loop()
            for lane in self._living():
                with self._isolated(lane):
                    lane.directory.end_session(outcome)
            return outcome
        finally:
            self.environments.close()
            if self.evaluators is not None:
                self.evaluators.close()
            for lane in self.lanes:
                lane.directory.release()

    def fail_all(self, reason: str, trace: str = "") -> None:
        """Mark every run that has not ended as failed."""
        for lane in self._living():
            self._fail(lane, reason, trace)

    def _loop(self) -> str:
        while self._living():
            if not self._learn():
                return self._interrupt()
            self._report_episodes()
            if not self._evaluate():
                return self._interrupt()
            self._finish()
            if not self._living():
                break
            if self.stop():
                return self._interrupt()
            self._decide()
            self._tick()
        return "done"

    def _living(self) -> list[Lane]:
        return [lane for lane in self.lanes if lane.alive]

    def _places(self, lanes: Sequence[Lane]) -> list[int]:
        return [i for i, lane in enumerate(self.lanes) if any(lane is other for other in lanes)]

    def _interrupt(self) -> str:
        self._save()
        return "interrupted"

    # --- learning

    def _learn(self) -> bool:
        """Do every update that is due. False if asked to stop before they are done."""
        progress = [lane.progress for lane in self.lanes]
        self.engine.living = self._places(self._living())
        for i in self.engine.living:
            if progress[i].pending and not self.replay.available(i):  # there is nothing to learn from yet
                progress[i].pending = 0
        while True:
            due = [i for i in self._places(self._living()) if progress[i].pending > 0]
            if not due:
                return True
            if self.stop():
                return False
            # Runs that stand at different updates (after a policy checkpoint, say) go on one group at a time.
            group = [i for i in due if progress[i].updates == progress[due[0]].updates]
            self.engine.update(group, progress)
            for i in group:
                progress[i].pending -= 1
            self._tick()

    # --- acting

    def _decide(self) -> None:
        """One decision of every living run."""
        self._begin_episodes()
        lanes = self._living()
        places = self._places(lanes)
        if not lanes:
            return
        progress = [lane.progress for lane in self.lanes]
        observation = np.stack([lane.observation for lane in lanes if lane.observation is not None])
        carry = {k: v[places] for k, v in self.carry.items()}
        action, carry = self.engine.explore(places, observation, carry, progress)
        for k, v in carry.items():
            self.carry[k][places] = v
        everyone = np.zeros((len(self.lanes), self.spec.action_dim), np.float32)
        everyone[places] = action
        active = np.zeros(len(self.lanes), bool)
        active[places] = True
        for i in np.flatnonzero(active & ~_fit(everyone)).tolist():
            lane, active[i] = self.lanes[i], False
            step = lane.progress.decisions * self.spec.action_repeat
            self._fail(lane, f"{_unfit(everyone[i])} at env step {step}")
        after, reward, terminated, truncated = self.environments.step(everyone, active)
        for i, lane in zip(places, lanes, strict=True):
            if not lane.alive:
                continue
            if i in self.environments.errors:
                self._fail(lane, f"environment: {self.environments.errors[i]}")
                continue
            with self._isolated(lane):
                self._record(i, lane, everyone[i], float(reward[i]), bool(terminated[i]), bool(truncated[i]), after[i])

    def _record(
        self,
        place: int,
        lane: Lane,
        action: np.ndarray,
        reward: float,
        terminated: bool,
        truncated: bool,
        after: np.ndarray,
    ) -> None:
        assert lane.observation is not None and lane.directory.replay is not None
        rows = self.replay.add(place, lane.observation, action, reward, terminated, truncated, after)
        lane.directory.replay.append(rows)
        p = lane.progress
        p.decisions += 1
        p.episode_decisions += 1
        p.episode_return += reward
        lane.observation = after.copy()
        due = self.agent.after_decision(p)
        stages: tuple[str, ...] = ()
        if terminated or truncated:
            p.episodes += 1
            more, stages = self.agent.after_episode(p, lane.memory)
            due += more
            lane.last_return = p.episode_return
            p.episode_decisions, p.episode_return = 0, 0.0
            lane.observation = None
        for stage in stages:
            self.engine.run(stage, [place], [other.progress for other in self.lanes])
        p.pending += due

    def _begin_episodes(self) -> None:
        keys: list[tuple[int, ...] | None] = [None] * len(self.lanes)
        for i, lane in enumerate(self.lanes):
            if lane.alive and lane.observation is None:
                keys[i] = (lane.config.seed, TRAINING, lane.progress.episodes)
        if not any(keys):
            return
        first = self.environments.reset(keys)
        fresh = self.engine.initial_carry(1, 1)
        for i, lane in enumerate(self.lanes):
            if keys[i] is not None:
                lane.observation = first[i].copy()
                for k, v in self.carry.items():
                    v[i] = fresh[k][0]
                if i in self.environments.errors:
                    self._fail(lane, f"environment: {self.environments.errors[i]}")

    # --- evaluating

    def _due(self, lane: Lane) -> bool:
        p = lane.progress
        at_mark = p.decisions % self.every == 0 or p.decisions >= self.budget
        return at_mark and p.evaluated < p.decisions

    def _evaluate(self) -> bool:
        """Do every evaluation that is due. False if asked to stop before they are done."""
        due = [lane for lane in self._living() if self._due(lane)]
        together = due if self.engine.packed else []
        for group in [together] if together else [[lane] for lane in due]:
            results = self._evaluation_episodes(self._places(group))
            if results is None:
                return False
            for lane, g, n, look in zip(group, *results, self._diagnoses(group), strict=True):
                if lane.alive:
                    with self._isolated(lane):
                        self._record_evaluation(lane, g, n, look)
        return True

    def _evaluation_episodes(self, places: list[int]) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns and lengths (env steps) of the evaluation episodes of the runs at `places`: (n, episodes) each.

        None if asked to stop before they end: with a planner that may be minutes, longer than a job's grace, and since
        they are a function of the checkpoint the next session repeats them.
        """
        n, count = len(places), self.episodes
        lanes = [self.lanes[i] for i in places]
        progress = [lane.progress for lane in self.lanes]
        pool = self._evaluation_pool(n * count)
        keys = [
            (lane.config.seed, EVALUATION, lane.progress.decisions * self.spec.action_repeat, episode)
            for lane in lanes
            for episode in range(count)
        ]
        spare = [None] * (pool.count - len(keys))
        observation = pool.reset([*keys, *spare])[: n * count]
        carry = self.engine.initial_carry(n, count)
        active = np.array([True] * len(keys) + [False] * len(spare))
        total = np.zeros(pool.count)
        length = np.zeros(pool.count, int)
        action = np.zeros((pool.count, self.spec.action_dim), np.float32)
        step = 0
        while active.any():
            if self.stop():
                return None
            noise = [self.engine.evaluation_noise(i, progress[i].decisions, step, count) for i in places]
            chosen, carry = self.engine.act(places, observation.reshape(n, count, -1), carry, noise, progress)
            action[: len(keys)] = chosen.reshape(len(keys), -1)
            for i in np.flatnonzero(active & ~_fit(action)).tolist():
                active[i] = False
                if lanes[i // count].alive:
                    self._fail(lanes[i // count], f"{_unfit(action[i])}, while evaluating")
            after, reward, terminated, truncated = pool.step(action, active)
            total += np.where(active, reward, 0.0)
            length += active
            observation = after[: len(keys)]
            active &= ~(terminated | truncated)
            step += 1
            for i in [i for i in pool.errors if active[i]]:
                if lanes[i // count].alive:  # the first reason is the one to tell
                    self._fail(lanes[i // count], f"environment, while evaluating: {pool.errors[i]}")
                active[i] = False
            self._tick()
        shape = (n, count)
        return total[: len(keys)].reshape(shape), length[: len(keys)].reshape(shape) * self.spec.action_repeat

    def _evaluation_pool(self, count: int) -> EnvironmentPool:
        if self.evaluators is not None and self.evaluators.count < count:
            self.evaluators.close()
            self.evaluators = None
        if self.evaluators is None:
            self.evaluators = EnvironmentPool(
                self.lanes[0].config.task, count, self.spec.action_repeat, self.plan.workers, self.plan.threads
            )
        return self.evaluators

    def _record_evaluation(
        self, lane: Lane, returns: np.ndarray, lengths: np.ndarray, look: Callable[[], dict[str, Any]]
    ) -> None:
        """Write one evaluation, and what `_diagnose` sees."""
        p, step = lane.progress, lane.progress.decisions * self.spec.action_repeat
        for episode, (g, n) in enumerate(zip(returns, lengths, strict=True)):
            row = {"env_step": step, "episode": episode, "episode_return": float(g), "length": int(n)}
            lane.directory.append("evaluations.csv", row)
        looked = look()
        if looked:
            lane.directory.append("latents.csv", {"env_step": step, **looked})
        seconds = lane.wall_seconds + time.monotonic() - self.started
        lane.directory.append("timing.csv", {"env_step": step, "wall_seconds": round(seconds, 3), "updates": p.updates})
        p.evaluated = p.decisions
        rank = f"  rank {looked['rank_0.01']}/{looked['width']}" if "rank_0.01" in looked else ""
        self.announce(
            f"{self._name(lane)}  step {step:>9,}  return {returns.mean():7.1f}{rank}  {seconds / 60:.1f} min"
        )

    def _diagnoses(self, lanes: Sequence[Lane]) -> list[Callable[[], dict[str, Any]]]:
        """`_diagnose` of each, or what it raised. Of a pack side by side: singular values keep a core each busy."""
        if len(lanes) == 1:
            return [functools.partial(self._diagnose, lanes[0])]
        self.replay.memory()  # what waits is written here, by one thread
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(min(len(lanes), self.plan.threads)) as pool:
                return [pool.submit(self._diagnose, lane).result for lane in lanes]
        finally:
            torch.set_num_threads(self.plan.threads)

    def _diagnose(self, lane: Lane) -> dict[str, Any]:
        """Latent diagnostics on slice starts drawn from the replay; nothing while it is empty."""
        place = self._places([lane])[0]
        if not self.replay.available(place):
            return {}
        count = self.agent.latent_width() or 1024
        source = generator("cpu", lane.config.seed, DIAGNOSTICS, lane.progress.decisions)
        uniform = torch.rand(count, generator=source, dtype=torch.float64).to(self.engine.device)
        memory = {k: v[place] for k, v in self.replay.memory().items()}
        places = sample_uniform(memory["window"], self.replay.ring, uniform)
        batch = gather(memory, places, self.spec, dataclasses.replace(self.agent.slices, cross_episodes=False))
        state = {k: v[place] for k, v in self.engine.state.items()}
        return diagnose(self.agent, state, batch.observation[0], batch.action[0])

    # --- files

    def _report_episodes(self) -> None:
        for i, lane in enumerate(self.lanes):
            if not lane.alive or lane.reported == lane.progress.episodes:
                continue
            with self._isolated(lane):
                p = lane.progress
                metrics = self.engine.metrics(i)
                row = {
                    "env_step": p.decisions * self.spec.action_repeat,
                    "episode": p.episodes - 1,
                    "updates": p.updates,
                    "episode_return": lane.last_return,
                }
                if taken := [name for name in metrics if name in row or set(name) & set(",\n")]:
                    raise ValueError(f"a metric is called {taken[0]!r}, which is no name for a column of its own")
                lane.directory.append("training.csv", {**row, **metrics})
                lane.reported = p.episodes
                bad = [k for k, v in metrics.items() if not np.isfinite(v)]
                if bad:
                    raise FloatingPointError(f"{bad[0]} is {metrics[bad[0]]} at env step {row['env_step']}")

    def _finish(self) -> None:
        for lane in self._living():
            p = lane.progress
            if p.decisions >= self.budget and p.evaluated == p.decisions and p.pending == 0:
                with self._isolated(lane):
                    self._save_lane(lane)
                    self._report(lane)
                    lane.directory.finish(p.decisions * self.spec.action_repeat)
                    lane.directory.end_session("done")
                    lane.alive = False

    def _tick(self) -> None:
        """What clocks decide: when to save, and when to tell how far things are."""
        now = time.monotonic()
        if now - self.saved_at >= self.plan.checkpoint_seconds:
            self._save()
        if now - self.reported_at >= REPORT_SECONDS:
            self.reported_at = now
            if self._living():
                first = self._living()[0].progress
                before = self.rate_marks if self.rate_of is first else []  # of a lane that has ended
                self.rate_marks, self.rate_of = [*before[-30:], (now, first.decisions, first.updates)], first
            for lane in self._living():
                with self._isolated(lane):
                    self._report(lane)
        if now - self.told_at >= TELL_SECONDS and self._living():
            self.told_at = now
            self._tell(self._living())

    def _rates(self) -> tuple[float, float]:
        """Env steps and updates a second, of late."""
        (t0, d0, u0), (t1, d1, u1) = (self.rate_marks or [(0.0, 0, 0)])[0], (self.rate_marks or [(0.0, 0, 0)])[-1]
        elapsed = max(t1 - t0, 1e-9)
        return (d1 - d0) * self.spec.action_repeat / elapsed, (u1 - u0) / elapsed

    def _tell(self, lanes: Sequence[Lane]) -> None:
        done, repeat = lanes[0].progress.decisions, self.spec.action_repeat
        speed, _ = self._rates()
        going = speed > 0 and done < self.budget  # the last updates take no steps
        pace = f"  {speed:,.0f} steps/s  {(self.budget - done) * repeat / speed / 60:,.0f} min left" if going else ""
        names = self._name(lanes[0]) + (f" and {len(lanes) - 1} more" if len(lanes) > 1 else "")
        self.watched(f"{names}  step {done * repeat:>9,} of {self.budget * repeat:,}{pace}")

    def _report(self, lane: Lane) -> None:
        p, repeat = lane.progress, self.spec.action_repeat
        steps_per_second, updates_per_second = self._rates()
        lane.directory.report(
            {
                "env_step": p.decisions * repeat,
                "env_steps": self.budget * repeat,
                "updates": p.updates,
                "pending": p.pending,
                "last_return": lane.last_return,
                "env_steps_per_second": steps_per_second,
                "updates_per_second": updates_per_second,
                "wall_seconds": lane.wall_seconds + time.monotonic() - self.started,
            }
        )

    def _save(self) -> None:
        for lane in self._living():
            with self._isolated(lane):
                self._save_lane(lane)
        self.saved_at = time.monotonic()

    def _save_lane(self, lane: Lane) -> None:
        place = self._places([lane])[0]
        p = lane.progress
        content = {
            "format": 1,
            "identity": lane.config.identity,
            "engine": self.engine.save(place),
            "progress": p.state(),
            "memory": dict(lane.memory),
            "replay_extra": self.replay.save(place),
            "carry": {k: v[place].cpu().clone() for k, v in self.carry.items()},
            "last_return": lane.last_return,
            "reported": lane.reported,
            "wall_seconds": lane.wall_seconds + time.monotonic() - self.started,
        }
        lane.directory.save((p.decisions, p.updates), content)

    # --- resuming

    def _resume(self) -> None:
        """Put every run where its newest usable checkpoint left it; runs that have one in common go on in step."""
        found: list[dict[tuple[int, int], dict[str, Any]]] = []
        for lane in self.lanes:
            usable = {}
            for key, content in lane.directory.usable(self.replay.width):
                if content["identity"] == lane.config.identity:
                    usable[key] = content
                else:
                    warn(f"{lane.directory.path}: a checkpoint is of another configuration; using one before")
            if not usable and lane.directory.trained():
                found_some = lane.directory.checkpoints()
                reason = "no checkpoint is usable" if found_some else "it has no checkpoint"
                warn(f"{lane.directory.path}: {reason}; starts over, with what was there set aside")
            found.append(usable)
        for group in together([set(usable) for usable in found], len(found)):
            newest = max(set.intersection(*(set(found[i]) for i in group)), default=None)
            for i in group:
                lane = self.lanes[i]
                try:
                    self._restore(i, lane, None if newest is None else found[i][newest])
                except LeaseLost as error:
                    lane.alive = False
                    warn(str(error))
                except (OSError, InputError):
                    raise
                except Exception as error:  # a checkpoint of other code, say
                    self._fail(lane, f"{type(error).__name__}: {error}", traceback.format_exc())
        here = self.plan.provenance()
        self._compare_sessions(here)
        for lane in self._living():
            of_file = {"agent_file": lane.config.source_hash} if lane.config.source else {}
            lane.directory.begin_session({**here, **of_file, "pack": len(self.lanes)})
        self._restore_episodes()

    def _compare_sessions(self, now: Mapping[str, Any]) -> None:
        """Warn of runs that go on otherwise than they began: their numbers are of both."""
        for key, name in (("precision", "precision"), ("commit", "code")):
            begun = [lane for lane in self._living() if lane.progress.decisions]
            before = {self._name(lane): str(lane.directory.last_session().get(key) or now[key]) for lane in begun}
            others = {run: value for run, value in before.items() if now[key] and value != now[key]}
            if others:
                first = next(iter(others)) + (f" and {len(others) - 1} more" if len(others) > 1 else "")
                warn(f"{first}: goes on with another {name}: {now[key]}, was {next(iter(others.values()))}")

    def _restore(self, place: int, lane: Lane, saved: dict[str, Any] | None) -> None:
        if saved is None:
            first = inherited(lane.config, lane.directory.path.parent)
            if lane.directory.trained():
                lane.directory.set_aside()
            lane.directory.open({}, [], self.replay.width)
            for k, v in first.items():
                self.engine.state[k][place].copy_(v)
            return
        self.engine.load(place, saved["engine"])  # first: of other code, it raises before anything is changed
        lane.directory.open(saved["rows"], saved["replay"], self.replay.width)
        rows = ReplayLog.read(lane.directory.path / "replay", saved["replay"], self.replay.width)
        self.replay.extend(place, rows)
        self.replay.load(place, saved["replay_extra"])
        lane.progress = Progress(**saved["progress"])
        lane.memory = dict(saved["memory"])
        for k, v in self.carry.items():
            v[place] = saved["carry"][k].to(v.device)
        lane.last_return, lane.reported = saved["last_return"], saved["reported"]
        lane.wall_seconds = saved["wall_seconds"]
        self.announce(f"{self._name(lane)}  resumed at step {lane.progress.decisions * self.spec.action_repeat:,}")

    def _restore_episodes(self) -> None:
        """Bring environments back into their episodes by taking the same actions again."""
        episodes = {
            i: self.replay.newest(i, lane.progress.episode_decisions)
            for i, lane in enumerate(self.lanes)
            if lane.alive and lane.progress.episode_decisions
        }
        if not episodes:
            return
        keys = [
            (lane.config.seed, TRAINING, lane.progress.episodes) if i in episodes else None
            for i, lane in enumerate(self.lanes)
        ]
        observation = self.environments.reset(keys)
        elsewhere, ended = set(), dict[int, int]()
        for step in range(max(len(taken) for _, taken in episodes.values())):
            chosen = np.zeros((len(self.lanes), self.spec.action_dim), np.float32)
            active = np.zeros(len(self.lanes), bool)
            for i, (seen, taken) in episodes.items():
                if step < len(taken) and i not in ended:
                    chosen[i], active[i] = taken[step], True
                    if (seen[step] != observation[i]).any():
                        elsewhere.add(i)
            after, _, terminated, truncated = self.environments.step(chosen, active)
            observation = np.where(active[:, None], after, observation)
            ended |= dict.fromkeys(np.flatnonzero(active & (terminated | truncated)).tolist(), step + 1)
        for i, (_, taken) in episodes.items():
            self.lanes[i].observation = observation[i].copy()
            # Another processor or simulator, or a task that is no function of its seed.
            if i in ended:
                self._fail(
                    self.lanes[i], f"its episode, played again, ended after {ended[i]} of {len(taken)} decisions"
                )
            elif i in elsewhere:
                path = self.lanes[i].directory.path
                said = "its episode, played again, was not the same to the last bit; it goes on from where that led"
                warn(f"{path}: {said}")

    # --- one run's trouble is its own

    @contextlib.contextmanager
    def _isolated(self, lane: Lane):  # type: ignore[no-untyped-def]
        """Errors of one run end that run. A disk that cannot be written ends the process: nothing is lost by that."""
        try:
            yield
        except LeaseLost as error:
            lane.alive = False
            warn(str(error))
        except (OSError, WorkerError):
            raise
        except Exception as error:
            self._fail(lane, f"{type(error).__name__}: {error}", traceback.format_exc())

    def _fail(self, lane: Lane, reason: str, trace: str = "") -> None:
        lane.alive = False
        self.announce(f"{self._name(lane)}  FAILED: {reason}")
        with contextlib.suppress(LeaseLost):
            lane.directory.fail(lane.progress.decisions * self.spec.action_repeat, reason, trace)
            lane.directory.end_session("failed")
        lane.directory.release()  # others of the pack may go on for days

    @staticmethod
    def _name(lane: Lane) -> str:
        return f"{lane.config.agent.name} {lane.config.task} s{lane.config.seed}"


def _fit(actions: np.ndarray) -> np.ndarray:
    """(n,): which of the actions (n, A) are within [-1, 1]; one that is not finite is not."""
    return np.abs(actions).max(1) <= 1.0 + 1e-6


def _unfit(action: np.ndarray) -> str:
    """What is wrong with an action (A,) that is not."""
    largest = float(np.abs(action).max())
    return f"an action is {largest:.4g}, outside [-1, 1]" if np.isfinite(largest) else "an action is not finite"


def disk_message(error: OSError, folder: Path) -> str:
    """One line for an error while writing."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{folder}: the disk is full; the runs go on from their last checkpoints when there is room"
    return f"{what_failed(error, folder)}; the runs go on from their last checkpoints"
