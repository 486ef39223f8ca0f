"""The file of a sweep: what it may hold, where it lies, and what it says at a scale.

A sweep is a YAML file of this folder (or anywhere):

    title: Horizon
    question: How far should the latent dynamics be unrolled?
    finding: What the source found, and its place there.
    figure: arms                       # the figure that answers the question (FIGURES below)
    base: {agent: iqrl}                # agent, preset, agent.*, eval.*, train.*; default: iqrl as it is
    arms:                              # what each arm changes, as on the command line
      default: {label: "H = 5"}
      short: {label: "H = 1", agent.horizon: 1}
      td3: {label: TD3, agent: td3}    # another agent: without the base's agent.* keys
    tasks: [walker-walk, acrobot-swingup]
    seeds: 0..4
    env_steps: 1000000                 # or by task group or task: {easy: 500000, hard: 3000000}
    display:                           # how figures show it; each may be left out, and be said by an option instead
      baseline: default                # the arm that the others are compared with
      arms: [default, short, td3]      # which, in this order; tasks likewise
      labels: {walker-walk: Walker}    # of tasks and arms
      ylim: {iqm_return: [0, 1]}       # by figure
    scale: full                        # what is run unless SCALE says otherwise; default: full
    lite:                              # what differs with scale=lite, and the note that figures then bear
      note: preset=small (narrow networks, batches of 128)
      preset: small
      tasks: [walker-walk]
      seeds: 0..2
      env_steps: 100000
      arms: {short: null}              # leave an arm out, or change it: {short: {agent.horizon: 2}}

An arm may have `tasks`, some of the sweep's; and `start_from: {arm: A, task: T}`: its runs begin with the
representation that arm A's run of the same seed has learned on task T, so that run comes first.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from iqrl import plain_yaml
from iqrl.errors import InputError, did_you_mean

FOLDER = Path(__file__).parent
SCALES = ("full", "lite")
# Figures that answer a question about arms; modules of analysis/figures.
FIGURES = ("arms", "iqm_return", "tasks", "latent_rank", "active_codebook", "rank_return", "aggregates")

_REQUIRED = ("title", "question", "finding", "arms", "tasks", "seeds", "env_steps")
_KEYS = (*_REQUIRED, "figure", "base", "scale", "note", "lite", "display")
_BASE_KEYS = ("agent", "preset")
_ARM_KEYS = (*_BASE_KEYS, "label", "tasks", "start_from")
_LITE_KEYS = ("note", "preset", "tasks", "seeds", "env_steps", "arms")
_SECTIONS = ("agent", "eval", "train")  # of dotted keys
_INSTEAD = {"train.env_steps": "env_steps", "agent.init_from": "start_from", "agent.name": "agent"}


def names() -> list[str]:
    """The sweeps of this folder."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def path_of(name: str) -> Path:
    """The file that a sweep's name, or path, stands for, whether it is there or not."""
    return Path(name) if is_path(name) else FOLDER / f"{name}.yaml"


def is_path(name: str) -> bool:
    """Whether that is the path of a file of one's own, and not the name of a sweep of this folder."""
    return name.endswith((".yaml", ".yml"))


def find(name: str) -> Path:
    """The file of a sweep, by its name or path.

    Raises:
        InputError: if there is none.
    """
    path = path_of(name)
    if not os.path.isfile(path):  # without an error for a name that is too long to be a file's
        known = f"{did_you_mean(name, names())}; expected one of {', '.join(names())}, or a .yaml file"
        raise InputError(f"sweep={name}: no such sweep{known}")
    return path


def read(path: Path) -> dict[str, Any]:
    """A sweep file's content, its keys and their types checked.

    Raises:
        InputError: naming the file and the key.
    """
    content = plain_yaml.load(path, shown(path))
    with within(shown(path)):
        _mapping("a sweep", content, _KEYS)
        for key in _REQUIRED:
            if content.get(key) in (None, "", [], {}):
                raise InputError(f"{key}: missing")
        for key in ("title", "question", "finding", "note"):
            if not isinstance(content.get(key, ""), str):
                raise InputError(f"{key}={content[key]}: expected text")
        one_of("figure", content.get("figure", "arms"), FIGURES)
        one_of("scale", content.get("scale", "full"), SCALES)
        _delta("base", content.get("base"), *_BASE_KEYS)
        for name, arm in _mapping("arms", content["arms"]).items():
            _delta(f"arm {name}", arm, *_ARM_KEYS)
        if "lite" in content:
            lite = content["lite"] or {}
            _delta("lite", lite, *_LITE_KEYS)
            if not isinstance(lite.get("note"), str) or not lite["note"].strip():
                raise InputError("lite.note: missing; expected what figures say: `preset=small (narrow networks)`")
            for name, arm in _mapping("lite.arms", lite.get("arms", {})).items():
                if name not in content["arms"]:
                    raise InputError(f"lite.arms.{name}: no such arm{did_you_mean(name, content['arms'])}")
                _delta(f"lite.arms.{name}", arm, *_ARM_KEYS)
            gone = [name for name, arm in lite.get("arms", {}).items() if arm is None]
            if len(gone) == len(content["arms"]):
                raise InputError("lite.arms: no arm is left")
    return content


def at_scale(content: Mapping[str, Any], scale: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The base and the arms, as the file says them for a scale.

    Raises:
        InputError: if the file has no such scale.
    """
    base = dict(content.get("base") or {})
    arms = {name: dict(arm or {}) for name, arm in content["arms"].items()}
    if scale == "full":
        return base, arms
    if "lite" not in content:
        raise InputError("scale=lite: this sweep has no `lite` section")
    base |= {k: v for k, v in content["lite"].items() if k == "preset" or "." in k}
    for name, change in content["lite"].get("arms", {}).items():
        if change is None:
            del arms[name]
        else:  # a key that is null is taken back
            arms[name] = {k: v for k, v in {**arms[name], **change}.items() if v is not None}
    return base, arms


# --- checks


def _mapping(key: str, value: Any, known: Sequence[str] | None = None, sections: bool = False) -> dict[str, Any]:
    """`value`, if it is a mapping of known keys; with `sections`, of dotted keys too."""
    if not isinstance(value, dict):
        raise InputError(f"{key}={value}: expected a mapping of keys to values")
    for name in value:
        section, dot, _ = name.partition(".")
        if known is None or name in known or (sections and dot and section in _SECTIONS):
            continue
        expected = f"{', '.join(known)}{', agent.*, eval.* or train.*' if sections else ''}"
        raise InputError(f"{key}: {name}: no such key{did_you_mean(name, known)}; expected {expected}")
    return value


def _delta(key: str, value: Any, *known: str) -> None:
    """Checks that a base, an arm or a lite section sets known keys and dotted ones; it may be empty."""
    for name in () if value is None else _mapping(key, value, known, sections=True):
        if name in _INSTEAD:
            raise InputError(f"{key}: {name}: expected the key `{_INSTEAD[name]}` instead")


def one_of(key: str, value: Any, choices: Sequence[str]) -> Any:
    if value not in choices:
        raise InputError(f"{key}={value}: expected one of {', '.join(choices)}")
    return value


def shown(path: Path) -> str:
    """A sweep's file as messages name it."""
    return f"ablations/{path.name}" if path.parent == FOLDER else str(path)


@contextlib.contextmanager
def within(where: str) -> Iterator[None]:
    """Says in an input error where it is."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
