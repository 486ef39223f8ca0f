"""MyoSuite's ten hand tasks by the protocol of TD-MPC2 and DC-MPC (docs/tasks.md).

It loads in a Python that has MyoSuite, whose pins exclude the tested packages (apart_worker.py), so it may import
nothing but NumPy, MuJoCo, MyoSuite and what tasks are named by.
"""

from typing import Any

import numpy as np

from iqrl.environments.solved_task import SolvedTask
from iqrl.environments.tasks import TaskRef

EPISODE_STEPS = 100


class MyoSuiteTask(SolvedTask):
    """One task of MyoSuite. What the suite calls the end of an episode, a drop, is passed over as in both sources.

    Raises:
        ImportError: MyoSuite is not installed.
    """

    episode_steps = EPISODE_STEPS
    solved_key = "solved"
    camera = "hand_side_inter"

    def __init__(self, ref: TaskRef):
        import myosuite  # type: ignore[import-not-found]  # noqa: F401  # registers its tasks
        from myosuite.utils import gym  # type: ignore[import-not-found]

        # Without the registered time limit, which is another one than the protocol's.
        super().__init__(gym.make(ref.task).unwrapped, ref.task)
        space = self._environment.action_space
        self.action_low, self.action_high = space.low.astype(np.float64), space.high.astype(np.float64)

    @property
    def simulation(self) -> tuple[Any, Any]:
        return self._environment.mj_model, self._environment.mj_data

    def reset(self, seeds: np.random.SeedSequence) -> np.ndarray:
        """Start the episode that `seeds` determines; its first observation, (O,) float32."""
        observation, _ = self._environment.reset(seed=int(seeds.generate_state(1)[0]))
        self._steps = 0
        return np.asarray(observation, np.float32)
