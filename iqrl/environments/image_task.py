"""A task observed as images: its newest pictures, stacked."""

from typing import Any

import numpy as np


class ImageTask:
    """A task behind the same interface, observed as its newest pictures.

    An observation is (stack * C, height, width) uint8, oldest picture first; an episode starts with its first picture
    in every place.

    Args:
        task: gives `frame_shape`, (C, height, width), and `frame(observation)`, (height, width, C) uint8.
        stack: pictures in an observation.
    """

    reports_success = False  # as of every task that images are drawn of

    def __init__(self, task: Any, stack: int):
        self._task = task
        self.discrete: bool = task.discrete
        self.action_low, self.action_high = task.action_low, task.action_high
        self.episode_steps: int = task.episode_steps
        self.step_seconds: float = task.step_seconds
        self.frame_shape: tuple[int, int, int] = task.frame_shape
        channels, height, width = self.frame_shape
        self._stack = np.zeros((stack, channels, height, width), np.uint8)
        self.observation_dim: int = self._stack.size

    def reset(self, seeds: np.random.SeedSequence) -> np.ndarray:
        """Start the episode that `seeds` determines; its first observation."""
        self._stack[:] = self._frame(self._task.reset(seeds))
        return self._observation()

    def step(self, action: np.ndarray, repeat: int) -> tuple[np.ndarray, float, bool, bool]:
        """As the task's own, with one new picture a decision."""
        observation, reward, terminated, truncated = self._task.step(action, repeat)
        self._stack[:-1] = self._stack[1:]
        self._stack[-1] = self._frame(observation)
        return self._observation(), reward, terminated, truncated

    def render(self, height: int, width: int) -> np.ndarray:
        """What the agent sees: the newest picture, enlarged without smoothing to (height, width, 3) uint8."""
        picture = self._stack[-1].transpose(1, 2, 0)
        rows = np.arange(height) * picture.shape[0] // height
        columns = np.arange(width) * picture.shape[1] // width
        return picture[rows[:, None], columns][..., [0, 1, 2] if picture.shape[2] >= 3 else [0, 0, 0]]

    def close(self) -> None:
        self._task.close()

    def _frame(self, observation: np.ndarray) -> np.ndarray:
        return self._task.frame(observation).transpose(2, 0, 1)

    def _observation(self) -> np.ndarray:
        return self._stack.reshape(-1, *self._stack.shape[2:]).copy()
