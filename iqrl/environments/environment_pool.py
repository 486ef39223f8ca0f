"""Many environments of one task, stepped together: here, or in worker processes.

Actions, observations, rewards and flags live in one piece of anonymous shared memory; a decision of the whole
pool costs one short message to each worker and one back. The actions of every running episode stay there
too. An episode is a function of its key and its actions, so when a worker dies another takes its place,
plays the episodes again up to the same decision and goes on as if nothing had happened.

Nothing outlives the pool's process, however that ends: workers stop when their connection closes or their
parent is gone, and the memory has no name.
"""

import json
import math
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Literal

import numpy as np

from iqrl import processes
from iqrl.environments.environment import Environment, MultiTaskEnvironment, check_key, make_environment, task_spec
from iqrl.environments.shared_memory import Slots, anonymous_memory
from iqrl.environments.tasks import TaskSpec
from iqrl.environments.worker import STEP, obey

Key = tuple[int, ...]

# A worker that dies this many times before it answers once will not get better.
MAXIMUM_FAILURES = 3

_MESSAGE_S = 50e-6  # what a message and its answer cost, measured
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class WorkerError(RuntimeError):
    """A worker process cannot be kept alive. The pool is closed."""


class EnvironmentPool:
    """`count` environments of a task, or of several, behind one reset and one step.

    Results do not depend on `workers`, to the last bit.

    Args:
        task_name: as `tasks.parse` takes it.
        count: number of environments, N.
        action_repeat: env steps a decision; None is as the task's name says.
        workers: processes; 0 steps here; "auto" times a few decisions and takes workers, up to one a core, where
            they should make a step shorter.
        cores: for those; 0 means every core that this process may use.
        reply_timeout_s: seconds after which a worker that gives no answer counts as dead.
    Attributes:
        spec: the task's sizes.
        workers: processes in use.
        errors: what went wrong, by environment. Such an environment observes NaN (black images) and is left alone
            until its next reset.
    Raises:
        InputError: as `Environment`.
        WorkerError: workers die as they start.
    """

    def __init__(
        self,
        task_name: str,
        count: int,
        action_repeat: int | None = None,
        workers: int | Literal["auto"] = "auto",
        cores: int = 0,
        reply_timeout_s: float = 600.0,
    ):
        if count < 1:
            raise ValueError(f"count={count}: expected at least 1 environment")
        self.spec: TaskSpec = task_spec(task_name, action_repeat)
        self.count = count
        self.workers = _automatic_workers(count, self.spec, cores) if workers == "auto" else min(workers, count)
        self.errors: dict[int, str] = {}
        self._reply_timeout_s = reply_timeout_s
        self._keys: list[Key | None] = [None] * count  # of running episodes
        self._crew: list[_Worker] = []
        self._environments: dict[int, Environment | MultiTaskEnvironment] = {}
        if self.workers == 0:
            self._slots = Slots(bytearray(Slots.size(count, self.spec)), count, self.spec)
            self._environments = {i: make_environment(task_name, self.spec.action_repeat) for i in range(count)}
        else:
            memory = anonymous_memory(Slots.size(count, self.spec))
            self._slots = Slots(mmap.mmap(memory, 0), count, self.spec)
            shares = np.array_split(np.arange(count), self.workers)
            self._crew = [
                _Worker(number, share.tolist(), memory, count, self.spec) for number, share in enumerate(shares)
            ]
            self._memory = memory
            try:
                for worker in self._crew:
                    worker.start([])
                self._collect(None)
            except BaseException:
                self.close()
                raise
        self._observations = self._slots.observations.copy()  # what was last handed out

    def reset(self, keys: Sequence[Key | None]) -> np.ndarray:
        """Start episodes.

        Args:
            keys: N episode keys as `Environment.reset` takes them; None leaves that environment as it is.
        Returns: observations (N, O) float32, or (N, C, height, width) uint8 of images; of environments left
            alone the last ones.
        """
        if len(keys) != self.count:
            raise ValueError(f"{len(keys)} keys for {self.count} environments")
        wanted = {i: tuple(int(entry) for entry in key) for i, key in enumerate(keys) if key is not None}
        for i, key in wanted.items():
            check_key(key)
            self._keys[i] = None  # not to be played again should its worker die now
            self.errors.pop(i, None)
        self._perform(json.dumps(list(wanted.items())).encode())
        for i, key in wanted.items():
            self._slots.decisions[i] = 0
            if i not in self.errors:
                self._keys[i] = key
        return self._observed()

    def step(
        self, actions: np.ndarray, active: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Take one decision in each active environment.

        Args:
            actions: (N, A) in [-1, 1].
            active: (N,) bool; None is every environment whose episode is running. Failed ones are left out.
        Returns: observations as of `reset`, rewards (N,) float64, terminated (N,) bool, truncated (N,) bool.
            Inactive environments keep their observation, with reward 0 and no flag; failed ones observe and
            are rewarded NaN.
        Raises:
            RuntimeError: an active environment's episode has ended.
            WorkerError: a worker died too often.
        """
        if actions.shape != (self.count, self.spec.action_dim):
            raise ValueError(f"actions of shape {actions.shape}: expected {(self.count, self.spec.action_dim)}")
        running = np.array([key is not None for key in self._keys])
        failed = np.array([i in self.errors for i in range(self.count)])
        asked = running if active is None else np.asarray(active, bool) & ~failed
        if (asked & ~running).any():
            raise RuntimeError(f"environments {np.flatnonzero(asked & ~running).tolist()} have no running episode")
        slots = self._slots
        slots.active[:] = asked
        slots.rewards[:] = 0.0
        slots.terminated[:] = slots.truncated[:] = False
        rows = np.flatnonzero(asked)
        slots.actions[rows, slots.decisions[rows]] = actions[rows]
        self._perform(STEP)
        slots.decisions += asked
        for i in np.flatnonzero(asked & (slots.terminated | slots.truncated)):
            self._keys[i] = None
        observations = self._observed()
        rewards = slots.rewards.copy()
        rewards[list(self.errors)] = np.nan
        return observations, rewards, slots.terminated.copy(), slots.truncated.copy()

    @property
    def success(self) -> np.ndarray:
        """(N, 2) bool: `Environment.success` of each environment's newest episode."""
        return self._slots.success.copy()

    def close(self) -> None:
        """Stop the workers. The pool cannot be used afterwards."""
        for worker in self._crew:
            worker.stop()
        if self._crew:
            os.close(self._memory)
        self._crew = []
        for environment in self._environments.values():
            environment.close()
        self._environments = {}

    def __enter__(self) -> "EnvironmentPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _observed(self) -> np.ndarray:
        self._slots.observations[list(self.errors)] = np.nan if self.spec.frame_shape is None else 0
        self._observations = self._slots.observations.copy()
        return self._observations.copy()

    def _perform(self, message: bytes) -> None:
        self._send(message)
        self._collect(message)

    def _send(self, message: bytes) -> None:
        if not self._crew:
            if not self._environments:
                raise RuntimeError("the pool is closed")
            self._fail(obey(message, self._environments, self._slots))
        for worker in self._crew:
            worker.send(message)

    def _collect(self, message: bytes | None) -> None:
        """Wait for every worker's answer to `message` (None: to its start), replacing those that die."""
        waiting = {worker.connection: worker for worker in self._crew}
        while waiting:
            ready = wait(list(waiting), self._reply_timeout_s)
            if not ready:
                for worker in waiting.values():
                    worker.kill(f"no answer for {self._reply_timeout_s:g} s")
                continue  # their connections are now at their end
            for connection in ready:
                worker = waiting.pop(connection)  # type: ignore[call-overload]
                try:
                    errors = worker.receive()
                except (EOFError, OSError):
                    self._replace(worker)
                    waiting[worker.connection] = worker
                    continue
                self._fail(errors)
                if worker.starting:
                    worker.starting = False
                    self._check_replay(worker)
                    if message is not None:
                        worker.send(message)  # not earlier: it would step on from what was to be checked
                        waiting[worker.connection] = worker
                        continue
                worker.failures = 0

    def _fail(self, errors: dict[int, str]) -> None:
        for i, reason in errors.items():
            self.errors[i] = reason
            self._keys[i] = None

    def _replace(self, worker: "_Worker") -> None:
        reason = worker.reap()
        worker.failures += 1
        label = f"environment worker {worker.number} of {self.spec.name} died ({reason})"
        if worker.failures >= MAXIMUM_FAILURES:
            self.close()
            raise WorkerError(f"{label}, {worker.failures} times in a row")
        episodes = [(i, key) for i in worker.share if (key := self._keys[i]) is not None]
        decisions = int(self._slots.decisions[[i for i, _ in episodes]].sum())
        print(
            f"{label}; starting another, {len(episodes)} episodes to bring back ({decisions} decisions)",
            file=sys.stderr,
            flush=True,
        )
        worker.start(episodes)

    def _check_replay(self, worker: "_Worker") -> None:
        """An episode that came back must observe what was last handed out."""
        for i in worker.replayed:
            if i not in self.errors and (self._slots.observations[i] != self._observations[i]).any():
                self._fail({i: "came back in another state after its worker died"})
        worker.replayed = []


def _automatic_workers(count: int, spec: TaskSpec, cores: int) -> int:
    """The number of workers that should take a step soonest; 0 unless workers save a quarter of the time."""
    cores = cores or processes.cores()
    if cores == 1 or count == 1:
        return 0
    environment = make_environment(spec.name, spec.action_repeat)
    environment.reset((0,))
    action = np.zeros(spec.action_dim, np.float32)
    times = []
    for _ in range(min(20, spec.episode_decisions)):
        start = time.perf_counter()
        _, _, terminated, truncated = environment.step(action)
        times.append(time.perf_counter() - start)
        if terminated or truncated:
            environment.reset((0,))
    decision_s = float(np.median(times))
    step_s = {
        workers: math.ceil(count / workers) * decision_s + _MESSAGE_S * (1 + workers)
        for workers in range(2, min(cores, count) + 1)
    }
    best = min(step_s, key=lambda workers: step_s[workers])
    return best if step_s[best] < 0.75 * count * decision_s else 0


class _Worker:
    """The pool's end of one worker process."""

    def __init__(self, number: int, share: list[int], memory: int, count: int, spec: TaskSpec):
        self.number = number
        self.share = share  # the environments it steps
        self.failures = 0  # deaths since its last answer
        self.starting = True  # its first answer says that it is ready
        self.replayed: list[int] = []
        self.connection: Connection
        self._memory = memory
        self._count = count
        self._spec = spec
        self._killed: str | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, episodes: list[tuple[int, Key]]) -> None:
        """Start the process and let it play these episodes again. It answers when it is ready."""
        self.connection, theirs = Pipe()
        root = str(Path(__file__).resolve().parents[2])
        inherited = os.environ.get("PYTHONPATH")
        environment = os.environ | {name: "1" for name in _THREADS}
        environment |= {"PYTHONPATH": f"{root}:{inherited}" if inherited else root}
        if self._spec.frame_shape is None:
            environment["MUJOCO_GL"] = "disable"
        else:
            environment["LP_NUM_THREADS"] = "1"  # Mesa's, on a CPU
            if os.environ.get("MUJOCO_GL", "disable") == "disable":
                environment["MUJOCO_GL"] = "egl"
        # A fresh interpreter: forking a process with threads is unsafe, and multiprocessing's spawn would
        # import the main program, torch included, in every worker.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "iqrl.environments.worker", str(theirs.fileno()), str(self._memory)],
            pass_fds=(theirs.fileno(), self._memory),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=environment,
        )
        theirs.close()
        self.starting, self._killed = True, None
        self.replayed = [i for i, _ in episodes]
        setup = {
            "parent": os.getpid(),
            "task": self._spec.name,
            "action_repeat": self._spec.action_repeat,
            "count": self._count,
            "share": self.share,
            "episodes": episodes,
        }
        self.send(json.dumps(setup).encode())

    def send(self, message: bytes) -> None:
        try:
            self.connection.send_bytes(message)
        except OSError:
            pass  # it is dead: waiting for its answer will say so

    def receive(self) -> dict[int, str]:
        """Its answer: errors by environment. Raises EOFError or OSError when it has died."""
        answer = self.connection.recv_bytes()
        return {int(i): reason for i, reason in json.loads(answer).items()} if answer else {}

    def kill(self, reason: str) -> None:
        self._killed = reason
        if self._process is not None:
            self._process.kill()

    def reap(self) -> str:
        """Clear a dead process away; how it ended."""
        self.connection.close()
        assert self._process is not None
        try:  # it may be ending by itself, with a reason
            code = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self._process.kill()  # closing its connection does not prove that it has ended
            code = self._process.wait()
        return self._killed or (f"signal {-code}" if code < 0 else f"exit status {code}")

    def stop(self) -> None:
        if self._process is None:
            return
        self.connection.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
