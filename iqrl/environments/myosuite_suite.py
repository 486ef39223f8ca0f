"""MyoSuite's ten hand tasks by the protocol of TD-MPC2 and DC-MPC (docs/tasks.md).

It loads in a Python that has MyoSuite, whose pins exclude the tested packages (apart_worker.py), so it may import
nothing but NumPy, MuJoCo, MyoSuite and what tasks are named by.
"""

from typing import Any

import numpy as np

from iqrl.environments.rendering import Renderer
from iqrl.environments.tasks import TaskRef

EPISODE_STEPS = 100


class MyoSuiteTask:
    """One task of MyoSuite behind the interface of `ControlSuiteTask`.

    Attributes:
        solved: whether the task was at any env step of the last decision, and at its last env step.
    Raises:
        ImportError: MyoSuite is not installed.
    """

    discrete = False
    reports_success = True
    episode_steps = EPISODE_STEPS

    def __init__(self, ref: TaskRef):
        import myosuite  # type: ignore[import-not-found]  # noqa: F401  # registers its tasks
        from myosuite.utils import gym  # type: ignore[import-not-found]

        # Without the registered time limit, which is another one than the protocol's.
        self._environment: Any = gym.make(ref.task).unwrapped
        space = self._environment.action_space
        self.action_low, self.action_high = space.low.astype(np.float64), space.high.astype(np.float64)
        self.observation_dim: int = self._environment.observation_space.shape[0]
        self.step_seconds: float = self._environment.dt
        self.solved = (False, False)
        self._steps = 0
        self._name = ref.task
        self._film: Renderer | None = None

    def reset(self, seeds: np.random.SeedSequence) -> np.ndarray:
        """Start the episode that `seeds` determines; its first observation, (O,) float32."""
        observation, _ = self._environment.reset(seed=int(seeds.generate_state(1)[0]))
        self._steps = 0
        return np.asarray(observation, np.float32)

    def step(self, action: np.ndarray, repeat: int) -> tuple[np.ndarray, float, bool, bool]:
        """Hold an action (A,) for `repeat` env steps, fewer where the episode ends.

        Returns: observation (O,) float32, summed reward, terminated (never: both sources go on), truncated.
        """
        action = action.astype(np.float32)
        reward, any_solved, solved = 0.0, False, False
        for _ in range(min(repeat, self.episode_steps - self._steps)):
            observation, one, _, _, info = self._environment.step(action)
            reward += float(one)
            solved = bool(info["solved"])
            any_solved |= solved
            self._steps += 1
        self.solved = any_solved, solved
        return np.asarray(observation, np.float32), reward, False, self._steps == self.episode_steps

    def render(self, height: int, width: int) -> np.ndarray:
        """The hand from the side, (height, width, 3) uint8.

        Raises:
            InputError: no renderer on this machine, or a picture larger than the model allows.
        """
        model = self._environment.mj_model
        if self._film is None or (self._film.height, self._film.width) != (height, width):
            self._film = Renderer(self._name, model, height, width, camera=model.camera("hand_side_inter").id)
        return self._film.draw(self._environment.mj_data)

    def close(self) -> None:
        self._film = None
