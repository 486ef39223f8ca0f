"""What a task is judged by, and the scale that puts the scores of different tasks together (docs/tasks.md)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """The score of a task, and how it is normalised.

    Attributes:
        quantity: column of the evaluations: "mean_return", or "success_percent", of episodes.
        low, high: its values at a normalised score of 0 and of 1.
        said: of that, in words.
    """

    quantity: str
    low: float
    high: float
    said: str

    def normalised(self, score: float) -> float:
        return (score - self.low) / (self.high - self.low)


SUITE = Scale("mean_return", 0.0, 1000.0, "return / 1000")
SUCCESS = Scale("success_percent", 0.0, 100.0, "success rate")
# Random's return, and TD3's at 1M env steps, of the TD7 paper (docs/tasks.md).
_RANDOM_AND_TD3 = {
    "gym:Ant-v4": (-70.288, 3942.0),
    "gym:HalfCheetah-v4": (-289.415, 10574.0),
    "gym:Hopper-v4": (18.791, 3226.0),
    "gym:Humanoid-v4": (120.423, 5165.0),
    "gym:Walker2d-v4": (2.791, 3946.0),
}


def scale(task: str) -> Scale | None:
    """The scale of a task; None for a Gymnasium task without one."""
    base = task.partition("+")[0]
    if base.startswith(("mw-", "myo-")):
        return SUCCESS
    if not base.startswith("gym:"):
        return SUITE
    ends = _RANDOM_AND_TD3.get(base)
    return Scale("mean_return", *ends, "return, 0 at random's and 1 at TD3's") if ends else None


def quantity(task: str) -> str:
    """Column of the evaluations by which a task is judged."""
    own = scale(task)
    return own.quantity if own else "mean_return"


def said(tasks: Iterable[str]) -> str:
    """How the scores of tasks are normalised, in words; of several suites, each by its own."""
    found = {own.said: None for task in tasks if (own := scale(task))}
    return "; ".join(found) + (", each suite by its own" if len(found) > 1 else "")


def normalised_name(tasks: Iterable[str]) -> str:
    """What the normalised scores of tasks are: "normalised return", "success rate", or of both "normalised score"."""
    kinds = {quantity(task) for task in tasks}
    if len(kinds) > 1:
        return "normalised score"
    return "success rate" if kinds == {"success_percent"} else "normalised return"


def score_name(tasks: Iterable[str]) -> str:
    """What the tasks are judged by, each in its own unit."""
    kinds = {quantity(task) for task in tasks}
    if kinds == {"success_percent"}:
        return "success rate in percent"
    return "mean return" + (" (of MetaWorld and MyoSuite, success rate in percent)" if len(kinds) > 1 else "")


def published_task(name: str) -> str:
    """A task of published results by its name here: "Hopper-v4" and "Gym-Hopper-v4" of Gymnasium, "myo-hand-pose"."""
    name = name.replace("myo-hand-", "myo-")
    match = re.fullmatch(r"(?:Gym-)?([A-Z]\w*-v\d+)", name)
    return f"gym:{match[1]}" if match else name
