"""The suites that tasks come from: what each needs, how it counts, and the score it is judged by (docs/tasks.md).

Nothing here imports a simulator.
"""

import importlib.util
from dataclasses import dataclass


@dataclass(frozen=True)
class Suite:
    """One suite and its protocol."""

    name: str
    title: str
    package: str  # that holds its tasks
    install: str  # the command that installs it; empty where it is always there
    action_repeat: int  # env steps a decision, unless `train.action_repeat` says otherwise
    score: str  # column of evaluations.csv that the suite's own papers report: "episode_return" or "success"

    def missing(self) -> str:
        """What to do where the suite is not installed; empty where it is."""
        return "" if importlib.util.find_spec(self.package) else f"not installed ({self.install})"


SUITES = {
    suite.name: suite
    for suite in (
        Suite("dmc", "DeepMind Control", "dm_control", "", 2, "episode_return"),
        # Its own pins name an older MuJoCo than the tested one, which works, too.
        Suite("metaworld", "MetaWorld", "metaworld", "pip install --no-deps metaworld==3.1.1", 2, "success"),
        Suite("gym", "Gymnasium", "gymnasium", "pip install gymnasium", 1, "episode_return"),
    )
}


def suite_of(task: str) -> Suite:
    """The suite of a task, by its name alone."""
    if task.startswith("gym:"):
        return SUITES["gym"]
    return SUITES["metaworld" if task.startswith("mw-") else "dmc"]
