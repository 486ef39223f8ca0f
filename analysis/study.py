"""Tables + sweep manifests -> studies: arms, aligned scores, and a list of everything that is missing.

A study is what one set of figures shows: the runs of one sweep, or all runs that no sweep lists. It decides,
once for all figures, which runs count:

* failed, unreadable and NaN runs are left out;
* manifests of one name in several folders are one sweep, of all their runs;
* of two folders with one identity the more complete one counts, a failed one last;
* inside one arm and task, a run whose configuration (seed aside) is not that of the majority is left out;
* a run that has not reached its budget yet cuts its arm at the last common env step (``short=cut``), or is
  left out (``short=drop``).

Each such decision is a `Problem`, printed on the terminal, on the figures and in the report.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import InputError
from analysis.runs import RunTables, records
from analysis.scales import quantity, scale
from analysis.statistics import is_recent

UNLISTED = "runs"  # the study of all runs that no sweep lists


def _telling(config: str) -> dict[str, Any]:
    """What of a run's configuration may make an arm: not what names the run, nor how it is only looked at.

    An agent's file is at another place for every submission; the run that one starts from is of the same seed.
    """
    kept = {
        key: value
        for key, value in json.loads(config).items()
        if key not in ("seed", "task", "agent.source") and not key.startswith("eval.")
    }
    if kept.get("agent.init_from"):
        kept["agent.init_from"] = re.sub(r"-s\d+-[0-9a-f]{8}$", "", kept["agent.init_from"])
    return kept


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
    listed: list[Arm] = field(init=False)  # all arms, those without a run that counts too: by them go the colours

    def __post_init__(self) -> None:
        self.listed = list(self.arms)

    @cached_property
    def tasks(self) -> list[str]:
        return sorted(self.members["task"].unique())

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
            table = next(t for t in self._series.values() if quantity in t.columns)
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
        keys = self._keys.get((arm, task), [])
        columns = self._columns(quantity)
        values = np.full((len(keys), len(steps)), np.nan)
        for i, key in enumerate(keys):
            own_steps, own = columns.get(str(key), (np.empty(0), np.empty(0)))
            place = np.searchsorted(own_steps, steps, side="right") - 1
            if len(own):
                values[i] = np.where(place >= 0, own[np.maximum(place, 0)], np.nan)
        return values

    def returns(self, task: str) -> Iterator[tuple[Arm, np.ndarray, np.ndarray]]:
        """Each arm with runs on a task, the env steps (steps,) of its curve there, and scores (runs, steps).

        Scores are in the task's own unit: mean returns, or percent of episodes that succeed.
        """
        for arm in self.arms:
            if len(self.of(arm.name, task)):
                steps = self.grid(arm.name, task)
                yield arm, steps, self.runs(arm.name, task, quantity(task), steps)

    @cached_property
    def _keys(self) -> dict[tuple[str, str], list[str]]:
        """(arm, task) -> keys of its runs, by seed."""
        groups = self.members.sort_values("seed", kind="stable").groupby(["arm", "task"])["key"]
        return {(str(arm), str(task)): list(keys) for (arm, task), keys in groups}

    def scores(self, arm: str, steps: np.ndarray, tasks: list[str] | None = None) -> list[np.ndarray]:
        """Normalised scores, one (runs, steps) array a task, of the tasks with a known scale."""
        return [self.runs(arm, task, "score", steps) for task in tasks or self.normalised_tasks]

    def common_tasks(self, arms: list[Arm] | None = None) -> list[str]:
        """Tasks on which each of the arms has a run."""
        sets = [set(self.members.loc[self.members["arm"] == arm.name, "task"]) for arm in arms or self.arms]
        return [task for task in self.tasks if all(task in tasks for tasks in sets)]

    def shared_tasks(self, arms: list[Arm] | None = None) -> list[str]:
        """Tasks with a known scale on which each of the arms has a run."""
        return [task for task in self.common_tasks(arms) if task in self.normalised_tasks]


# ----------------------------------------------------------------------------------------------------- building studies


MANIFEST: dict[str, type] = {"name": str, "arms": list, "runs": list}
MANIFEST_ARM: dict[str, type] = {"name": str, "agent": str}
MANIFEST_RUN: dict[str, type] = {"run": str, "arm": str, "task": str, "seed": int, "env_steps": int}


def _read_manifest(path: Path) -> dict[str, Any]:
    """One sweep manifest with all that `_from_manifest` asks of it.

    Raises:
        ValueError: it is not JSON, lacks a key or has one of another type, or a run is of an arm that it has not.
        OSError: it cannot be read.
    """
    manifest = json.loads(path.read_text())
    _require(manifest, MANIFEST, "the manifest")
    if manifest["name"] == UNLISTED:
        raise ValueError(f"name {UNLISTED!r} is that of the runs of no sweep")
    for i, arm in enumerate(manifest["arms"]):
        _require(arm, MANIFEST_ARM, f"arms[{i}]")
    arms = [arm["name"] for arm in manifest["arms"]]
    if len(set(arms)) < len(arms):
        raise ValueError(f"two arms of one name among {', '.join(arms)}")
    for i, run in enumerate(manifest["runs"]):
        _require(run, MANIFEST_RUN, f"runs[{i}]")
        if run["arm"] not in arms:
            raise ValueError(f"runs[{i}]: arm {run['arm']!r} is not among its arms")
    return manifest


def _require(entry: Any, types: dict[str, type], where: str) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is not a mapping")
    for key, kind in types.items():
        if not isinstance(entry.get(key), kind):
            wrong = f"{key!r} is not of type {kind.__name__}" if key in entry else f"no key {key!r}"
            raise ValueError(f"{where}: {wrong}")


def read_manifests(folders: list[Path]) -> tuple[list[dict[str, Any]], list[Problem]]:
    """All sweep manifests below `folders`; one that cannot be read is a problem, not an end."""
    manifests, problems = [], []
    for folder in folders:
        for path in sorted((folder / "sweeps").glob("*.json")):
            try:
                manifests.append(_read_manifest(path))
            except (ValueError, OSError) as error:
                detail = str(error).splitlines()[0]
                problems.append(Problem("unreadable", f"sweeps/{path.name}", detail, "left out"))
    return manifests, problems


def build(
    tables: RunTables,
    folders: list[Path],
    sweep: str | None = None,
    short: str = "cut",
    at: int | None = None,
) -> tuple[list[Study], list[Problem]]:
    """All studies of `folders`, or the one named `sweep`; and the problems that belong to none.

    Raises:
        InputError: there is no such sweep, two folders have different arms under its name, or nothing to show at all.
    """
    manifests, problems = read_manifests(folders)
    names = list(dict.fromkeys(manifest["name"] for manifest in manifests))
    runs, duplicates = _without_duplicates(tables.runs)
    listed = {row["run"] for manifest in manifests for row in manifest["runs"]}
    unlisted = runs[~runs["run"].isin(listed)]
    if sweep is not None and sweep not in [*names, UNLISTED]:
        known = ", ".join(sorted(names)) or "none"
        unreadable = "".join(f"; {problem}" for problem in problems)
        raise InputError(f"sweep={sweep}: no such sweep in the given runs; there are: {known}{unreadable}")
    studies = []
    for name in names:
        if sweep in (None, name):
            manifest = _merged([manifest for manifest in manifests if manifest["name"] == name])
            wanted = {row["run"] for row in manifest["runs"]}
            own = [problem for problem in duplicates if problem.run in wanted]
            studies.append(_from_manifest(manifest, runs, tables, short, at, own))
    if sweep in (None, UNLISTED) and len(unlisted):
        own = [problem for problem in duplicates if problem.run not in listed]
        studies.append(_from_unlisted(unlisted, tables, short, at, own))
    shown = [study for study in studies if len(study.members)]
    for study in studies:
        if not len(study.members):
            problems += [
                *study.problems,
                Problem("missing", study.name, "no run with an evaluation yet", "not drawn"),
            ]
    if not shown:
        where = ", ".join(map(str, folders))
        first = f"; first of {len(problems)} problems: {problems[0]}" if problems else ""
        raise InputError(f"runs={where}: no run with an evaluation to show{first}")
    return shown, problems


def _merged(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    """One sweep's manifests from several folders, say of two clusters, as one: the first, with the runs of all.

    Raises:
        InputError: their arms differ.
    """
    first = manifests[0]
    for other in manifests[1:]:
        if other["arms"] != first["arms"]:
            arms = [", ".join(arm["name"] for arm in manifest["arms"]) for manifest in (first, other)]
            told = f"{arms[0]}; and {arms[1]}" if arms[0] != arms[1] else f"{arms[0]}, with other labels or agents"
            raise InputError(f"sweep={first['name']}: two of the given folders have it with different arms: {told}")
    runs = {(row["run"], row["arm"]): row for manifest in manifests for row in manifest["runs"]}
    return first | {"runs": list(runs.values())}


def _without_duplicates(runs: pd.DataFrame) -> tuple[pd.DataFrame, list[Problem]]:
    """Of runs with one identity keep the most complete; name the others.

    A copy that would be left out for how it ended is kept only where there is no other, however far it got. Whatever
    its folder is called, the one kept has the name that ends in the identity, if one has: by that sweeps list it.
    """
    identity = runs["identity"].where(runs["identity"] != "", runs["run"])
    named = [bool(i) and run.endswith(f"-{i[:8]}") for run, i in zip(runs["run"], runs["identity"], strict=True)]
    names = runs["run"][named].groupby(identity[named]).first()
    runs = runs.assign(run=identity.map(names).fillna(runs["run"]))
    usable = ~runs["status"].isin(["failed", "unreadable"])
    columns: dict[str, Any] = {"identity": identity, "usable": usable, "done": runs["status"] == "done", "named": named}
    order = runs.assign(**columns).sort_values(
        ["usable", "done", "env_step", "named", "created", "key"], ascending=[False] * 4 + [True] * 2, kind="stable"
    )
    repeated = order.duplicated("identity")
    kept = order[~repeated].set_index("identity")
    problems = []
    for row in records(order[repeated]):
        other = kept.loc[row.identity]
        differs = f" ({row.precision}, the other {other['precision']})" if row.precision != other["precision"] else ""
        detail = f"{row.key} has the identity of {other['key']}{differs}"
        problems.append(Problem("duplicate", row.run, detail, "left out"))
    return runs.loc[order.index[~repeated]].sort_index(), problems


def _from_manifest(
    manifest: dict[str, Any],
    runs: pd.DataFrame,
    tables: RunTables,
    short: str,
    at: int | None,
    own: list[Problem],
) -> Study:
    arms = [Arm(arm["name"], str(arm.get("label") or arm["name"]), arm["agent"]) for arm in manifest["arms"]]
    listed = pd.DataFrame(manifest["runs"], columns=["run", "arm", "task", "seed", "env_steps"])
    found = runs.rename(columns={"task": "own_task", "seed": "own_seed"})
    members = listed.merge(found, on="run", how="left")
    problems = list(own)
    for row in records(members[members["key"].isna()]):
        detail = f"{row.arm} on {row.task}, seed {row.seed} is in the sweep and has no run directory"
        problems.append(Problem("missing", row.run, detail, "not there"))
    members = members[members["key"].notna()].assign(budget=lambda frame: frame["env_steps"])
    readable = members["status"] != "unreadable"
    other = readable & ((members["task"] != members["own_task"]) | (members["seed"] != members["own_seed"]))
    for row in records(members[other]):
        itself, said = f"{row.own_task}, seed {row.own_seed:.0f}", f"{row.task}, seed {row.seed}"
        detail = f"{itself}, by its own configuration; {said} by the sweep"
        problems.append(Problem("configuration", row.run, detail, "left out"))
    members = members[~other]
    scale = "scale: lite" if manifest.get("scale") == "lite" else ""
    texts = {key: str(manifest.get(key) or "") for key in ("title", "question", "finding", "figure", "note")}
    note = "; ".join(filter(None, (texts["note"], scale)))
    return _checked(
        Study(
            name=manifest["name"], arms=arms, members=members, tables=tables, problems=problems,
            title=texts["title"] or manifest["name"], question=texts["question"], finding=texts["finding"],
            figure=texts["figure"] or "curves", note=note, at=at,
        ),
        short,
    )  # fmt: skip


def _from_unlisted(runs: pd.DataFrame, tables: RunTables, short: str, at: int | None, own: list[Problem]) -> Study:
    """Runs of no sweep: an arm is an agent and the values of those keys that differ within one of its tasks."""
    readable = runs[runs["agent"] != ""]
    arms: dict[str, Arm] = {}
    names: dict[Any, str] = {}
    presets: set[str] = set()
    for agent, group in readable.groupby("agent"):
        configs = {index: _telling(text) for index, text in group["config"].items()}
        keys = _naming_keys(group["task"], configs)
        for index, config in configs.items():
            parts = [
                str(config.get(key))
                if key == "preset"
                else f"{key.removeprefix('agent.')}={config.get(key, 'default')}"
                for key in keys  # one that came later is not in configurations where it is not set
            ]
            label = f"{agent} ({', '.join(parts)})" if parts else str(agent)
            names[index] = label
            arms[label] = Arm(label, label, str(agent))
            presets.add(config.get("preset", "default"))
    members = readable.assign(arm=pd.Series(names))
    problems = list(own)
    for row in records(runs[runs["agent"] == ""]):
        problems.append(Problem("unreadable", row.run, row.reason, "left out"))
    problems += _absent_seeds(members)
    note = "" if presets <= {"default"} else f"preset: {', '.join(sorted(presets))}"
    study = Study(
        name=UNLISTED, arms=[arms[label] for label in sorted(arms)], members=members, tables=tables,
        problems=problems, title="Runs of no sweep", note=note, at=at,
    )  # fmt: skip
    return _checked(study, short)


def _naming_keys(tasks: pd.Series, configs: dict[Any, dict[str, Any]]) -> list[str]:
    """The keys that tell an agent's arms apart: those that differ, but not what a differing preset sets itself."""
    keys = _differing_keys(tasks, configs)
    if "preset" not in keys:
        return keys
    presets = pd.Series({index: config.get("preset") for index, config in configs.items()})
    within: set[str] = set()
    for _, own in presets.groupby(presets):
        within |= set(_differing_keys(tasks[own.index], {index: configs[index] for index in own.index}))
    return ["preset", *sorted(within)]


