"""Agents by name: those of the tree, and those that a file of one's own registers."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import os
import re
import sys
import typing
from pathlib import Path
from typing import Any

from iqrl.agent import REGISTRY, Agent
from iqrl.errors import InputError, did_you_mean
from iqrl.settings import coerce, short

# Every agent in the tree: the name users type, and the module that registers it.
AGENTS = {
    "iqrl": "iqrl.iqrl",
    "td3": "baselines.td3",
    "td7": "baselines.td7",
    "mrq": "baselines.mrq",
    "drq": "baselines.drq",
    "tcrl": "baselines.tcrl",
    "dcwm": "baselines.dcwm",
    "drqv2": "baselines.drqv2",
    "sac_ae": "baselines.sac_ae",
    "taco": "baselines.taco",
}

_OWN: dict[str, dict[str, type[Agent[Any]]]] = {}  # what each file of one's own registers, by its module's name


def agent_class(name: str) -> tuple[type[Agent[Any]], str]:
    """The agent called `name`, or the one that the file `name` registers, and that file's path.

    Raises:
        InputError: if there is none.
    """
    if name.endswith(".py"):
        return _agent_from_file(Path(name))
    if name not in AGENTS:
        raise InputError(
            f"agent={name}: no such agent{did_you_mean(name, AGENTS)}; "
            f"expected one of {', '.join(AGENTS)}, or a .py file"
        )
    importlib.import_module(AGENTS[name])
    return REGISTRY[name], ""


def _check_settings(agent: type[Agent[Any]], path: Path) -> None:
    """Raises InputError unless an agent's Config is what everything here reads."""
    fields = {f.name: f for f in dataclasses.fields(agent.Config)} if dataclasses.is_dataclass(agent.Config) else {}
    if "buffer_size" not in fields:
        raise InputError(f"agent={path}: its Config has no buffer_size; expected it, in transitions")
    types = typing.get_type_hints(agent.Config)
    for name, entry in fields.items():
        if "doc" not in entry.metadata:
            raise InputError(f"agent={path}: {name}: expected setting(default, 'what it means')")
        kind = types[name]
        if (typing.get_args(kind)[0] if typing.get_origin(kind) is list else kind) not in (bool, int, float, str):
            raise InputError(f"agent={path}: {name}: a setting is bool, int, float, str, or a list of one of them")
        default = entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()
        coerce(f"agent={path}: {name}", default, kind, entry.metadata)
    hooks = [name for name in vars(Agent) if not name.startswith("_")]
    for name in vars(agent):
        if (
            not name.startswith("_")
            and name not in hooks
            and (meant := difflib.get_close_matches(name, hooks, 1, 0.85))
        ):
            print(f"warning: agent={path}: {name} is no hook; did you mean {meant[0]}?", file=sys.stderr)
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", agent.name):  # run directories begin with it
        raise InputError(f"agent={path}: registers {agent.name!r}; expected letters, digits, '_', '-' and '.'")


def _agent_from_file(path: Path) -> tuple[type[Agent[Any]], str]:
    if not os.path.isfile(path):
        raise InputError(f"agent={short(path)}: no such file")
    module_name = f"agent_file_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if module_name not in _OWN:
        before = dict(REGISTRY)
        specification = importlib.util.spec_from_file_location(module_name, path)
        assert specification is not None and specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        sys.modules[module_name] = module
        try:
            specification.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[module_name]
            raise InputError(f"agent={path}: {type(error).__name__}: {short(error)}") from error
        # Its name is its own: another sweep may have a file that registers the same one.
        own = {name: cls for name, cls in REGISTRY.items() if cls.__module__ == module_name}
        for name in own:
            del REGISTRY[name]
        REGISTRY.update({name: before[name] for name in own if name in before})
        _OWN[module_name] = own
    found = list(_OWN[module_name].values())
    clash = [name for name in _OWN[module_name] if name in AGENTS]
    if len(found) != 1 or clash:
        what = f"registers {clash[0]!r}, which exists" if clash else f"registers {len(found)} agents"
        raise InputError(f"agent={path}: {what}; expected exactly one @register with a new name")
    own_config = getattr(sys.modules[module_name], "Config", None)
    if getattr(own_config, "__module__", "") == module_name and own_config is not found[0].Config:
        raise InputError(f"agent={path}: its Config is not its agent's; expected Config = Config in the agent's class")
    _check_settings(found[0], path)
    return found[0], str(path.resolve())
