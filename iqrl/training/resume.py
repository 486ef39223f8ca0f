"""Saving the runs of a pack, and putting each back to where its newest usable checkpoint left it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from iqrl.agent import Progress
from iqrl.environments.environment import TRAINING
from iqrl.errors import InputError
from iqrl.runs import checkpoints
from iqrl.runs.files import warn
from iqrl.runs.lease import LeaseLost
from iqrl.runs.replay_log import ReplayLog
from iqrl.training.pack import Pack, Run
from iqrl.training.packing import groups_of_one_point
from iqrl.training.transfer import inherited

Checkpoints = dict[tuple[int, int], dict[str, Any]]  # by decisions and updates


def save(pack: Pack, run: Run) -> None:
    """Write a checkpoint of a run: with the replay log, everything that its future depends on."""
    p = run.progress
    content = {
        "format": 1,
        "identity": run.config.identity,
        "engine": pack.engine.save(run.place),
        "progress": p.state(),
        "memory": dict(run.counters),
        "replay_extra": pack.replay.save(run.place),
        "carry": {k: v[run.place].cpu().clone() for k, v in pack.carry.items()},
        "last_return": run.last_return,
        "last_success": run.last_success,
        "reported": run.reported,
        "wall_seconds": pack.wall_seconds(run),
    }
    run.directory.save((p.decisions, p.updates), content)


def resume(pack: Pack) -> None:
    """Put every run where its newest usable checkpoint left it; runs that have one in common go on in step."""
    found = [_usable(pack, run) for run in pack.runs]
    for group in groups_of_one_point([set(usable) for usable in found], len(found)):
        newest = max(set.intersection(*(set(found[i]) for i in group)), default=None)
        for run in (pack.runs[i] for i in group):
            try:
                if newest is None:
                    _begin(pack, run)
                else:
                    _restore(pack, run, found[run.place][newest])
            except LeaseLost as error:
                run.lose(error)
            except (OSError, InputError):
                raise
            except Exception as error:  # a checkpoint of other code, say
                run.fail_with(error)
    session = pack.plan.provenance()
    _warn_of_changes(pack, session)
    for run in pack.living:
        of_file = {"agent_file": run.config.source_hash} if run.config.source else {}
        run.directory.begin_session({**session, **of_file, "pack": len(pack.runs)})
    _restore_episodes(pack)


def _usable(pack: Pack, run: Run) -> Checkpoints:
    usable = {}
    for key, content in checkpoints.usable(run.directory.path, pack.replay.width):
        if content["identity"] == run.config.identity:
            usable[key] = content
        else:
            warn(f"{run.directory.path}: a checkpoint is of another configuration; using one before")
    if not usable and run.directory.trained():
        reason = "no checkpoint is usable" if run.directory.checkpoints() else "it has no checkpoint"
        warn(f"{run.directory.path}: {reason}; starts over, with what was there set aside")
    return usable


def _begin(pack: Pack, run: Run) -> None:
    """Start a run from its initial state, or from what another run gives it."""
    first = inherited(run.config, run.directory.path.parent)
    if run.directory.trained():
        run.directory.set_aside()
    run.directory.open({}, [], pack.replay.width)
    for k, v in first.items():
        pack.engine.state[k][run.place].copy_(v)


def _restore(pack: Pack, run: Run, saved: Mapping[str, Any]) -> None:
    pack.engine.load(run.place, saved["engine"])  # first: of other code, it raises before anything is changed
    run.directory.open(saved["rows"], saved["replay"], pack.replay.width)
    log = run.directory.path / "replay"
    for rows, pictures in ReplayLog.read(log, saved["replay"], pack.replay.width, pack.spec.frame_shape):
        pack.replay.extend(run.place, rows, pictures)
    pack.replay.load(run.place, saved["replay_extra"])
    run.progress = Progress(**saved["progress"])
    run.counters = dict(saved["memory"])
    for k, v in pack.carry.items():
        v[run.place] = saved["carry"][k].to(v.device)
    run.last_return, run.reported = saved["last_return"], saved["reported"]
    run.last_success = saved.get("last_success")  # older checkpoints are of tasks without
    run.earlier_seconds = saved["wall_seconds"]
    pack.announce(f"{run.name}  resumed at step {run.env_step:,}")


def _warn_of_changes(pack: Pack, session: Mapping[str, Any]) -> None:
    """Warn of runs that go on otherwise than they began: their numbers are of both."""
    for key, what in (("precision", "precision"), ("commit", "code")):
        begun = [run for run in pack.living if run.progress.decisions]
        before = {run.name: str(run.directory.last_session().get(key) or session[key]) for run in begun}
        others = {name: value for name, value in before.items() if session[key] and value != session[key]}
        if others:
            first = next(iter(others)) + (f" and {len(others) - 1} more" if len(others) > 1 else "")
            warn(f"{first}: goes on with another {what}: {session[key]}, was {next(iter(others.values()))}")


def _restore_episodes(pack: Pack) -> None:
    """Bring environments back into their episodes by taking the same actions again."""
    within = [run for run in pack.living if run.progress.episode_decisions]
    if not within:
        return
    episodes = {run.place: pack.replay.newest(run.place, run.progress.episode_decisions) for run in within}
    keys: list[tuple[int, ...] | None] = [None] * len(pack.runs)
    for run in within:
        keys[run.place] = (run.seed, TRAINING, run.progress.episodes)
    observation = pack.environments.reset(keys)
    different, ended = set(), dict[int, int]()
    for step in range(max(len(actions) for _, actions in episodes.values())):
        chosen = np.zeros((len(pack.runs), pack.spec.action_dim), np.float32)
        active = np.zeros(len(pack.runs), bool)
        for place, (observed, actions) in episodes.items():
            if step < len(actions) and place not in ended:
                chosen[place], active[place] = actions[step], True
                seen = observed[step]
                if (seen != observation[place][-len(seen) :]).any():  # of images, the newest
                    different.add(place)
        after, _, terminated, truncated = pack.environments.step(chosen, active)
        observation[active] = after[active]
        ended |= dict.fromkeys(np.flatnonzero(active & (terminated | truncated)).tolist(), step + 1)
    for run in within:
        run.observation = observation[run.place].copy()
        # Another processor or simulator, or a task that is no function of its seed.
        if run.place in ended:
            decisions = len(episodes[run.place][1])
            run.fail(f"its episode, played again, ended after {ended[run.place]} of {decisions} decisions")
        elif run.place in different:
            said = "its episode, played again, was not the same to the last bit; it goes on from where that led"
            warn(f"{run.directory.path}: {said}")
