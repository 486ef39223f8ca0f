"""MetaWorld's tasks by the protocol of TD-MPC2 and DC-MPC (docs/tasks.md): goals observed, drawn anew each episode.

Importing this module loads MetaWorld's and so MuJoCo's own packages.
"""

from typing import Any

import mujoco
import numpy as np

from iqrl.environments.solved_task import SolvedTask
from iqrl.environments.suites import SUITES
from iqrl.environments.tasks import TaskRef
from iqrl.errors import InputError

EPISODE_STEPS = 200


class MetaWorldTask(SolvedTask):
    """One task of MetaWorld.

    Raises:
        InputError: MetaWorld is not installed.
    """

    episode_steps = EPISODE_STEPS
    solved_key = "success"
    camera = "corner2"

    def __init__(self, ref: TaskRef):
        try:
            from metaworld import env_dict, sawyer_xyz_env
        except ImportError:
            install = SUITES["metaworld"].install
            raise InputError(f"task={ref.name}: needs metaworld, which is not installed ({install})") from None
        sawyer_xyz_env.SawyerMocapBase.reset_mocap_welds = _reset_mocap_welds  # type: ignore[method-assign]
        classes: dict[str, Any] = dict(env_dict.ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE)
        super().__init__(classes[f"{ref.task}-v3-goal-observable"](seed=0), f"metaworld/{ref.task}")
        # Goal and objects of an episode from the environment's own generator, which `reset` seeds.
        self._environment._freeze_rand_vec = False
        self._environment.seeded_rand_vec = True
        self.action_low, self.action_high = -np.ones(4), np.ones(4)

    def reset(self, seeds: np.random.SeedSequence) -> np.ndarray:
        """Start the episode that `seeds` determines; its first observation, (O,) float32.

        As in TD-MPC2 and DC-MPC, the arm then makes one step without an action, which nobody sees.
        """
        self._environment.seed(int(seeds.generate_state(1)[0]))
        observation, _ = self._environment.reset()
        self._environment.step(np.zeros(4, np.float32))
        self._steps = 0
        return observation.astype(np.float32)


def _reset_mocap_welds(self: Any) -> None:
    """MetaWorld's method, which writes rows of 11 numbers, for a MuJoCo where a row has more.

    The hand is welded to the mocap body at no offset, with a torque scale of 5; the rest of a row stays as compiled.
    """
    welds = self.model.eq_type == mujoco.mjtEq.mjEQ_WELD
    self.model.eq_data[welds, :11] = [0, 0, 0, 0, 0, 0, -1, 0, 0, 0, 5]