def _differing_keys(tasks: pd.Series, configs: dict[Any, dict[str, Any]]) -> list[str]:
    """Configuration keys with more than one value on one task (a key that only follows the task is no arm)."""
    differing = set()
    for _, indices in tasks.groupby(tasks).groups.items():
        for key in set().union(*(configs[index] for index in indices)):
            if len({json.dumps(configs[index].get(key)) for index in indices}) > 1:
                differing.add(key)
    return sorted(differing)


def _absent_seeds(members: pd.DataFrame) -> list[Problem]:
    """Seeds that an arm has on one task and not on another."""
    problems = []
    for arm, group in members.groupby("arm"):
        seeds = set(group["seed"])
        for task, rows in group.groupby("task"):
            for seed in sorted(seeds - set(rows["seed"])):
                detail = f"no run of seed {seed}, which {arm} has on other tasks"
                problems.append(Problem("missing", f"{arm} on {task}, seed {seed}", detail, "not there"))
    return problems


def _checked(study: Study, short: str) -> Study:
    """Decide which runs count; name every one that does not."""
    members, problems = study.members, study.problems
    keep = pd.Series(True, index=members.index)

    def leave_out(index: Any, kind: str, detail: str) -> None:
        problems.append(Problem(kind, str(members.at[index, "run"]), detail, "left out"))
        keep[index] = False

    evaluations = study.tables.evaluations
    spoiled = evaluations[~np.isfinite(evaluations["mean_return"])].groupby("key", observed=True)["env_step"].min()
    for row in records(members):
        if row.status in ("failed", "unreadable"):
            leave_out(
                row.Index,
                row.status,
                row.reason + (f" at env step {row.env_step:.0f}" if row.env_step > 0 else ""),
            )
        elif row.env_step < 0:
            leave_out(row.Index, "short", "no evaluation yet")
        elif row.key in spoiled.index:
            leave_out(row.Index, "nan", f"return is not finite at env step {spoiled[row.key]}")
        if row.remarks:
            problems.append(Problem("remark", row.run, row.remarks, "counted" if keep[row.Index] else "left out"))
    for index, kind, detail in _odd_configurations(members[keep]):
        leave_out(index, kind, detail)
    furthest = members[keep].sort_values("env_step", ascending=False, kind="stable")
    for index in furthest.index[furthest.duplicated(["arm", "task", "seed"])]:
        row = members.loc[index]
        leave_out(index, "duplicate", f"a second run of {row['arm']} on {row['task']}, seed {row['seed']:.0f}")
    for row in records(members[keep]):
        if row.status != "torn" and row.env_step >= row.budget:
            continue
        kind = "torn" if row.status == "torn" else "short"
        detail = f"{row.env_step:.0f} of {row.budget:.0f} env steps" + (f", {row.reason}" if row.reason else "")
        if short == "drop":
            leave_out(row.Index, kind, detail)
        elif row.env_step < row.budget:
            problems.append(Problem(kind, str(row.run), detail, f"cuts {row.arm} there; short=drop leaves it out"))
        else:
            problems.append(Problem(kind, str(row.run), detail, "counted"))
    study.members = members[keep].astype({"seed": int, "budget": int, "env_step": int, "key": str, "pack": int})
    problems += _mixed(study)
    present = set(study.members["arm"])
    for arm in study.arms:
        if arm.name not in present:
            problems.append(Problem("missing", arm.label, "no run of this arm can be shown", "not drawn"))
    study.arms = [arm for arm in study.arms if arm.name in present]
    beyond = list[Problem]()
    if study.arms and study.at is not None and study.at > study.mark:
        ended = ", ".join(arm.label for arm in study.arms if study.common_step(arm.name) == study.mark)
        detail = f"the last common env step of {ended} is {study.mark}"
        beyond = [Problem("not reached", f"at={study.at}", detail, f"compared at {study.mark}")]
    problems[:0] = [*beyond, *_old_values(study)]  # a shortened list lacks the last: these concern every number
    return study


