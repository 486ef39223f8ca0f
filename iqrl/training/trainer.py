"""Trains a pack of runs: environments, replay, engine, evaluations and files, one decision at a time.

Every step is a function of saved state, so a pack that is killed at any instant and started again from its
checkpoints writes the same files. Clocks decide when to save and what to report, never what happens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from iqrl.config import RunConfig
from iqrl.environments.environment import TRAINING
from iqrl.runs.directory import RunDirectory
from iqrl.training.evaluation import Evaluator
from iqrl.training.execution import Plan
from iqrl.training.pack import Pack, Run, fit, unfit
from iqrl.training.reporting import Reporter
from iqrl.training.resume import resume, save


class Trainer:
    """Trains runs that differ in nothing but their seed.

    Args:
        configs: the runs.
        directories: theirs, claimed by this process.
        plan: device, precision, compilation, threads and workers.
        stop: asked at every decision and update; when it says True, checkpoint and return.
        announce: gets a line at evaluations and notable events.
        watched: gets a line a minute, of how far things are.
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
        self.stop = stop
        self.pack = Pack(configs, directories, plan, announce)
        self.evaluator = Evaluator(self.pack, stop, self._tick)
        self.reporter = Reporter(self.pack, watched)
        self.pack.engine.watch = self.reporter.watch
        self.saved_at = time.monotonic()

    def run(self) -> str:
        """Train to the end of the budget.

        Returns:
            "done" when every run has ended (each in its DONE or FAILED), or "interrupted".

        Raises:
            OSError: if a file cannot be written; what was saved before stands.
        """
        try:
            resume(self.pack)
            outcome = self._loop()
            for run in self.pack.living:
                with run.isolated():
                    run.directory.end_session(outcome)
            return outcome
        finally:
            self.evaluator.close()
            self.pack.close()

    def fail_all(self, reason: str, trace: str = "") -> None:
        """Mark every run that has not ended as failed."""
        for run in self.pack.living:
            run.fail(reason, trace)

    def _loop(self) -> str:
        while self.pack.living:
            if not self._learn():
                return self._interrupt()
            self.reporter.write_episodes()
            if not self.evaluator.evaluate():
                return self._interrupt()
            self._finish()
            if not self.pack.living:
                break
            if self.stop():
                return self._interrupt()
            self._decide()
            self._tick()
        return "done"

    def _interrupt(self) -> str:
        self._save()
        return "interrupted"

    # --- learning

    def _learn(self) -> bool:
        """Do every update that is due. False if asked to stop before they are done."""
        pack, progress = self.pack, self.pack.progress
        pack.engine.living = [run.place for run in pack.living]
        for place in pack.engine.living:
            if progress[place].pending and not pack.replay.available(place):  # there is nothing to learn from yet
                progress[place].pending = 0
        while True:
            due = [run.place for run in pack.living if run.progress.pending > 0]
            if not due:
                return True
            if self.stop():
                return False
            # Runs that stand at different updates (after a policy checkpoint, say) go on one group at a time.
            group = [place for place in due if progress[place].updates == progress[due[0]].updates]
            pack.engine.update(group, progress)
            for place in group:
                progress[place].pending -= 1
            self._tick()

    # --- acting

    def _decide(self) -> None:
        """One decision of every living run."""
        pack = self.pack
        self._begin_episodes()
        runs = pack.living
        if not runs:
            return
        places = [run.place for run in runs]
        observation = np.stack([run.observation for run in runs if run.observation is not None])
        carry = {k: v[places] for k, v in pack.carry.items()}
        chosen, carry = pack.engine.explore(places, observation, carry, pack.progress)
        for k, v in carry.items():
            pack.carry[k][places] = v
        action = np.zeros((len(pack.runs), pack.spec.action_dim), np.float32)
        action[places] = chosen
        active = np.zeros(len(pack.runs), bool)
        active[places] = True
        for place in np.flatnonzero(active & ~fit(action)).tolist():
            active[place] = False
            pack.runs[place].fail(f"{unfit(action[place])} at env step {pack.runs[place].env_step}")
        after, reward, terminated, truncated = pack.environments.step(action, active)
        for run in (run for run in runs if run.alive):
            i = run.place
            if i in pack.environments.errors:
                run.fail(f"environment: {pack.environments.errors[i]}")
                continue
            with run.isolated():
                self._record(run, action[i], float(reward[i]), bool(terminated[i]), bool(truncated[i]), after[i])

    def _record(
        self, run: Run, action: np.ndarray, reward: float, terminated: bool, truncated: bool, after: np.ndarray
    ) -> None:
        assert run.observation is not None and run.directory.replay is not None
        rows = self.pack.replay.add(run.place, run.observation, action, reward, terminated, truncated, after)
        run.directory.replay.append(*rows)
        p = run.progress
        p.decisions += 1
        p.episode_decisions += 1
        p.episode_return += reward
        run.observation = after.copy()
        due = self.pack.agent.after_decision(p)
        stages: tuple[str, ...] = ()
        if terminated or truncated:
            p.episodes += 1
            more, stages = self.pack.agent.after_episode(p, run.counters)
            due += more
            run.last_return = p.episode_return
            if self.pack.spec.reports_success:
                run.last_success = bool(self.pack.environments.success[run.place, 0])
            p.episode_decisions, p.episode_return = 0, 0.0
            run.observation = None
        for stage in stages:
            self.pack.engine.run(stage, [run.place], self.pack.progress)
        p.pending += due

    def _begin_episodes(self) -> None:
        pack = self.pack
        beginning = [run for run in pack.living if run.observation is None]
        if not beginning:
            return
        keys: list[tuple[int, ...] | None] = [None] * len(pack.runs)
        for run in beginning:
            keys[run.place] = (run.seed, TRAINING, run.progress.episodes)
        first = pack.environments.reset(keys)
        fresh = pack.engine.initial_carry(1, 1)
        for run in beginning:
            run.observation = first[run.place].copy()
            for k, v in pack.carry.items():
                v[run.place] = fresh[k][0]
            if run.place in pack.environments.errors:
                run.fail(f"environment: {pack.environments.errors[run.place]}")

    # --- ending and saving

    def _finish(self) -> None:
        """End the runs that have done their budget."""
        for run in self.pack.living:
            p = run.progress
            if p.decisions >= self.pack.budget and p.evaluated == p.decisions and p.pending == 0:
                with run.isolated():
                    save(self.pack, run)
                    self.reporter.report(run)
                    run.directory.finish(run.env_step)
                    run.directory.end_session("done")
                    run.alive = False

    def _tick(self) -> None:
        """What clocks decide: when to save, and when to report how far things are."""
        if time.monotonic() - self.saved_at >= self.pack.plan.checkpoint_seconds:
            self._save()
        self.reporter.tick()

    def _save(self) -> None:
        for run in self.pack.living:
            with run.isolated():
                save(self.pack, run)
        self.saved_at = time.monotonic()
