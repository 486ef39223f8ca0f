"""What is left to do of a sweep, here and on a cluster: runs that are neither done nor anybody's, as packs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablations import PlannedRun, Sweep
from iqrl import config
from iqrl.config import Execution
from iqrl.errors import InputError
from iqrl.runs import reader
from iqrl.training.packing import groups_of_one_point
from slurm import queue, states
from slurm.packs import Pack, even_size
from slurm.submissions import Submission, submissions

AUTOMATIC_PACK = 16  # seeds; the trainer itself splits a pack that does not fit its device's memory


@dataclass(frozen=True)
class Remaining:
    """What is left to do, and who has the rest.

    Attributes:
        missing: runs to be trained, those that others start from first.
        states: of every run that was looked at, by name (slurm.states.STATES).
        handed_out: all submissions of the folder, oldest first.
        queue: what Slurm said of their jobs.
    """

    missing: list[PlannedRun]
    states: dict[str, str]
    handed_out: list[Submission]
    queue: queue.Queue

    def count(self, state: str) -> int:
        return list(self.states.values()).count(state)


def remaining(sweep: Sweep, runs: Path, only: set[str] | None = None, reclaim_unknown: bool = False) -> Remaining:
    """What of a sweep is neither done, nor running or queued.

    Args:
        runs: folder of the run directories.
        only: names of the runs to look at; all if None.
        reclaim_unknown: count runs of a Slurm that cannot be asked here as missing, as if it had lost them.
    """
    wanted = [run for run in sweep.unique_runs() if only is None or run.name in only]
    handed_out = submissions(runs)
    in_queue = states.ask(handed_out)
    found = {s.run: s.state for s in states.look(runs, [run.name for run in wanted], handed_out, in_queue)}
    taken = {"done", "running", "queued"} | (set() if reclaim_unknown else {"unknown"})
    return Remaining([run for run in wanted if found[run.name] not in taken], found, handed_out, in_queue)


def make_packs(
    missing: Iterable[PlannedRun],
    size: int,
    words: Mapping[str, str],
    runs: Path,
    asked: Mapping[str, str] | None = None,
    slots: int = 0,
) -> list[Pack]:
    """Packs of at most `size` seeds; of CPUs no larger than an arm's share of `slots` processes at once, which
    keeps them busy to the end.

    Runs that were begun are packed with such as have a checkpoint in common, and go on in step.

    Args:
        runs: folder of the run directories.
        missing: runs, each once, in the order in which they should start.
        words: how to execute them (`train.threads` -> "1"); a sweep's own words win over these.
        asked: the same from the user, who wins over both.
        slots: processes at once where a pack of k takes k times as long as one run; 0 where it takes as long.
    """
    # A sweep resolves each arm and task once, so runs that share their settings object are alike.
    alike: dict[Any, list[PlannedRun]] = {}
    for run in missing:
        c = run.config
        key = (id(c.settings), c.task, c.preset, c.train, c.evaluate, run.words)
        alike.setdefault(key, []).append(run)
    arms: dict[str, list[int]] = {}
    for same in alike.values():
        arms.setdefault(same[0].arm, []).append(len(same))
    sizes = {arm: min(size, even_size(counts, slots)) if slots else size for arm, counts in arms.items()}
    packs = []
    for same in alike.values():
        first, most = same[0].config, sizes[same[0].arm]
        content = first.resolved()
        del content["seed"]
        own = dict(word.split("=", 1) for word in same[0].words)
        how = {**words, **own, **(asked or {}), "train.pack": str(most)}
        points = [{key for key, _ in reader.checkpoints(runs / run.name)} for run in same]
        for group in groups_of_one_point(points, most):
            part = [same[i] for i in group]
            packs.append(
                Pack(
                    name=part[0].name + (f"x{len(part)}" if len(part) > 1 else ""),
                    content=content,
                    runs=tuple(run.name for run in part),
                    seeds=tuple(run.config.seed for run in part),
                    words=tuple(f"{k}={v}" for k, v in how.items()),
                    after=tuple(sorted({run.after for run in part if run.after})),
                    env_steps=first.train.env_steps,
                    source_hash=first.source_hash,
                )
            )
    return packs


def execution_words(words: Sequence[str]) -> tuple[dict[str, str], Execution]:
    """The user's words about how to execute a sweep, checked.

    Raises:
        InputError: for a word that would change what a run is, or one that cannot be.
    """
    for word in words:
        if not word.startswith("train.") or word.startswith(("train.env_steps", "train.action_repeat")):
            raise InputError(
                f"{word}: a sweep's file says what its runs are; expected how to execute them, such as "
                "train.precision=float32"
            )
    _, execution, _ = config.resolve([("command line", config.parse_words(words))])
    kind, _, number = execution.device.partition(":")
    if int(number or 0):
        raise InputError(
            f"train.device={execution.device}: each process of a sweep is given one GPU, which is its cuda:0; "
            f"expected {kind}, and CUDA_VISIBLE_DEVICES={int(number)} to choose it"
        )
    return dict(word.split("=", 1) for word in words), execution
