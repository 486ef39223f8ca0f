"""Gymnasium tasks that observe vectors or images: continuous or discrete actions, real terminations.

Importing this module is free of Gymnasium; building a task needs it (`pip install gymnasium`).
"""

import importlib
from typing import Any

import numpy as np

from iqrl.environments.suites import SUITES
from iqrl.environments.tasks import TaskRef
from iqrl.errors import InputError


class GymnasiumTask:
    """One Gymnasium environment behind the interface of `ControlSuiteTask`.

    A discrete task of n actions has `action_low = -1`, `action_high = 1` of shape (n,): it takes the argmax.

    Raises:
        InputError: Gymnasium, the module or the id is missing; an id without its version; images where a vector was
            asked for, or the other way round; unbounded or structured actions; no time limit.
    """

    reports_success = False

    def __init__(self, ref: TaskRef):
        try:
            import gymnasium
        except ImportError:
            raise InputError(
                f"task={ref.name}: needs gymnasium, which is not installed ({SUITES['gym'].install})"
            ) from None
        module, _, name = ref.task.rpartition(":")
        try:
            if module:
                importlib.import_module(module)  # which registers the task
        except Exception as error:  # of code that is not ours
            raise InputError(
                f"task={ref.name}: importing {module}: {type(error).__name__}: {_one_line(error)}"
            ) from None
        try:
            environment: Any = gymnasium.make(name, disable_env_checker=True)
        except Exception as error:  # of code that is not ours, too
            kind = "" if isinstance(error, gymnasium.error.Error | ImportError) else f"{type(error).__name__}: "
            raise InputError(f"task={ref.name}: gymnasium cannot make it: {kind}{_one_line(error)}") from None
        if environment.spec.id != name:  # the newest version where none is named, another one some day
            raise InputError(
                f"task={ref.name}: expected its version too: {ref.name.replace(name, environment.spec.id)}"
            )
        self._environment = environment
        self._spaces: Any = gymnasium.spaces
        self._space = self._environment.observation_space
        actions: Any = self._environment.action_space

        self._channels = 0  # of the images it observes; 0 is a vector
        shape: tuple[int, ...] = self._space.shape if isinstance(self._space, self._spaces.Box) else ()
        images = self._space.dtype == np.uint8 and (len(shape) == 2 or len(shape) == 3 and shape[2] == min(shape))
        if ref.pixels is not None:
            if not images:
                raise InputError(f"task={ref.name}: observes {self._space}; expected uint8 (height, width, channels)")
            self._channels = shape[2] if len(shape) == 3 else 1
            self.frame_shape = (self._channels, *shape[:2])
        elif len(shape) > 1:
            instead = f"; as images it is {ref.name.replace(name, f'{name}@pixels')}" if images else ""
            raise InputError(f"task={ref.name}: observes arrays of {shape}; expected a vector{instead}")
        try:
            self.observation_dim: int = int(self._spaces.flatdim(self._space))
        except (NotImplementedError, ValueError):
            raise InputError(f"task={ref.name}: observes {self._space}; expected a vector") from None
        self.discrete: bool = isinstance(actions, self._spaces.Discrete)
        if self.discrete:
            self._first_action = int(actions.start)
            self.action_low, self.action_high = -np.ones(int(actions.n)), np.ones(int(actions.n))
        elif isinstance(actions, self._spaces.Box) and len(actions.shape) == 1 and actions.is_bounded():
            self._action_dtype = actions.dtype
            self.action_low, self.action_high = (
                actions.low.astype(np.float64),
                actions.high.astype(np.float64),
            )
        else:
            raise InputError(f"task={ref.name}: acts by {actions}; expected Discrete or a bounded vector")
        limit = self._environment.spec.max_episode_steps
        if limit is None:
            raise InputError(f"task={ref.name}: has no time limit; expected one in its registration")
        self.episode_steps: int = limit
        self.step_seconds = 1.0 / (self._environment.metadata.get("render_fps") or 30)

    def reset(self, seeds: np.random.SeedSequence) -> np.ndarray:
        """Start the episode that `seeds` determines; its first observation, (O,) float32, or as it is of images."""
        observation, _ = self._environment.reset(seed=int(seeds.generate_state(1)[0]))
        return self._flat(observation)

    def step(self, action: np.ndarray, repeat: int) -> tuple[np.ndarray, float, bool, bool]:
        """Hold a native action (A,) for `repeat` env steps, fewer where the episode ends.

        Returns: observation (O,) float32, summed reward, terminated, truncated.
        """
        if self.discrete:
            native: Any = self._first_action + int(np.argmax(action))
        else:
            native = action.astype(self._action_dtype)
        total = 0.0
        for _ in range(repeat):
            observation, reward, terminated, truncated, _ = self._environment.step(native)
            total += float(reward)
            if terminated or truncated:
                break
        return self._flat(observation), total, bool(terminated), bool(truncated)

    def frame(self, observation: np.ndarray) -> np.ndarray:
        """What an agent sees, of a task that observes images: (height, width, C) uint8."""
        return observation.reshape(*observation.shape[:2], self._channels)

    def render(self, height: int, width: int) -> np.ndarray:
        """The task's own picture, (height', width', 3) uint8: Gymnasium tasks choose their size themselves.

        Raises:
            InputError: the task draws no pictures, or a library for it is missing.
        """
        task = self._environment.unwrapped
        if "rgb_array" not in task.metadata.get("render_modes", ()):
            raise InputError(f"rendering: {task.spec.id} draws no pictures")
        task.render_mode = "rgb_array"
        try:
            return np.asarray(task.render(), np.uint8)
        except Exception as error:  # each toolkit fails in its own way
            raise InputError(f"rendering: {task.spec.id}: {_one_line(error)}") from None

    def close(self) -> None:
        self._environment.close()

    def _flat(self, observation: Any) -> np.ndarray:
        if self._channels:
            return np.asarray(observation)
        return np.asarray(self._spaces.flatten(self._space, observation), np.float32)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