def _old_values(study: Study) -> list[Problem]:
    """Arms with a run whose latest evaluation before the compared env step is not recent; evaluated at other intervals
    than the others, say.
    """
    problems = []
    for arm in study.arms:
        before = (steps[steps <= study.mark] for steps in study.evaluated(arm.name))
        oldest = min(steps.max(initial=-1) for steps in before)
        if 0 <= oldest and not is_recent(oldest, study.mark):
            detail = f"last evaluated at {oldest}, compared at {study.mark}"
            problems.append(Problem("old value", arm.label, detail, f"that of env step {oldest} counts"))
    return problems


def _mixed(study: Study) -> list[Problem]:
    """Arms whose runs differ in what is no part of their configuration and may change numbers all the same."""
    problems = []
    for arm in study.arms:
        own = study.of(arm.name)
        for column, what in (
            ("precision", "precision"),
            ("commit", "commit"),
            ("agent_file", "version of the agent's file"),
            ("episodes", "number of evaluation episodes"),
            ("every", "interval of evaluations"),
        ):
            counts = Counter(str(value)[:12] for value in own[column] if value not in ("", -1))
            if len(counts) > 1:
                shown = ", ".join(f"{value} ({count})" for value, count in counts.most_common())
                problems.append(Problem("remark", arm.label, f"runs of more than one {what}: {shown}", "counted"))
    return problems


