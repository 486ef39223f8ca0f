"""What can be wrong with a sweep that loads: arms that are equal, and changes that change nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from ablations.sweep import Arm, PlannedRun, Sweep, arm_layers, resolve
from ablations.sweep_file import SCALES, at_scale, find, read, shown, within
from iqrl import config
from iqrl.errors import InputError


def problems(name: str) -> list[str]:
    """One line for each thing that is wrong with a sweep, at any of its scales; none if it is right."""
    path = find(name)
    try:
        content = read(path)
        found: dict[str, None] = {}  # in order, each once
        for scale in SCALES:
            if scale == "full" or scale in content:
                with within(shown(path)):
                    sweep = resolve(path.stem, content, scale)
                where = shown(path) if scale == "full" else f"{shown(path)}: lite"
                for problem in _equal_arms(sweep):
                    found[f"{where}: {problem}"] = None
                for problem in _idle(sweep, content, scale):
                    found[f"{where}: {problem}"] = None
        return list(found)
    except InputError as error:
        return [str(error)]


def _equal_arms(sweep: Sweep) -> Iterator[str]:
    """Pairs of arms that run the same runs wherever both run."""
    if len(sweep.arms) < 2:
        yield f"arm {sweep.arms[0].name}: is alone; expected another to compare it with"
    runs: dict[str, dict[tuple[str, int], str]] = {arm.name: {} for arm in sweep.arms}
    for run in sweep.runs:
        runs[run.arm][run.config.task, run.config.seed] = run.name
    for a, b in itertools.combinations(runs, 2):
        common = runs[a].keys() & runs[b].keys()
        if common and all(runs[a][place] == runs[b][place] for place in common):
            yield f"arm {b}: is the same configuration as arm {a}"
    labels: dict[str, str] = {}
    for arm in sweep.arms:
        if arm.label in labels:
            yield f"arm {arm.name}: label={arm.label}: arm {labels[arm.label]} has it too"
        labels[arm.label] = arm.name


def _idle(sweep: Sweep, content: Mapping[str, Any], scale: str) -> Iterator[str]:
    """Keys of the base and of arms that could be left out without changing any run.

    At lite scale, where a preset may set what the arms of full scale set, only `lite.arms` counts.
    """
    base, _ = at_scale(content, scale)
    first = {(run.arm, run.config.task): run for run in reversed(sweep.runs)}
    for key in (content.get("base") or {}) if scale == "full" else ():
        if key == "agent" or key.startswith("train."):  # how to execute a run changes nothing, rightly
            continue
        without = {k: v for k, v in base.items() if k != key}
        if not any(_matters(arm, without, first) for arm in sweep.arms):
            yield f"base: {key}={base[key]}: is the default; leave it out"
    for arm in sweep.arms:
        said = arm.delta if scale == "full" else content["lite"].get("arms", {}).get(arm.name, {})
        for key in [k for k in said if k in arm.delta]:
            if key == "agent":
                idle = arm.agent == base.get("agent", "iqrl")
            else:
                idle = not _matters(arm.without(key), base, first)
            if idle:
                yield f"arm {arm.name}: {key}={arm.delta[key]}: is the default here; leave it out"


def _matters(arm: Arm, base: Mapping[str, Any], runs: Mapping[tuple[str, str], PlannedRun]) -> bool:
    """Whether the arm, changed so, would run anything other than `runs` (of its first seed)."""
    for task in arm.tasks:
        run = runs[arm.name, task].config
        rest = {"task": task, "seeds": [run.seed], "train": {"env_steps": run.train.env_steps}}
        try:
            other = config.resolve([*arm_layers(arm, base), ("sweep", rest)])[0][0]
        except InputError:  # it cannot be left out
            return True
        if _plain(other) != _plain(run):
            return True
    return False


def _plain(run: config.RunConfig) -> dict[str, Any]:
    """What determines a run's result, but for the run it starts from."""
    content = run.resolved()
    content["agent"] = {k: v for k, v in content["agent"].items() if k not in ("profile", "init_from")}
    return {k: v for k, v in content.items() if k != "preset"}
