"""Sweep -> runs -> packs -> jobs.

A pack is what one training process is given: runs that differ in nothing but their seed. A job is what Slurm
is given: one pack, or several that share a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ablations import PlannedRun
from iqrl import config
from iqrl.config import Execution
from iqrl.errors import InputError

AUTOMATIC_PACK = 16  # seeds; the trainer itself splits a pack that does not fit its device's memory

_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


@dataclass(frozen=True)
class Pack:
    """Runs for one training process.

    Attributes:
        name: of its configuration file and its log.
        content: the resolved configuration that its runs share, without a seed.
        runs: names of the run directories, one a seed.
        words: how to execute them, as on the command line.
        after: runs that have to be complete before this pack starts.
        env_steps: budget of each run.
    """

    name: str
    content: Mapping[str, Any]
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    words: tuple[str, ...]
    after: tuple[str, ...]
    env_steps: int

    def write(self, folder: Path) -> Path:
        """Its configuration file in `folder`, for `python -m iqrl train config=...`."""
        path = folder / f"{self.name}.yaml"
        path.write_text(yaml.dump(dict(self.content), Dumper=_Dumper, sort_keys=False))
        return path


def pack(planned: Iterable[PlannedRun], size: int, words: Mapping[str, str]) -> list[Pack]:
    """Packs of at most `size` seeds.

    Args:
        planned: runs, each once, in the order in which they should start.
        words: how to execute them (`train.threads` -> "1"); a sweep's own words win over these.
    """
    # A sweep resolves each arm and task once, so runs that share their settings object are alike.
    alike: dict[Any, list[PlannedRun]] = {}
    for run in planned:
        c = run.config
        key = (id(c.settings), c.task, c.preset, c.train, c.evaluate, run.words)
        alike.setdefault(key, []).append(run)
    packs = []
    for runs in alike.values():
        first = runs[0].config
        content = first.resolved()
        del content["seed"]
        how = {**words, **dict(w.split("=", 1) for w in runs[0].words), "train.pack": str(size)}
        label = re.sub(
            r"[^A-Za-z0-9+=._-]", "_", f"{first.agent.name}-{first.task}-{config.pack_key(first)[:8]}"
        )
        for i in range(0, len(runs), size):
            part = runs[i : i + size]
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
    return dict(word.split("=", 1) for word in words), execution


def train_command(python: str, pack: Pack, folder: Path, runs: Path, seeds: Sequence[int]) -> list[str]:
    """What trains a pack whose configuration lies in `folder`; goes on where it was interrupted."""
    file = folder / f"{pack.name}.yaml"
    chosen = f"seeds={','.join(map(str, seeds))}"
    return [python, "-u", "-m", "iqrl", "train", f"config={file}", chosen, f"runs={runs}", *pack.words]