def _odd_configurations(members: pd.DataFrame) -> list[tuple[Any, str, str]]:
    """Runs that differ from the majority of their arm and task in any value, or from the study's action repeat:
    (index, kind, what differs).
    """
    odd: list[tuple[Any, str, str]] = []
    names = ("preset", "agent.profile")  # of values, which are compared themselves
    configs = {
        index: {key: value for key, value in _telling(text).items() if key not in names}
        for index, text in members["config"].items()
    }

    def differences(indices: list[Any], keys: set[str]) -> None:
        for key in sorted(keys):
            values = {index: json.dumps(configs[index].get(key), default=str) for index in indices}
            usual, count = Counter(values.values()).most_common(1)[0]
            if count == len(indices):
                continue
            kind = "action repeat" if key.endswith("action_repeat") else "configuration"
            for index, value in values.items():
                if value != usual and index not in {index for index, _, _ in odd}:
                    odd.append((index, kind, f"{key}={value} where {count} of {len(indices)} runs have {usual}"))

    everything = set().union(*configs.values())
    differences(list(configs), {key for key in everything if key.endswith("action_repeat")})
    for _, group in members.groupby(["arm", "task"]):
        if len({json.dumps(configs[index], sort_keys=True) for index in group.index}) > 1:
            differences(list(group.index), set().union(*(configs[index] for index in group.index)))
    return odd
