"""From a sweep's file to its runs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ablations import display
from ablations.sweep_file import SCALES, at_scale, find, one_of, read, shown, within
from iqrl import config
from iqrl.config import RunConfig
from iqrl.environments import tasks
from iqrl.errors import InputError

GROUPS = ("easy", "medium", "hard")  # of tasks


@dataclass(frozen=True)
class Arm:
    """One configuration of a sweep, as the file says it.

    Attributes:
        delta: what differs from the base, by dotted key; `preset` and `agent` count as keys too.
        tasks: canonical names; one may be of several tasks, which are then one agent's.
        start_from: (arm, task) whose run gives this arm's runs their representation, or None.
        dropped: keys of the base that it does not have, being of another agent.
    """

    name: str
    label: str
    agent: str
    delta: Mapping[str, Any]
    tasks: tuple[str, ...]
    start_from: tuple[str, str] | None = None
    dropped: tuple[str, ...] = ()

    def without(self, key: str) -> Arm:
        """The arm with one change fewer."""
        return dataclasses.replace(self, delta={k: v for k, v in self.delta.items() if k != key})


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
        words: how to execute it, as on a command line (`train.precision=float32`); not part of its identity.
        after: directory name of a run that has to be complete before this one starts; "" if none.
    """

    arm: str
    config: RunConfig
    words: tuple[str, ...] = ()
    after: str = ""

    @functools.cached_property
    def name(self) -> str:
        """Name of the run's directory."""
        return self.config.directory_name


@dataclass(frozen=True)
class Sweep:
    """A sweep at one scale.

    Attributes:
        name: of its manifest and figures: the file's, and the scale's where it is not the file's own default.
        note: text that every figure bears; "" at full scale.
        display: how figures show it (ablations/display.py).
        runs: arm after arm, task after task. A run that two arms share is there twice.
    """

    name: str
    title: str
    question: str
    finding: str
    figure: str
    scale: str
    note: str
    arms: list[Arm]
    runs: list[PlannedRun]
    display: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def unique_runs(self) -> list[PlannedRun]:
        """What there is to execute: every run once, those that others start from first."""
        unique = {run.name: run for run in reversed(self.runs)}
        return sorted(reversed(unique.values()), key=lambda run: bool(run.after))

    def remarks(self) -> list[str]:
        """What its file does not say in so many words."""
        return [
            f"{arm.name}: another agent, without the base's {', '.join(arm.dropped)}"
            for arm in self.arms
            if arm.dropped
        ]

    def manifest(self) -> dict[str, Any]:
        """What `runs/sweeps/<name>.json` holds: which run belongs to which arm."""
        texts = ("name", "title", "question", "finding", "figure", "scale", "note")
        content: dict[str, Any] = {key: getattr(self, key) for key in texts}
        content["arms"] = [{"name": arm.name, "label": arm.label, "agent": arm.agent} for arm in self.arms]
        agents = {arm.name: arm.agent for arm in self.arms}
        content["runs"] = [
            {"run": run.name, "arm": run.arm, "agent": agents[run.arm], "task": c.task, "seed": c.seed}
            | {"env_steps": c.train.env_steps}
            for run in self.runs
            for c in [run.config]
        ]
        return content | ({"display": dict(self.display)} if self.display else {})


def load(name: str, scale: str | None = None) -> Sweep:
    """The sweep called `name` (or the file of that path) at a scale; the file's own default if None.

    Raises:
        InputError: naming the file, and the arm and key, where there is one.
    """
    path = find(name)
    content = read(path)
    with within(shown(path)):
        return resolve(path.stem, content, scale)


def resolve(stem: str, content: Mapping[str, Any], scale: str | None = None) -> Sweep:
    """The runs of a sweep file's content, as `read` gives it.

    Raises:
        InputError: naming the arm and key.
    """
    if stem == "runs" or "%" in stem:
        raise InputError(f"{stem!r} is no name for a sweep: runs of no sweep go by `runs`, and Slurm replaces %")
    own = content.get("scale", "full")
    scale = own if scale is None else one_of("scale", scale, SCALES)
    base, arms_written = at_scale(content, scale)
    chosen = content if scale == "full" else {**content, **content["lite"]}
    all_tasks, seeds = _tasks(chosen["tasks"]), config.parse_seeds(chosen["seeds"])
    budgets = _budgets(chosen["env_steps"], all_tasks)
    with within("base"):
        config.resolve([("base", _nested(base))])
    arms, runs = [], dict[str, dict[tuple[str, int], PlannedRun]]()
    for name, said in arms_written.items():
        with within(f"arm {name}"):
            arms.append(_arm(name, said, base, all_tasks))
            runs[name] = _runs(arms[-1], base, seeds, budgets)
    files = dict[str, str]()  # of agents of one's own, by what they register
    for name, of_arm in runs.items():
        first = next(iter(of_arm.values())).config
        if files.setdefault(first.agent.name, first.source) != first.source:
            raise InputError(f"arm {name}: {first.source} registers {first.agent.name!r}, as another arm's file does")
    for arm in arms:
        if arm.start_from:
            with within(f"arm {arm.name}"):
                runs[arm.name] = _starting_from_others(arm, {a.name: a for a in arms}, runs)
    every_task = list(dict.fromkeys([*_tasks(content["tasks"]), *all_tasks]))
    shown_as = display.check(content.get("display", {}), list(content["arms"]), every_task)
    return Sweep(
        name=stem if scale == own else f"{stem}-{scale}",
        scale=scale,
        note=chosen.get("note", ""),
        title=content["title"],
        question=content["question"].strip(),
        finding=content["finding"].strip(),
        figure=content.get("figure", "arms"),
        arms=arms,
        runs=[run for of_arm in runs.values() for run in of_arm.values()],
        display=display.at_scale(shown_as, list(arms_written), all_tasks),
    )


