"""From a sweep's runs to packs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablations import PlannedRun
from iqrl import config
from iqrl.config import Execution
from iqrl.errors import InputError
from iqrl.runs import reader
from iqrl.training.packing import together
from slurm.packs import Pack

AUTOMATIC_PACK = 16  # seeds; the trainer itself splits a pack that does not fit its device's memory


def pack(
    planned: Iterable[PlannedRun],
    size: int,
    words: Mapping[str, str],
    runs: Path,
    asked: Mapping[str, str] | None = None,
) -> list[Pack]:
    """Packs of at most `size` seeds.

    Runs that were begun are packed with such as have a checkpoint in common, and go on in step.

    Args:
        runs: folder of the run directories.
        planned: runs, each once, in the order in which they should start.
        words: how to execute them (`train.threads` -> "1"); a sweep's own words win over these.
        asked: the same from the user, who wins over both.
    """
    # A sweep resolves each arm and task once, so runs that share their settings object are alike.
    alike: dict[Any, list[PlannedRun]] = {}
    for run in planned:
        c = run.config
        key = (id(c.settings), c.task, c.preset, c.train, c.evaluate, run.words)
        alike.setdefault(key, []).append(run)
    packs = []
    for same in alike.values():
        first = same[0].config
        content = first.resolved()
        del content["seed"]
        own = dict(word.split("=", 1) for word in same[0].words)
        how = {**words, **own, **(asked or {}), "train.pack": str(size)}
        label = re.sub(r"[^A-Za-z0-9+=._-]", "_", f"{first.agent.name}-{first.task}-{config.pack_key(first)[:8]}")
        points = [{key for key, _ in reader.checkpoints(runs / run.name)} for run in same]
        for group in together(points, size):
            part = [same[i] for i in group]
            packs.append(
                Pack(
                    name=f"{label}-s{part[0].config.seed}" + (f"x{len(part)}" if len(part) > 1 else ""),
                    content=content,
                    runs=tuple(run.name for run in part),
                    seeds=tuple(run.config.seed for run in part),
                    words=tuple(f"{k}={v}" for k, v in how.items()),
                    after=tuple(sorted({run.after for run in part if run.after})),
                    env_steps=first.train.env_steps,
                )
            )
    return packs


def execution_words(words: Sequence[str]) -> tuple[dict[str, str], Execution]:
    """The user's words about how to execute a sweep, checked.

    Raises:
        InputError: for a word that would change what a run is, or one that cannot be.
    """
    for word in words:
        if not word.startswith("train.") or word.startswith("train.env_steps"):
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
