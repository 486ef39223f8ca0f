"""Tables + sweep manifests -> studies.

Manifests of one name in several folders are one sweep, of all their runs. Runs of no sweep are a study of their own,
with arms told apart by the configuration keys that differ.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.audit import absent_seeds, checked, telling, without_duplicates
from analysis.display import Display, from_manifest
from analysis.errors import InputError
from analysis.manifests import merged, read_manifests
from analysis.runs import RunTables, records
from analysis.studies import UNLISTED, Arm, Problem, Study


def build(
    tables: RunTables,
    folders: list[Path],
    sweep: str | None = None,
    short: str = "cut",
    at: int | None = None,
    display: Display | None = None,
) -> tuple[list[Study], list[Problem]]:
    """All studies of `folders`, or the one named `sweep`; and the problems that belong to none.

    Raises:
        InputError: there is no such sweep, two folders have different arms under its name, a study has no arm or task
            that `display` names, or nothing to show at all.
    """
    display = display or Display()
    manifests, problems = read_manifests(folders)
    names = list(dict.fromkeys(manifest["name"] for manifest in manifests))
    runs, duplicates = without_duplicates(tables.runs, tables)
    listed = {row["run"] for manifest in manifests for row in manifest["runs"]}
    unlisted = runs[~runs["run"].isin(listed)]
    if sweep is not None and sweep not in [*names, UNLISTED]:
        known = ", ".join(sorted(names)) or "none"
        unreadable = "".join(f"; {problem}" for problem in problems)
        raise InputError(f"sweep={sweep}: no such sweep in the given runs; there are: {known}{unreadable}")
    studies = []
    for name in names:
        if sweep in (None, name):
            manifest = merged([manifest for manifest in manifests if manifest["name"] == name])
            studies.append(_from_manifest(manifest, runs, tables, short, at, duplicates, display))
    if sweep in (None, UNLISTED) and len(unlisted):
        own = [problem for problem in duplicates if problem.run not in listed]
        studies.append(_from_unlisted(unlisted, tables, short, at, own, display))
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


def _from_manifest(
    manifest: dict[str, Any],
    runs: pd.DataFrame,
    tables: RunTables,
    short: str,
    at: int | None,
    duplicates: list[Problem],
    display: Display,
) -> Study:
    arms = [Arm(arm["name"], str(arm.get("label") or arm["name"]), arm["agent"]) for arm in manifest["arms"]]
    listed = pd.DataFrame(manifest["runs"], columns=["run", "arm", "task", "seed", "env_steps"])
    display = display.over(from_manifest(manifest.get("display", {})))
    arms, listed, every = _chosen(manifest["name"], arms, listed, display)
    own = [problem for problem in duplicates if problem.run in set(listed["run"])]
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
    return checked(
        Study(
            name=manifest["name"], arms=arms, members=members, tables=tables, problems=problems,
            title=texts["title"] or manifest["name"], question=texts["question"], finding=texts["finding"],
            figure=texts["figure"] or "curves", note=note, at=at, display=display, listed=every,
        ),
        short,
    )  # fmt: skip


def _chosen(
    name: str, arms: list[Arm], members: pd.DataFrame, display: Display
) -> tuple[list[Arm], pd.DataFrame, list[Arm]]:
    """The arms and members that are to be shown, in their order; and all arms, by which go the colours."""
    display.check(name, [arm.name for arm in arms], sorted(set(members["task"])))
    by_name = {arm.name: replace(arm, label=display.labels.get(arm.name, arm.label)) for arm in arms}
    shown = [by_name[arm] for arm in display.arms or by_name]
    kept = members["arm"].isin([arm.name for arm in shown])
    if display.tasks:
        kept &= members["task"].isin(display.tasks)
    return shown, members[kept], list(by_name.values())


def _from_unlisted(
    runs: pd.DataFrame, tables: RunTables, short: str, at: int | None, own: list[Problem], display: Display
) -> Study:
    """Runs of no sweep: an arm is an agent and the values of those keys that differ within one of its tasks."""
    readable = runs[runs["agent"] != ""]
    arms: dict[str, Arm] = {}
    names: dict[Any, str] = {}
    presets: set[str] = set()
    for agent, group in readable.groupby("agent"):
        configs = {index: telling(text) for index, text in group["config"].items()}
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
    members = readable.assign(arm=pd.Series(names, dtype=object))
    shown, members, every = _chosen(UNLISTED, [arms[label] for label in sorted(arms)], members, display)
    problems = list(own)
    for row in records(runs[runs["agent"] == ""]):
        problems.append(Problem("unreadable", row.run, row.reason, "left out"))
    problems += absent_seeds(members)
    note = "" if presets <= {"default"} else f"preset: {', '.join(sorted(presets))}"
    study = Study(
        name=UNLISTED, arms=shown, members=members, tables=tables,
        problems=problems, title="Runs of no sweep", note=note, at=at, display=display, listed=every,
    )  # fmt: skip
    return checked(study, short)


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