def _arm(name: str, said: Mapping[str, Any], base: Mapping[str, Any], all_tasks: Sequence[str]) -> Arm:
    own = _tasks(said["tasks"]) if "tasks" in said else list(all_tasks)
    for task in own:
        if task not in all_tasks:
            raise InputError(f"tasks: {task} is not one of the sweep's tasks")
    start = said.get("start_from")
    if start is not None and (not isinstance(start, dict) or set(start) != {"arm", "task"}):
        raise InputError(f"start_from={start}: expected {{arm: ARM, task: TASK}} of the run to start from")
    label = said.get("label", name)
    if not isinstance(label, str) or not label.strip():
        raise InputError(f"label={label}: expected text")
    delta = {k: v for k, v in said.items() if k not in ("label", "tasks", "start_from")}
    agent = str(said.get("agent", base.get("agent", "iqrl")))
    source = (str(start["arm"]), tasks.parse(start["task"]).name) if start else None
    dropped = [k for k in base if k.startswith("agent.") and k not in delta] if _another(agent, base) else []
    return Arm(name, label, agent, delta, tuple(own), source, tuple(dropped))


def _runs(
    arm: Arm, base: Mapping[str, Any], seeds: Sequence[int], budgets: Mapping[str, int]
) -> dict[tuple[str, int], PlannedRun]:
    """An arm's runs by task and seed. Whatever the number of seeds, each task is resolved once."""
    layers = arm_layers(arm, base)
    execution = {k: v for _, layer in layers for k, v in layer.get("train", {}).items()}
    words = tuple(f"train.{k}={v}" for k, v in execution.items())
    runs = {}
    for task in arm.tasks:
        rest = {"task": task, "seeds": list(seeds), "train": {"env_steps": budgets[task]}}
        for run in config.resolve([*layers, ("sweep", rest)])[0]:
            runs[task, run.seed] = PlannedRun(arm.name, run, words)
    return runs


def arm_layers(arm: Arm, base: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The base's layer and the arm's, for `config.resolve`; an arm of another agent drops the base's."""
    kept = {k: v for k, v in base.items() if not (_another(arm.agent, base) and k.startswith("agent."))}
    return [("base", _nested(kept)), (f"arm {arm.name}", _nested(arm.delta))]


def _another(agent: str, base: Mapping[str, Any]) -> bool:
    return agent != str(base.get("agent", "iqrl"))


def _starting_from_others(
    arm: Arm, arms: Mapping[str, Arm], runs: Mapping[str, Mapping[tuple[str, int], PlannedRun]]
) -> dict[tuple[str, int], PlannedRun]:
    """The arm's runs, each beginning with what a run of another arm has learned; their identities say so."""
    assert arm.start_from is not None
    source, task = arm.start_from
    if source not in arms or arms[source].start_from:
        expected = ", ".join(name for name, a in arms.items() if not a.start_from)
        raise InputError(f"start_from.arm={source}: expected an arm that starts from scratch: {expected}")
    if task not in arms[source].tasks:
        expected = ", ".join(arms[source].tasks)
        raise InputError(f"start_from.task={task}: arm {source} does not run it; expected one of {expected}")
    started = {}
    for (own_task, seed), run in runs[arm.name].items():
        if not hasattr(run.config.settings, "init_from"):
            raise InputError(f"start_from: agent {arm.agent} cannot start from another run")
        first = runs[source][task, seed].name
        settings = dataclasses.replace(run.config.settings, init_from=first)
        changed = dataclasses.replace(run.config, settings=settings)
        started[own_task, seed] = dataclasses.replace(run, config=changed, after=first)
    return started


# --- checking values


def _tasks(value: Any) -> list[str]:
    if not isinstance(value, list) or not value:
        raise InputError(f"tasks={value}: expected a list, such as [walker-walk, cheetah-run]")
    with within("tasks"):
        found = [tasks.parse(name).name for name in value]
        for name in found:
            if found.count(name) > 1:
                raise InputError(f"{name} is named twice")
    return found


def _budgets(value: Any, all_tasks: Sequence[str]) -> dict[str, int]:
    """Env steps of each task, from one number or numbers by task group or task."""
    said = value if isinstance(value, Mapping) else dict.fromkeys(GROUPS, value)
    for key, steps in said.items():
        if key not in GROUPS and key not in all_tasks:
            raise InputError(f"env_steps.{key}: expected {', '.join(GROUPS)} or one of the sweep's tasks")
        if isinstance(steps, bool) or not isinstance(steps, int | float) or not 1 <= steps == steps // 1:
            where = f"env_steps.{key}" if said is value else "env_steps"
            raise InputError(f"{where}={steps}: expected a whole number of environment steps, at least 1")
    groups = {task: tasks.parse(task).group for task in all_tasks}
    for task, group in groups.items():
        if task not in said and group not in said:
            raise InputError(f"env_steps.{group}: missing; {task} is a {group} task")
    return {task: int(said.get(task, said.get(group))) for task, group in groups.items()}


def _nested(delta: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as the nested layer that `config.resolve` takes."""
    layer: dict[str, Any] = {}
    for key, value in delta.items():
        section, dot, name = key.partition(".")
        if key == "agent":
            section, dot, name = "agent", ".", "name"
        if dot:
            layer.setdefault(section, {})[name] = value
        else:
            layer[key] = value
    return layer
