"""A task of one's own: a point that is pushed to a goal, against a wind that turns. Any Gymnasium environment of state
vectors goes, if its registration gives it a time limit. With PYTHONPATH=docs/examples it is task=gym:my_task:Windy-v0.
"""

import gymnasium
import numpy as np


class Windy(gymnasium.Env):
    """Observes position, velocity, goal and wind, (8,), and pushes with a force in [-1, 1]^2."""

    metadata = {"render_modes": [], "render_fps": 20}  # env steps a second
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (8,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)  # draw from self.np_random alone: an episode is then a function of its seed
        self.position, self.goal = self.np_random.uniform(-1.0, 1.0, (2, 2))
        self.velocity, self.angle = np.zeros(2), self.np_random.uniform(0.0, 2.0 * np.pi)
        return self.observed(), {}

    def step(self, action):
        self.angle += 0.1 * self.np_random.standard_normal()
        force = action + 0.5 * np.array([np.cos(self.angle), np.sin(self.angle)])
        self.velocity = 0.9 * self.velocity + 0.05 * force
        self.position = self.position + 0.05 * self.velocity
        reward = float(np.exp(-4.0 * np.square(self.position - self.goal).sum()))
        lost = bool(np.abs(self.position).max() > 3.0)  # a termination: values are not bootstrapped through it
        return self.observed(), reward, lost, False, {}

    def observed(self):
        wind = [np.cos(self.angle), np.sin(self.angle)]
        return np.concatenate([self.position, self.velocity, self.goal, wind]).astype(np.float32)


gymnasium.register("Windy-v0", Windy, max_episode_steps=200)
