"""Tasks of a suite whose pins exclude the tested packages, in a Python of the suite's own.

`TaskApart` is such a task as seen from here. All tasks of a suite that one process has live in one other process,
`python -m iqrl.environments.apart_worker` of the suite's Python, which ends with this one. They talk over a pair of
sockets: a JSON request, then an action's bytes if it is a step; a JSON reply, then an observation's or picture's bytes.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import weakref
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from iqrl.environments.suites import Suite, suite_of
from iqrl.environments.tasks import TaskRef
from iqrl.errors import InputError

versions: dict[str, str] = {}  # of the suites in use, for the records of a run
_ROOT = Path(__file__).resolve().parents[2]


class Host:
    """The other process.

    Raises:
        InputError: the suite's Python cannot be started.
    """

    def __init__(self, suite: Suite):
        ours, theirs = socket.socketpair()
        environment = {**os.environ, "PYTHONPATH": str(_ROOT), "PYTHONWARNINGS": "ignore"}
        words = [str(suite.interpreter), "-m", "iqrl.environments.apart_worker", str(theirs.fileno()), str(os.getpid())]
        try:
            self.process = subprocess.Popen(
                words, env=environment, pass_fds=[theirs.fileno()], stdout=subprocess.DEVNULL
            )
        except OSError as error:
            raise InputError(f"{suite.title}: {suite.interpreter} does not start: {error.strerror}") from None
        theirs.close()
        self._connection = Connection(ours.detach())
        self.numbers = itertools.count()  # of tasks

    def ask(self, request: dict[str, Any], data: bytes = b"", answer: bool = False) -> tuple[dict[str, Any], bytes]:
        """Send a request, with the bytes that belong to it; its reply, and the bytes that follow if `answer`.

        Raises:
            RuntimeError: the task failed, or its process died.
        """
        try:
            self._connection.send_bytes(json.dumps(request).encode())
            if data:
                self._connection.send_bytes(data)
            reply: dict[str, Any] = json.loads(self._connection.recv_bytes())
            if error := reply.get("error"):
                raise RuntimeError(error)
            return reply, self._connection.recv_bytes() if answer else b""
        except (EOFError, OSError):
            raise RuntimeError("the process of a task in a Python of its own died") from None


_hosts: dict[tuple[Path, int], Host] = {}


def _host(suite: Suite) -> Host:
    """The other process of this one, for a suite; a fork needs its own, and one that died is followed by another."""
    key = suite.interpreter, os.getpid()
    if key not in _hosts or _hosts[key].process.poll() is not None:
        _hosts[key] = Host(suite)
    return _hosts[key]


class TaskApart:
    """One task in the other process, behind the interface of `ControlSuiteTask`; attributes as of the task there.

    Raises:
        InputError: its suite is not installed there, or the task cannot be made.
    """

    def __init__(self, ref: TaskRef):
        suite = suite_of(ref.name)
        if missing := suite.missing():
            raise InputError(f"task={ref.name}: needs {suite.package}, which is {missing}")
        self._host = _host(suite)
        self._number = next(self._host.numbers)
        try:
            made, _ = self._host.ask({"do": "make", "number": self._number, "task": ref.name})
        except RuntimeError as error:
            raise InputError(f"task={ref.name}: {error}") from None
        weakref.finalize(self, _drop, self._host, self._number)
        self.discrete: bool = made["discrete"]
        self.reports_success: bool = made["reports_success"]
        self.episode_steps: int = made["episode_steps"]
        self.observation_dim: int = made["observation_dim"]
        self.step_seconds: float = made["step_seconds"]
        own, *others = made["versions"].items()
        versions[own[0]] = f"{own[1]} ({', '.join(f'{name} {version}' for name, version in others)})"
        self.action_low, self.action_high = np.array(made["action_low"]), np.array(made["action_high"])
        self.solved = (False, False)

    def reset(self, seeds: np.random.SeedSequence) -> np.ndarray:
        """Start the episode that `seeds` determines; its first observation, (O,) float32."""
        request = {"do": "reset", "entropy": seeds.entropy, "spawn_key": seeds.spawn_key}
        _, observation = self._host.ask({**request, "number": self._number}, answer=True)
        return np.frombuffer(observation, np.float32).copy()

    def step(self, action: np.ndarray, repeat: int) -> tuple[np.ndarray, float, bool, bool]:
        """Hold a native action (A,) for `repeat` env steps, fewer where the episode ends."""
        request = {"do": "step", "number": self._number, "repeat": repeat}
        reply, observation = self._host.ask(request, action.astype(np.float64).tobytes(), answer=True)
        self.solved = (reply["solved"][0], reply["solved"][1])
        return np.frombuffer(observation, np.float32).copy(), reply["reward"], reply["terminated"], reply["truncated"]

    def render(self, height: int, width: int) -> np.ndarray:
        """A picture of the current state, (height, width, 3) uint8.

        Raises:
            InputError: the task cannot draw there.
        """
        try:
            request = {"do": "render", "number": self._number, "height": height, "width": width}
            _, picture = self._host.ask(request, answer=True)
        except RuntimeError as error:
            raise InputError(f"rendering: {error}") from None
        return np.frombuffer(picture, np.uint8).reshape(height, width, 3).copy()

    def close(self) -> None:
        """The task there is dropped when this one is."""


def _drop(host: Host, number: int) -> None:
    try:
        host.ask({"do": "drop", "number": number})
    except RuntimeError:  # it went first
        pass
