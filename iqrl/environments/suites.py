"""The suites that tasks come from: what each needs, how it counts, and the score it is judged by (docs/tasks.md).

Nothing here imports a simulator.
"""

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Suite:
    """One suite and its protocol."""

    name: str
    title: str
    package: str  # that holds its tasks
    install: str  # the command that installs it; empty where it is always there
    action_repeat: int  # env steps a decision, unless `train.action_repeat` says otherwise
    score: str  # column of evaluations.csv that the suite's own papers report: "episode_return" or "success"
    may_be_apart: bool = False  # its pins exclude the tested packages, so it may live in a Python of its own

    @property
    def here(self) -> bool:
        """Whether this Python has it."""
        return importlib.util.find_spec(self.package) is not None

    @property
    def interpreter(self) -> Path:
        """The Python of its own: that of the environment beside this one, unless IQRL_MYOSUITE_PYTHON names another."""
        beside = f"{sys.prefix}-{self.name}/bin/python"
        return Path(os.environ.get(f"IQRL_{self.name.upper()}_PYTHON") or beside)

    def missing(self) -> str:
        """What to do where the suite is not installed; empty where it is."""
        found = self.here or (self.may_be_apart and self.interpreter.is_file())
        return "" if found else f"not installed ({self.install})"


SUITES = {
    suite.name: suite
    for suite in (
        Suite("dmc", "DeepMind Control", "dm_control", "", 2, "episode_return"),
        # Its own pins name an older MuJoCo than the tested one, which works, too.
        Suite("metaworld", "MetaWorld", "metaworld", "pip install --no-deps metaworld==3.1.1", 2, "success"),
        Suite("myosuite", "MyoSuite", "myosuite", "make myosuite", 1, "success", may_be_apart=True),
        Suite("gym", "Gymnasium", "gymnasium", "pip install gymnasium", 1, "episode_return"),
    )
}


def suite_of(task: str) -> Suite:
    """The suite of a task, by its name alone."""
    prefixes = {"gym:": "gym", "mw-": "metaworld", "myo-": "myosuite"}
    return SUITES[next((suite for prefix, suite in prefixes.items() if task.startswith(prefix)), "dmc")]
