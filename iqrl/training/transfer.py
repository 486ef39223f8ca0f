"""Starting a run with what another run has learned: `agent.init_from`, for agents that have that setting.

Its value is the name of a run directory in the same folder. The name ends in that run's identity, and so
the identity of a run contains the identity of the run that it starts from. From a run of several tasks, a run of others
takes the networks that fit: an encoder that is not told the task serves any task of as many observations.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from iqrl.agent import Agent
from iqrl.config import RunConfig, load_run
from iqrl.errors import InputError
from iqrl.runs import checkpoints, reader
from iqrl.training.random_numbers import INITIALISATION, generator


def inherited(run: RunConfig, runs: Path) -> dict[str, Tensor]:
    """The entries of the run's first state that another run gives it; none if it starts from scratch.

    Args:
        run: the run that is about to start.
        runs: the folder of run directories.

    Raises:
        InputError: if there is no such run, or it is incomplete, of another agent, or of other sizes.
    """
    name = getattr(run.settings, "init_from", "")
    if not name:
        return {}
    key = f"agent.init_from={name}"
    if Path(name).name != name:
        raise InputError(f"{key}: expected the name of a run directory in {runs}, without a path")
    try:
        source = load_run(runs / name)
    except InputError as error:
        raise InputError(f"{key}: {error}") from None
    alike = run.source and source.source_hash == run.source_hash  # jobs have copies of an agent's file
    if source.agent is not run.agent and not alike:
        raise InputError(f"{key}: is a run of {source.agent.name}; expected one of {run.agent.name}")
    if not reader.complete(runs / name):
        raise InputError(f"{key}: that run is not complete; expected a finished one, so train it first")
    agent = run.agent(run.settings, run.spec)
    fresh = agent.initialise(generator("cpu", run.seed, INITIALISATION))
    _, newest = next(checkpoints.usable(runs / name, 0, needs_replay=False), (None, None))
    if newest is None:
        raise InputError(f"{key}: {runs / name} has no usable checkpoint")
    saved = newest["engine"]
    ordered, order = saved.get("layout", {}), agent.layout()
    taken = agent.start_from(fresh, saved["state"])
    if "," in source.task and source.task != run.task:  # of several tasks, and others
        other = source.agent(source.settings, source.spec)
        taken, ordered = fitting(agent, fresh, other, taken, ordered, key), order
    for entry, value in taken.items():
        own = tuple(fresh[entry].shape) if entry in fresh else "none"
        if tuple(value.shape) != own:
            raise InputError(
                f"{key}: its {entry} has shape {tuple(value.shape)}, this run's {own};"
                " expected a run of equal networks, on a task of equal observations and actions"
            )
        if ordered.get(entry) != order.get(entry):
            raise InputError(f"{key}: another version of the code ordered its {entry}; expected a run of this version")
    return taken


def fitting(
    agent: Agent[Any],
    fresh: Mapping[str, Tensor],
    other: Agent[Any],
    taken: Mapping[str, Tensor],
    ordered: Mapping[str, str],
    key: str,
) -> dict[str, Tensor]:
    """Of what another agent, of several tasks, has learned: the networks that have equal shapes here.

    The others, such as those that are told which of the tasks it is, stay as they are in `fresh`.

    Args:
        taken: entries of the other agent's state.
        ordered: how the code that trained it orders parameters, by entry.

    Raises:
        InputError: the first network of an entry, the encoder, does not fit, or other code ordered them.
    """
    result = dict(taken)
    for entry in [entry for entry in taken if entry in agent.groups()]:
        own, theirs = agent.groups()[entry], other.groups()[entry]
        if ordered.get(entry) != other.layout()[entry]:
            raise InputError(f"{key}: another version of the code ordered its {entry}; expected a run of this version")
        shapes = {name: network.shapes() for name, network in own.networks.items()}
        names = [name for name, network in theirs.networks.items() if shapes.get(name) == network.shapes()]
        if (first := next(iter(shapes))) not in names:
            expected = "expected tasks of equal observations, and an encoder that is not told the task"
            raise InputError(f"{key}: its {first} does not fit; {expected}")
        result[entry] = fresh[entry].clone()
        mine, found = own.unpack(result[entry]), theirs.unpack(taken[entry])
        for name in names:
            for parameter, value in found[name].items():
                mine[name][parameter].copy_(value)  # a view
    return result
