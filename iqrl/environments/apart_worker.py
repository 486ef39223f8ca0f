"""The other process of `apart.TaskApart`, in a suite's own Python: that has NumPy, MuJoCo and the suite, no PyTorch.

``python -m iqrl.environments.apart_worker``; only `apart.Host` starts it.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from iqrl import processes
from iqrl.environments import tasks
from iqrl.environments.environment import load
from iqrl.environments.suites import suite_of


def _serve(connection: Connection) -> None:
    made: dict[int, Any] = {}
    while True:
        request = json.loads(connection.recv_bytes())
        data = connection.recv_bytes() if request["do"] == "step" else b""
        try:
            reply, answer = _obey(request, data, made)
        except Exception as error:  # of code that is not ours; the task there says it in its own words
            reply, answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}, None
        connection.send_bytes(json.dumps(reply).encode())
        if answer is not None:
            connection.send_bytes(answer.tobytes())


def _obey(request: dict[str, Any], data: bytes, made: dict[int, Any]) -> tuple[dict[str, Any], np.ndarray | None]:
    number = request["number"]
    if request["do"] == "make":
        ref = tasks.parse(request["task"])
        suite = suite_of(ref.name)
        task = made[number] = load(ref)
        plain = ("discrete", "reports_success", "episode_steps", "observation_dim", "step_seconds")
        bounds = {"action_low": task.action_low.tolist(), "action_high": task.action_high.tolist()}
        packages = (suite.package, "mujoco", "gymnasium")
        found = {"versions": {package: importlib.metadata.version(package) for package in packages}}
        return {name: getattr(task, name) for name in plain} | bounds | found, None
    if request["do"] == "drop":
        made.pop(number).close()
        return {}, None
    task = made[number]
    if request["do"] == "reset":
        return {}, task.reset(np.random.SeedSequence(request["entropy"], spawn_key=request["spawn_key"]))
    if request["do"] == "render":
        return {}, task.render(request["height"], request["width"])
    observation, reward, terminated, truncated = task.step(np.frombuffer(data, np.float64), request["repeat"])
    return {"reward": reward, "terminated": terminated, "truncated": truncated, "solved": task.solved}, observation


def main() -> None:
    """Serve the process that started this one until it hangs up."""
    processes.end_with_parent(int(sys.argv[2]))
    try:
        _serve(Connection(int(sys.argv[1])))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass


if __name__ == "__main__":
    main()
