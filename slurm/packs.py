"""Sweep -> runs -> packs -> jobs.

A pack is what one training process is given: runs that differ in nothing but their seed. A job is what Slurm
is given: one pack, or several that share a GPU.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from iqrl.errors import InputError

_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


@dataclass(frozen=True)
class Pack:
    """Runs for one training process.

    Attributes:
        name: of its configuration file and its log: its first run's, which no other pack has, and how many they are.
        content: the resolved configuration that its runs share, without a seed.
        runs: names of the run directories, one a seed.
        words: how to execute them, as on the command line.
        after: runs that have to be complete before this pack starts.
        env_steps: budget of each run.
        source_hash: of the agent's file, where it is one of the user's own.
    """

    name: str
    content: Mapping[str, Any]
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    words: tuple[str, ...]
    after: tuple[str, ...]
    env_steps: int
    source_hash: str = ""

    def write(self, folder: Path) -> Path:
        """Its configuration file in `folder`, for `python -m iqrl train config=...`."""
        path = folder / f"{self.name}.yaml"
        path.write_text(yaml.dump(dict(self.content), Dumper=_Dumper, sort_keys=False))
        return path


def with_agents(packs: Sequence[Pack], submission: Path) -> list[Pack]:
    """Packs with their agents' files from outside the tree, if they have such, as copies in a submission's folder.

    So the files may be edited while a sweep of them runs.

    Raises:
        InputError: one has been edited since its pack was made: its runs would be others. The folder is then removed.
    """
    try:
        return [_with_agent(each, submission / "code" / "agents") for each in packs]
    except InputError:
        shutil.rmtree(submission, ignore_errors=True)
        raise


def _with_agent(pack: Pack, folder: Path) -> Pack:
    source = pack.content["agent"].get("source")
    if not source:
        return pack
    code = Path(source).read_bytes()
    if hashlib.sha256(code).hexdigest() != pack.source_hash:
        raise InputError(f"agent={source}: was edited meanwhile; the same command again takes it as it is now")
    copy = folder / Path(source).name
    folder.mkdir(parents=True, exist_ok=True)
    if copy.exists() and copy.read_bytes() != code:
        copy = copy.with_name(f"{pack.name}.py")
    copy.write_bytes(code)
    return replace(pack, content={**pack.content, "agent": {**pack.content["agent"], "source": str(copy)}})


def even_size(groups: Sequence[int], slots: int) -> int:
    """Seeds a pack, so that no run ends later than alone where a pack of k takes k times as long: on CPUs.

    The largest size for which the rounds of packs take no longer than those of single runs; each round compiles once.

    Args:
        groups: of how many runs each consists that can be packed; all take about as long.
        slots: processes at once.
    """

    def length(size: int) -> int:
        return size * -(-sum(-(-runs // size) for runs in groups) // slots)

    return max(size for size in range(1, max(groups) + 1) if length(size) <= length(1))


def train_command(python: str, pack: Pack, folder: Path, runs: Path, seeds: Sequence[int]) -> list[str]:
    """What trains a pack whose configuration lies in `folder`; goes on where it was interrupted."""
    file = folder / f"{pack.name}.yaml"
    chosen = f"seeds={','.join(map(str, seeds))}"
    return [python, "-u", "-m", "iqrl", "train", f"config={file}", chosen, f"runs={runs}", *pack.words]
