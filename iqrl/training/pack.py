"""The runs of a pack, and what they share: agent, replay, engine, environments and how they are executed."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from iqrl.agent import Progress
from iqrl.config import RunConfig
from iqrl.environments.environment_pool import EnvironmentPool, WorkerError
from iqrl.errors import of_file
from iqrl.runs.directory import RunDirectory
from iqrl.runs.files import warn
from iqrl.runs.lease import LeaseLost
from iqrl.training.engine import Engine
from iqrl.training.execution import Plan, transitions_kept
from iqrl.training.replay import Replay


@dataclass(eq=False)
class Run:
    """One run of the pack.

    Attributes:
        place: its index in the pack: in the engine's state, the replay and the environments.
        alive: it has neither ended nor failed, and is still this process's.
        observation: (O,), of the running episode.
        last_return, last_success: of the last training episode; no success where the task does not say.
        reported: training episodes written to training.csv.
        earlier_seconds: wall seconds of earlier sessions.
    """

    place: int
    config: RunConfig
    directory: RunDirectory
    action_repeat: int
    announce: Callable[[str], None]
    counters: dict[str, float]
    progress: Progress
    alive: bool = True
    observation: np.ndarray | None = None
    last_return: float | None = None
    last_success: bool | None = None
    reported: int = 0
    earlier_seconds: float = 0.0

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def name(self) -> str:
        return f"{self.config.agent.name} {self.config.task} s{self.seed}"

    @property
    def env_step(self) -> int:
        return self.progress.decisions * self.action_repeat

    def fail(self, reason: str, trace: str = "") -> None:
        """Mark it as failed, and leave its folder to others."""
        self.alive = False
        self.announce(f"{self.name}  FAILED: {reason}")
        with contextlib.suppress(LeaseLost):
            self.directory.fail(self.env_step, reason, trace)
            self.directory.end_session("failed")
        self.directory.release()  # others of the pack may go on for days

    def fail_with(self, error: Exception) -> None:
        """The same, of the exception that is being handled."""
        self.fail(of_file(error, self.config.source), traceback.format_exc())

    def lose(self, error: LeaseLost) -> None:
        """Leave it to the process that has claimed it since."""
        self.alive = False
        warn(str(error))

    @contextlib.contextmanager
    def isolated(self) -> Iterator[None]:
        """Errors of this run end this run. A disk that cannot be written ends the process: nothing is lost by that."""
        try:
            yield
        except LeaseLost as error:
            self.lose(error)
        except (OSError, WorkerError):
            raise
        except Exception as error:
            self.fail_with(error)


class Pack:
    """Runs that differ in nothing but their seed.

    Args:
        configs: the runs.
        directories: theirs, claimed by this process.
        plan: device, precision, compilation, threads and workers.
        announce: gets a line at evaluations and notable events.
    Attributes:
        runs: by place.
        budget: decisions of a run.
        carry: of the agent from decision to decision, each entry with a leading axis of runs.
    """

    def __init__(
        self,
        configs: Sequence[RunConfig],
        directories: Sequence[RunDirectory],
        plan: Plan,
        announce: Callable[[str], None],
    ) -> None:
        self.plan, self.announce, first = plan, announce, configs[0]
        self.spec = first.spec
        self.budget = first.decisions
        self.agent = first.agent(first.settings, self.spec, plan.dtype)
        seeds = [c.seed for c in configs]
        frames = directories[0].path if plan.frames == "disk" else plan.frames
        self.replay = Replay(self.spec, len(seeds), self.agent.slices, transitions_kept(first), plan.device, frames)
        self.engine = Engine(
            self.agent, seeds, self.replay, device=plan.device, compiled=plan.compiled, packed=plan.packed,
            recorded=plan.recorded,
        )  # fmt: skip
        self.runs = [
            Run(place, config, directory, self.spec.action_repeat, announce, self.agent.counters(), Progress())
            for place, (config, directory) in enumerate(zip(configs, directories, strict=True))
        ]
        self.carry = self.engine.initial_carry(len(seeds), 1)
        self.environments = self.new_environments(len(seeds))
        self.started = time.monotonic()

    @property
    def living(self) -> list[Run]:
        return [run for run in self.runs if run.alive]

    @property
    def progress(self) -> list[Progress]:
        """Of every run, by place."""
        return [run.progress for run in self.runs]

    def new_environments(self, count: int) -> EnvironmentPool:
        """`count` environments of the pack's task."""
        plan, task = self.plan, self.runs[0].config.task
        return EnvironmentPool(task, count, self.spec.action_repeat, plan.workers, plan.threads)

    def wall_seconds(self, run: Run) -> float:
        """In all sessions."""
        return run.earlier_seconds + time.monotonic() - self.started

    def close(self) -> None:
        """Stop the environments and release the runs' folders."""
        self.environments.close()
        for run in self.runs:
            run.directory.release()


def fit(actions: np.ndarray) -> np.ndarray:
    """(n,): which of the actions (n, A) are within [-1, 1]; one that is not finite is not."""
    return np.abs(actions).max(1) <= 1.0 + 1e-6


def unfit(action: np.ndarray) -> str:
    """What is wrong with an action (A,) that is not."""
    largest = float(np.abs(action).max())
    return f"an action is {largest:.4g}, outside [-1, 1]" if np.isfinite(largest) else "an action is not finite"
