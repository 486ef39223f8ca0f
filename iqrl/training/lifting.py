"""An agent's single-seed functions lifted over the seeds of a pack.

A function of one seed runs as it is; of more seeds, under `torch.func.vmap`, so that one kernel serves them all. Either
way it is one function, which is given everything it depends on: state, replay, random numbers, schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from iqrl.agent import Agent, Slices
from iqrl.training.replay import Replay
from iqrl.training.sampling import gather, sample

Lifted = Callable[
    [dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]], tuple[dict[str, Tensor], Tensor]
]


def act_all(agent: Agent) -> Callable[..., Any]:
    """`Agent.act` of n seeds: every argument and result has a leading axis of n; n = 1 runs without it."""

    def acting(
        state: dict[str, Tensor],
        carry: dict[str, Tensor],
        observed: dict[str, Tensor],
        noise: dict[str, Tensor],
        schedule: dict[str, Tensor],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        observation = observed["observation"]
        if len(observation) > 1:
            action, after = torch.func.vmap(agent.act)(state, carry, observation, noise, schedule)
            return action, dict(after)
        first = [{k: v[0] for k, v in group.items()} for group in (state, carry, noise, schedule)]
        action, after = agent.act(first[0], first[1], observation[0], first[2], first[3])
        return action[None], {k: v[None] for k, v in after.items()}

    return acting


def sample_all(slices: Slices, ring: int, tables: dict[str, Tensor], uniform: Tensor) -> Tensor:
    """`sample` of n seeds: every argument and result has a leading axis of n."""
    if len(uniform) > 1:
        return torch.func.vmap(lambda own, numbers: sample(own, slices, ring, numbers))(tables, uniform)
    return sample({k: v[0] for k, v in tables.items()}, slices, ring, uniform[0])[None]


def lift(agent: Agent, stage: str, replay: Replay) -> Lifted:
    """A learning stage as a function of n seeds: updates their state in place, gives metrics and the starts sampled.

    Every argument and result has a leading axis of n; n = 1 runs without it, so that products of matrices
    stay products of matrices. `noise` has what the method asks for, and uniform numbers `slices` (n, B) to sample
    with, or the starts that were `sampled` (n, B) before; also their `observation`, where pictures are kept apart.
    """
    method, wants, slices, spec, ring = getattr(agent, stage), agent.stage(stage), agent.slices, agent.spec, replay.ring
    device = replay.rows.device

    def one(
        state: dict[str, Tensor], tables: dict[str, Tensor], noise: dict[str, Tensor], schedule: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        if not wants.batch:
            changed, metrics = checked(stage, method(state, None, noise, schedule), state, 0)
            nowhere = torch.zeros((), dtype=torch.int64, device=device)
            return unaliased(changed, state), metrics, nowhere
        sampled = noise["sampled"] if "sampled" in noise else sample(tables, slices, ring, noise["slices"])
        batch = gather(tables, sampled, spec, slices, noise.get("observation"))
        changed, metrics = checked(stage, method(state, batch, noise, schedule), state, slices.batch_size)
        return unaliased(changed, state), metrics, sampled

    def lifted(
        state: dict[str, Tensor], tables: dict[str, Tensor], noise: dict[str, Tensor], schedule: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], Tensor]:
        if next(iter(state.values())).shape[0] == 1:
            first = [{k: v[0] for k, v in group.items()} for group in (state, tables, noise, schedule)]
            changed, metrics, sampled = one(*first)
            changed, metrics = ({k: v[None] for k, v in group.items()} for group in (changed, metrics))
            sampled = sampled[None]
        else:
            changed, metrics, sampled = torch.func.vmap(one)(state, tables, noise, schedule)
        for k, v in changed.items():
            state[k].copy_(v)
        return metrics, sampled

    return lifted


def checked(
    stage: str, result: Any, state: Mapping[str, Tensor], batch_size: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What a stage returned for one seed, if it is what `Agent.stages` says; a smaller tensor would be broadcast.

    Raises:
        TypeError: naming the stage and what is wrong.
    """
    if not (isinstance(result, tuple) and len(result) == 2 and all(isinstance(part, dict) for part in result)):
        raise TypeError(f"stage {stage!r}: expected to return (changed state, metrics), two dicts")
    changed, metrics = result
    for name, value in changed.items():
        if name not in state:
            raise TypeError(f"stage {stage!r}: changes {name!r}; expected one of {', '.join(state)}")
        if not isinstance(value, Tensor) or value.shape != state[name].shape:
            raise TypeError(f"stage {stage!r}: the state's {name!r} {unlike(value, state[name].shape)}")
    for name, value in metrics.items():
        shape = torch.Size((batch_size,) if name == "priority" else ())
        if not isinstance(value, Tensor) or value.shape != shape:
            raise TypeError(f"stage {stage!r}: the metric {name!r} {unlike(value, shape)}")
    return changed, metrics


def unlike(value: Any, shape: Sequence[int]) -> str:
    found = f"has shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"is a {type(value).__name__}"
    return f"{found}; expected a tensor of shape {tuple(shape)}"


def unaliased(changed: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of entries that are handed over as they are ("target = online"): a later write would change them.

    By `maximum`, not `clone`: torch 2.13's compiler drops a clone of an input and then reads the input after it
    was written to.
    """
    return {k: torch.maximum(v, v) if any(v is old for old in state.values()) else v for k, v in changed.items()}
