"""A study is what one set of figures shows: the runs of one sweep, or all runs that no sweep lists.

It answers what figures and tables ask: which arms, tasks and seeds there are, and their values at given env steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd

from analysis import training
from analysis.display import Display
from analysis.runs import RunTables
from analysis.scales import quantity, scale
from analysis.several_tasks import one_agents, tasks_of
from analysis.statistics import Together

UNLISTED = "runs"  # the study of all runs that no sweep lists


@dataclass(frozen=True)
class Problem:
    """One thing that is not as it should be, and what was done about it."""

    kind: str  # missing, failed, torn, short, nan, duplicate, configuration, action repeat, unreadable, ...
    run: str  # run directory; where there is none, the arm, the sweep or the key that it is about
    detail: str
    effect: str  # "left out", "cuts its arm", "counted"

    def __str__(self) -> str:
        return f"{self.run}: {self.kind}: {self.detail} ({self.effect})"


@dataclass(frozen=True)
class Arm:
    """One line in a figure: runs of one configuration over tasks and seeds."""

    name: str
    label: str
    agent: str


@dataclass
class Study:
    """The runs of one sweep (or of none), ready for statistics.

    `members` has one row a run that counts: key, run, arm, task, seed, budget, env_step (last evaluation).
    """

    name: str
    arms: list[Arm]
    members: pd.DataFrame
    tables: RunTables
    problems: list[Problem] = field(default_factory=list)
    title: str = ""
    question: str = ""
    finding: str = ""
    figure: str = "curves"
    note: str = ""
    at: int | None = None  # compare arms at this env step instead of the last common one
    display: Display = Display()
    listed: list[Arm] = field(default_factory=list)  # all arms, without runs or not shown too: by them go the colours

    @cached_property
    def tasks(self) -> list[str]:
        there = set(self.members["task"])
        return [task for task in self.display.tasks if task in there] or sorted(there)

    def task_label(self, task: str) -> str:
        return self.display.labels.get(task, task)

    @property
    def reference(self) -> Arm:
        """The arm that the others are compared with."""
        return next((arm for arm in self.arms if arm.name == self.display.baseline), self.arms[0])

    @property
    def normalised_tasks(self) -> list[str]:
        """Tasks whose score has a known scale: all but Gymnasium's, of which five have one."""
        return [task for task in self.tasks if scale(task)]

    @property
    def seeds(self) -> tuple[int, int]:
        """Fewest and most seeds that an arm has on a task."""
        counts = self.seed_counts()
        return int(counts.min()), int(counts.max())

    def seed_counts(self, tasks: list[str] | None = None) -> pd.Series:
        """How many seeds each arm has on each task, or each of `tasks`: by (arm, task)."""
        members = self.members if tasks is None else self.members[self.members["task"].isin(tasks)]
        return members.groupby(["arm", "task"]).size()

    def of(self, arm: str, task: str | None = None) -> pd.DataFrame:
        """The members of an arm, on one task if it is given."""
        own = self.members[self.members["arm"] == arm]
        return own if task is None else own[own["task"] == task]

    def common_step(self, arm: str, task: str | None = None) -> int:
        """The last env step that every run of an arm (on a task) has reached."""
        return int(self.of(arm, task)["env_step"].min())

    @cached_property
    def mark(self) -> int:
        """The env step at which arms are compared: the last one that all of them have reached, or `at` before it."""
        last = min(self.common_step(arm.name) for arm in self.arms)
        return last if self.at is None else min(self.at, last)

    @cached_property
    def _series(self) -> dict[str, pd.DataFrame]:
        """Rows of the two time tables by run, for the runs of this study only."""
        keys = set(self.members["key"])
        evaluations, latents = self.tables.evaluations, self.tables.latents
        evaluations = evaluations[evaluations["key"].isin(keys)]
        return {
            "evaluations": evaluations.assign(score=self._normalised(evaluations)),
            "latents": latents[latents["key"].isin(keys)],
        }

    def _normalised(self, evaluations: pd.DataFrame) -> pd.Series:
        """The normalised score of each evaluation; NaN where a task has no scale."""
        tasks = evaluations["key"].map(self.members.drop_duplicates("key").set_index("key")["task"])
        score = pd.Series(np.nan, evaluations.index)
        for task in tasks.unique():
            if own := scale(task):
                rows = tasks == task
                score[rows] = own.normalised(evaluations.loc[rows, own.quantity])
        return score

    def _columns(self, quantity: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """key -> (env steps, values) of one quantity, evaluations first, then latents."""
        if quantity not in self._cached_columns:
            table = next((t for t in self._series.values() if quantity in t.columns), self.training)
            codes, uniques = pd.factorize(table["key"])
            steps, values = table["env_step"].to_numpy(), table[quantity].to_numpy(float)
            order = np.argsort(codes, kind="stable")
            bounds = np.searchsorted(codes[order], np.arange(len(uniques) + 1))
            self._cached_columns[quantity] = {
                str(key): (steps[order[a:b]], values[order[a:b]])
                for key, a, b in zip(uniques, bounds, bounds[1:], strict=False)
            }
        return self._cached_columns[quantity]

    @cached_property
    def _cached_columns(self) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
        return {}

    @cached_property
    def training(self) -> pd.DataFrame:
        """Rows of training.csv of the runs of this study, read when they are first asked for."""
        return training.read(dict(sorted(zip(self.members["key"], map(tasks_of, self.members["config"]), strict=True))))

    @property
    def latents(self) -> pd.DataFrame:
        """Rows of the latent diagnostics of the runs of this study."""
        return self._series["latents"]

    def series(self, key: str, quantity: str) -> tuple[np.ndarray, np.ndarray]:
        """A run's env steps and its values of a quantity, each (rows,)."""
        return self._columns(quantity).get(key, (np.empty(0), np.empty(0)))

    def grid(self, arm: str, task: str | None = None) -> np.ndarray:
        """Env steps of an arm's curve (on a task): those of its most widely spaced run, up to the last common step."""
        last = self.common_step(arm, task)
        steps = min((run[run <= last] for run in self.evaluated(arm, task)), key=len)
        return np.unique(np.append(steps, last))

    def evaluated(self, arm: str, task: str | None = None) -> list[np.ndarray]:
        """The env steps at which each run of an arm (on a task) was evaluated."""
        columns = self._columns("score")
        return [columns[key][0] for key in self.of(arm, task)["key"]]

    def runs(self, arm: str, task: str, quantity: str, steps: np.ndarray) -> np.ndarray:
        """(runs, steps): each run's latest value at or before each env step; NaN before its first."""
        keys = self.keys(arm, task)
        values = np.full((len(keys), len(steps)), np.nan)
        for i, key in enumerate(keys):
            own_steps, own = self.series(key, quantity)
            place = np.searchsorted(own_steps, steps, side="right") - 1
            if len(own):
                values[i] = np.where(place >= 0, own[np.maximum(place, 0)], np.nan)
        return values

    def returns(self, task: str) -> Iterator[tuple[Arm, np.ndarray, np.ndarray]]:
        """Each arm with runs on a task, the env steps (steps,) of its curve there, and scores (runs, steps).

        In the unit of the task: mean returns, or percent of episodes that succeed.
        """
        for arm in self.arms:
            if len(self.of(arm.name, task)):
                steps = self.grid(arm.name, task)
                yield arm, steps, self.runs(arm.name, task, quantity(task), steps)

    @cached_property
    def _keys(self) -> dict[tuple[str, str], list[tuple[str, int]]]:
        """(arm, task) -> keys and seeds of its runs, by seed."""
        groups = self.members.sort_values("seed", kind="stable").groupby(["arm", "task"])
        return {(str(arm), str(task)): list(zip(own["key"], own["seed"], strict=True)) for (arm, task), own in groups}

    def keys_and_seeds(self, arm: str, task: str) -> list[tuple[str, int]]:
        """The runs of an arm on a task, as the rows of `runs` have them: by seed."""
        return self._keys.get((arm, task), [])

    def keys(self, arm: str, task: str) -> list[str]:
        return [key for key, _ in self.keys_and_seeds(arm, task)]

    def scores(self, arm: str, steps: np.ndarray, tasks: list[str] | None = None) -> list[np.ndarray]:
        """Normalised returns, one (runs, steps) array a task, of the tasks with a known scale."""
        return self.values(arm, "score", steps, tasks or self.normalised_tasks)

    def values(self, arm: str, quantity: str, steps: np.ndarray, tasks: list[str]) -> list[np.ndarray]:
        """One (runs, steps) array a task, as statistics take them."""
        made = [self.runs(arm, task, quantity, steps) for task in tasks]
        return Together(made) if self.together(arm, tasks) else made

    def together(self, arm: str, tasks: list[str]) -> bool:
        """Whether each run of an arm is of one agent on all these tasks: then rows of `runs` are, too."""
        return one_agents([self.keys(arm, task) for task in tasks])

    def of_different_runs(self, arm: str, tasks: list[str]) -> list[str]:
        """The tasks; of an arm that learns all of them with one agent the first, for what is the whole run's."""
        return tasks[:1] if self.together(arm, tasks) else tasks

    def common_tasks(self, arms: list[Arm] | None = None) -> list[str]:
        """Tasks on which each of the arms has a run."""
        sets = [set(self.members.loc[self.members["arm"] == arm.name, "task"]) for arm in arms or self.arms]
        return [task for task in self.tasks if all(task in tasks for tasks in sets)]

    def shared_tasks(self, arms: list[Arm] | None = None) -> list[str]:
        """Tasks with a known scale on which each of the arms has a run."""
        return [task for task in self.common_tasks(arms) if task in self.normalised_tasks]
