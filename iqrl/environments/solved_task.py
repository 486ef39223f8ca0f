"""What tasks share that say at every env step whether they are solved, and never end before their time limit."""

from typing import Any

import numpy as np

from iqrl.environments.rendering import Renderer


class SolvedTask:
    """A task of MetaWorld or MyoSuite behind the interface of `ControlSuiteTask`.

    Args:
        environment: the suite's own.
        name: models of equal name are equal, but for what an episode changes.
    Attributes:
        solved: whether the task was at any env step of the last decision, and at its last env step.
    """

    discrete = False
    reports_success = True
    episode_steps: int
    solved_key: str  # of what a step of the suite's environment says beside the reward
    camera: str  # that pictures are taken by

    def __init__(self, environment: Any, name: str) -> None:
        self._environment, self._name = environment, name
        self.observation_dim: int = environment.observation_space.shape[0]
        self.step_seconds: float = environment.dt
        self.solved = (False, False)
        self._steps = 0
        self._film: Renderer | None = None

    @property
    def simulation(self) -> tuple[Any, Any]:
        """MuJoCo's model and data."""
        return self._environment.model, self._environment.data

    def step(self, action: np.ndarray, repeat: int) -> tuple[np.ndarray, float, bool, bool]:
        """Hold an action (A,) for `repeat` env steps, fewer where the episode ends.

        Returns: observation (O,) float32, summed reward, terminated (never), truncated.
        """
        action = action.astype(np.float32)
        reward, any_solved, solved = 0.0, False, False
        for _ in range(min(repeat, self.episode_steps - self._steps)):
            observation, one, _, _, info = self._environment.step(action)
            reward += float(one)
            solved = bool(info[self.solved_key])
            any_solved |= solved
            self._steps += 1
        self.solved = any_solved, solved
        return observation.astype(np.float32), reward, False, self._steps == self.episode_steps

    def render(self, height: int, width: int) -> np.ndarray:
        """The scene from the side, (height, width, 3) uint8.

        Raises:
            InputError: no renderer on this machine, or a picture larger than the model allows.
        """
        model, data = self.simulation
        if self._film is None or (self._film.height, self._film.width) != (height, width):
            self._film = Renderer(self._name, model, height, width, camera=model.camera(self.camera).id)
        return self._film.draw(data)

    def close(self) -> None:
        self._film = None
