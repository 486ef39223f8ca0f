"""MetaWorld's tasks by the protocol of TD-MPC2 and DC-MPC (docs/tasks.md): goals observed, drawn anew each episode.

Importing this module loads MetaWorld's and so MuJoCo's own packages.
"""

from typing import Any

import mujoco
import numpy as np

from iqrl.environments.rendering import Renderer
from iqrl.environments.suites import SUITES
from iqrl.environments.tasks import TaskRef
from iqrl.errors import InputError

EPISODE_STEPS = 200


class MetaWorldTask:
    """One task of MetaWorld behind the interface of `ControlSuiteTask`.

    Attributes:
        solved: whether the task was at any env step of the last decision, and at its last env step.
    Raises:
        InputError: MetaWorld is not installed.
    """

    discrete = False
    reports_success = True
    episode_steps = EPISODE_STEPS

    def __init__(self, ref: TaskRef):
        try:
            from metaworld import env_dict, sawyer_xyz_env
        except ImportError:
            install = SUITES["metaworld"].install
            raise InputError(f"task={ref.name}: needs metaworld, which is not installed ({install})") from None
        sawyer_xyz_env.SawyerMocapBase.reset_mocap_welds = _reset_mocap_welds  # type: ignore[method-assign]
        classes: dict[str, Any] = dict(env_dict.ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE)
        self._environment = classes[f"{ref.task}-v3-goal-observable"](seed=0)
        # Goal and objects of an episode from the environment's own generator, which `reset` seeds.
        self._environment._freeze_rand_vec = False
        self._environment.seeded_rand_vec = True
        self.action_low, self.action_high = -np.ones(4), np.ones(4)
        self.observation_dim: int = self._environment.observation_space.shape[0]
        self.step_seconds: float = self._environment.dt
        self.solved = (False, False)
        self._steps = 0
        self._name = f"metaworld/{ref.task}"
        self._film: Renderer | None = None

    def reset(self, seeds: np.random.SeedSequence) -> np.ndarray:
        """Start the episode that `seeds` determines; its first observation, (O,) float32.

        As in TD-MPC2 and DC-MPC, the arm then makes one step without an action, which nobody sees.
        """
        self._environment.seed(int(seeds.generate_state(1)[0]))
        observation, _ = self._environment.reset()
        self._environment.step(np.zeros(4, np.float32))
        self._steps = 0
        return observation.astype(np.float32)

    def step(self, action: np.ndarray, repeat: int) -> tuple[np.ndarray, float, bool, bool]:
        """Hold an action (4,) for `repeat` env steps, fewer where the episode ends.

        Returns: observation (O,) float32, summed reward, terminated (never), truncated.
        """
        action = action.astype(np.float32)
        reward, any_solved, solved = 0.0, False, False
        for _ in range(min(repeat, self.episode_steps - self._steps)):
            observation, one, _, _, info = self._environment.step(action)
            reward += float(one)
            solved = bool(info["success"])
            any_solved |= solved
            self._steps += 1
        self.solved = any_solved, solved
        return observation.astype(np.float32), reward, False, self._steps == self.episode_steps

    def render(self, height: int, width: int) -> np.ndarray:
        """The scene from the side, (height, width, 3) uint8.

        Raises:
            InputError: no renderer on this machine, or a picture larger than the model allows.
        """
        model = self._environment.model
        if self._film is None or (self._film.height, self._film.width) != (height, width):
            self._film = Renderer(self._name, model, height, width, camera=model.camera("corner2").id)
        return self._film.draw(self._environment.data)

    def close(self) -> None:
        self._film = None


def _reset_mocap_welds(self: Any) -> None:
    """MetaWorld's method, which writes rows of 11 numbers, for a MuJoCo where a row has more.

    The hand is welded to the mocap body at no offset, with a torque scale of 5; the rest of a row stays as compiled.
    """
    welds = self.model.eq_type == mujoco.mjtEq.mjEQ_WELD
    self.model.eq_data[welds, :11] = [0, 0, 0, 0, 0, 0, -1, 0, 0, 0, 5]
