"""Tasks that TD-MPC2 added on models of the DeepMind Control suite (protocol.md section 6).

Observations, episode length and, unless said, the start are those of the suite task the model belongs to. The longer
floor of the original is only drawn: MuJoCo's planes have no end for collisions. Importing this loads dm_control.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from dm_control.rl import control
from dm_control.suite import ball_in_cup, cheetah, hopper, pendulum, walker
from dm_control.utils import rewards

_INFINITY = float("inf")


def load(domain: str, task: str, random: np.random.RandomState) -> control.Environment:
    """A dm_control environment of a custom task, drawing its starts from `random`."""
    return _BUILDERS[domain, task](random)


class _WalkerBackwards(walker.PlanarWalker):
    def get_reward(self, physics: walker.Physics) -> float:
        standing = rewards.tolerance(physics.torso_height(), bounds=(1.2, _INFINITY), margin=0.6)
        stand = (3 * standing + (1 + physics.torso_upright()) / 2) / 4
        speed = self._move_speed
        move = rewards.tolerance(
            physics.horizontal_velocity(),
            bounds=(-_INFINITY, -speed),
            margin=speed / 2,
            value_at_margin=0.5,
            sigmoid="linear",
        )
        return stand * (5 * move + 1) / 6


class _HopperBackwards(hopper.Hopper):
    def get_reward(self, physics: hopper.Physics) -> float:
        standing = rewards.tolerance(physics.height(), bounds=(0.6, 2))
        hopping = rewards.tolerance(
            physics.speed(), bounds=(-_INFINITY, -1), margin=0.5, value_at_margin=0.5, sigmoid="linear"
        )
        return standing * hopping


def _linear(value: float, lower: float, upper: float, margin: float) -> float:
    """1 within the bounds, falling to 0 over the margin."""
    return rewards.tolerance(value, bounds=(lower, upper), margin=margin, value_at_margin=0, sigmoid="linear")


def _raised(height: float) -> float:
    return rewards.tolerance(height, bounds=(1.2, _INFINITY), margin=0.6)


class _CheetahBackwards(cheetah.Cheetah):
    def get_reward(self, physics: cheetah.Physics) -> float:
        return _linear(physics.speed(), -_INFINITY, -8, margin=8)


class _CheetahOnOneFoot(cheetah.Cheetah):
    """Runs with the named foot and the torso raised."""

    def __init__(self, lifted: str, random: np.random.RandomState):
        super().__init__(random=random)
        self._lifted = lifted

    def get_reward(self, physics: cheetah.Physics) -> float:
        heights = physics.named.data.xpos
        up = (3 * _raised(heights[self._lifted, "z"]) + 2 * _raised(heights["torso", "z"])) / 5
        return up * (5 * _linear(physics.speed(), 6, _INFINITY, margin=6) + 1) / 6


class _CheetahJump(cheetah.Cheetah):
    def get_reward(self, physics: cheetah.Physics) -> float:
        heights = physics.named.data.xpos
        torso = heights["torso", "z"]
        still = _linear(physics.speed(), -0.5, 0.5, margin=0.5)
        feet = [5 * _raised((torso + heights[foot, "z"]) / 2) + still for foot in ("bfoot", "ffoot")]
        return sum(feet) / 12


class _CupSpin(ball_in_cup.BallInCup):
    def initialize_episode(self, physics: ball_in_cup.Physics) -> None:
        # One start in ten is anywhere, the others in the cup. Read as one draw an episode.
        anywhere = self.random.uniform() < 0.1
        while True:
            super().initialize_episode(physics)  # free of collisions
            if anywhere or physics.in_target():
                return

    def get_reward(self, physics: ball_in_cup.Physics) -> float:
        distance = float(np.linalg.norm(physics.ball_to_target()))
        speed = float(np.linalg.norm(physics.named.data.qvel[["ball_x", "ball_z"]]))
        away = rewards.tolerance(distance, bounds=(0.5, _INFINITY), margin=0.25, value_at_margin=0.5, sigmoid="linear")
        fast = rewards.tolerance(speed, bounds=(6, _INFINITY), margin=3, value_at_margin=0.5, sigmoid="linear")
        return (1 - physics.in_target()) * (away + 2 * fast) / 3


class _PendulumSpin(pendulum.SwingUp):
    def get_reward(self, physics: pendulum.Physics) -> float:
        speed = abs(float(physics.angular_velocity()[0]))
        return rewards.tolerance(speed, bounds=(9, _INFINITY), margin=4.5, value_at_margin=0.5, sigmoid="linear")


def _builder(base: Callable[..., control.Environment], task: Callable[..., Any]) -> Callable[..., Any]:
    """The suite's environment of `base` with another task on its physics, step and time limit."""

    def build(random: np.random.RandomState) -> control.Environment:
        environment = base(random=random)
        environment._task = task(random=random)
        return environment

    return build


_BUILDERS: dict[tuple[str, str], Callable[..., control.Environment]] = {
    ("ball_in_cup", "spin"): _builder(ball_in_cup.catch, _CupSpin),
    ("cheetah", "jump"): _builder(cheetah.run, _CheetahJump),
    ("cheetah", "run_back"): _builder(cheetah.run, lambda random: _CheetahOnOneFoot("ffoot", random)),
    ("cheetah", "run_backwards"): _builder(cheetah.run, _CheetahBackwards),
    ("cheetah", "run_front"): _builder(cheetah.run, lambda random: _CheetahOnOneFoot("bfoot", random)),
    ("hopper", "hop_backwards"): _builder(hopper.hop, lambda random: _HopperBackwards(hopping=True, random=random)),
    ("pendulum", "spin"): _builder(pendulum.swingup, _PendulumSpin),
    ("walker", "run_backwards"): _builder(walker.run, lambda random: _WalkerBackwards(move_speed=8, random=random)),
    ("walker", "walk_backwards"): _builder(walker.walk, lambda random: _WalkerBackwards(move_speed=1, random=random)),
}
