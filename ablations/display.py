"""How the figures of a sweep show it: the key `display` of its file, for analysis/display.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from iqrl.errors import InputError, did_you_mean

KEYS = ("baseline", "arms", "tasks", "labels", "ylim")


def check(said: Any, arms: Sequence[str], tasks: Sequence[str]) -> dict[str, Any]:
    """What a file says of arms and tasks, if it is that of a sweep that has them.

    Raises:
        InputError: naming the key, the value and what was expected.
    """
    if not isinstance(said, dict) or not set(said) <= set(KEYS):
        raise InputError(f"display={said}: expected a mapping of {', '.join(KEYS)}")
    for key, kind in (("baseline", str), ("arms", list), ("tasks", list), ("labels", dict), ("ylim", dict)):
        if not isinstance(said.get(key, kind()), kind):
            expected = {str: "an arm", list: "a list of names", dict: "a mapping"}[kind]
            raise InputError(f"display.{key}={said[key]}: expected {expected}")
    named = {
        "baseline": ([said["baseline"]] if "baseline" in said else [], arms),
        "arms": (said.get("arms", []), arms),
        "tasks": (said.get("tasks", []), tasks),
        "labels": (said.get("labels", {}), [*arms, *tasks]),
    }
    for key, (names, there) in named.items():
        for name in names:
            if name not in there:
                hint = did_you_mean(str(name), there)
                raise InputError(f"display.{key}: {name}: not in this sweep{hint}; expected one of {', '.join(there)}")
    for figure, ends in said.get("ylim", {}).items():
        numbers = isinstance(ends, list) and len(ends) == 2 and all(isinstance(e, int | float | None) for e in ends)
        if not numbers:
            raise InputError(f"display.ylim.{figure}={ends}: expected [lowest, highest], either may be null")
    return said


def at_scale(said: dict[str, Any], arms: Sequence[str], tasks: Sequence[str]) -> dict[str, Any]:
    """The same without the arms and tasks that a scale has not."""
    there = {*arms, *tasks}
    kept: dict[str, Any] = {}
    for key, value in said.items():
        if key == "ylim" or (key == "baseline" and value in there):
            kept[key] = value
        elif key in ("arms", "tasks"):
            kept[key] = [name for name in value if name in there]
        elif key == "labels":
            kept[key] = {name: label for name, label in value.items() if name in there}
    return kept
