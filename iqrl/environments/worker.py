"""What steps the environments of a pool: a worker process, or the pool itself when it has none.

``python -m iqrl.environments.worker`` is a worker; only the pool starts it.
"""

import json
import mmap
import os
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection

import numpy as np

from iqrl import processes
from iqrl.environments.environment import Environment, MultiTaskEnvironment, make_environment
from iqrl.environments.shared_memory import Slots

STEP = b"step"  # every other message is JSON: pairs of an environment and the key of the episode to start


def obey(
    message: bytes, environments: Mapping[int, Environment | MultiTaskEnvironment], slots: Slots
) -> dict[int, str]:
    """Do what a message says to these environments; what went wrong, by environment."""
    errors: dict[int, str] = {}
    if message == STEP:
        for i, environment in environments.items():
            if slots.active[i]:
                action = slots.actions[i, slots.decisions[i]]
                try:
                    result = environment.step(action)
                except Exception as error:
                    errors[i] = described(error)
                else:
                    slots.observations[i], slots.rewards[i], slots.terminated[i], slots.truncated[i] = result
                    slots.success[i] = environment.success
        return errors
    for i, key in json.loads(message):
        if i in environments:
            try:
                slots.observations[i] = environments[i].reset(tuple(key))
                slots.success[i] = False
            except Exception as error:
                errors[i] = described(error)
    return errors


def described(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _replay(environment: Environment | MultiTaskEnvironment, key: tuple[int, ...], actions: np.ndarray) -> np.ndarray:
    """Play an episode again; the last observation, (O,)."""
    observation = environment.reset(key)
    for action in actions:
        observation = environment.step(action)[0]
    return observation


def _work(connection: Connection, memory: int) -> None:
    setup = json.loads(connection.recv_bytes())
    processes.end_with_parent(setup["parent"])
    environments = {i: make_environment(setup["task"], setup["action_repeat"]) for i in setup["share"]}
    spec = next(iter(environments.values())).spec
    slots = Slots(mmap.mmap(memory, 0), setup["count"], spec)
    os.close(memory)
    errors: dict[int, str] = {}
    for i, key in setup["episodes"]:
        try:
            slots.observations[i] = _replay(environments[i], tuple(key), slots.actions[i, : slots.decisions[i]])
        except Exception as error:
            errors[i] = described(error)
    while True:
        connection.send_bytes(json.dumps(errors).encode() if errors else b"")
        errors = obey(connection.recv_bytes(), environments, slots)


def main() -> None:
    """Serve a pool until it hangs up."""
    try:
        _work(Connection(int(sys.argv[1])), int(sys.argv[2]))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass


if __name__ == "__main__":
    main()
