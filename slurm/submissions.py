"""What was handed to whom: one folder for every time that a sweep was started or submitted.

runs/sweeps/<sweep>.json              the sweep's manifest: which runs belong to which arm
runs/sweeps/<sweep>/<stamp>/           by UTC
    submission.json                   kind, user, cluster profile, jobs: their packs, runs and logs
    packs/*.yaml                      the packs' configurations
    logs/*.log                        what the training processes said
    cancelled                         ids of jobs that `cancel` took out of the queue, one a line
    code/ submitit/                   (Slurm) the code as it was at submission; submitit's own files
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from iqrl.runs import lease, manifest
from iqrl.runs.files import replace_text, warn, written


@dataclass
class Job:
    """One unit of work of a submission: id in Slurm's queue ("" for the local queue), and its packs.

    packs: {"name", "runs"} each.
    """

    id: str
    packs: list[dict[str, Any]]

    @property
    def runs(self) -> list[str]:
        return [name for pack in self.packs for name in pack["runs"]]


@dataclass
class Submission:
    """One folder of them; `load` and `create` make it."""

    folder: Path
    sweep: str
    kind: str  # "local" or "slurm"
    jobs: list[Job]
    content: dict[str, Any]

    @classmethod
    def create(cls, runs: Path, sweep: str, kind: str) -> Submission:
        """An empty folder of its own, named by the time."""
        parent = runs / "sweeps" / sweep
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        for suffix in ["", *(f"-{i}" for i in range(2, 1000))]:
            folder = parent / f"{stamp}{suffix}"
            try:
                (folder / "packs").mkdir(parents=True)
            except FileExistsError:
                continue
            (folder / "logs").mkdir()
            content = {"created": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "user": os.getuid()}
            return cls(folder, sweep, kind, [], content)
        raise FileExistsError(parent)

    def save(self) -> None:
        """Write submission.json, whole or not at all."""
        jobs = [{"id": job.id, "packs": job.packs} for job in self.jobs]
        content = {"sweep": self.sweep, "kind": self.kind, **self.content, "jobs": jobs}
        replace_text(self.folder / "submission.json", json.dumps(content, indent=0))

    @classmethod
    def load(cls, folder: Path) -> Submission | None:
        """None while it is being made, or if it is damaged."""
        try:
            content = json.loads((folder / "submission.json").read_text())
            jobs = [Job(job["id"], job["packs"]) for job in content.pop("jobs")]
            return cls(folder, content.pop("sweep"), content.pop("kind"), jobs, content)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def created(self) -> float:
        """When, in seconds; older folders are named by local time, so names do not say which came first."""
        try:
            return datetime.fromisoformat(self.content["created"]).timestamp()
        except (KeyError, TypeError, ValueError):
            return 0.0

    @property
    def given_up(self) -> list[str]:
        """Names of packs that its local queue gave up."""
        return self.content.get("given_up", self.content.get("left", []))  # left: its former name

    @property
    def user(self) -> int:
        """Number of the user whose jobs these are."""
        user = self.content.get("user")
        return user if isinstance(user, int) else os.getuid()

    def elsewhere(self, cluster: str) -> bool:
        """Whether its jobs are another cluster's than the one called `cluster` ("": unknown)."""
        own = self.content.get("cluster")
        return self.kind == "slurm" and bool(own and cluster) and own != cluster

    def cancelled(self) -> set[str]:
        """Ids of jobs that were cancelled: a pending one leaves no trace in Slurm."""
        try:
            return set((self.folder / "cancelled").read_text().split())
        except OSError:
            return set()

    def record_cancelled(self, ids: Iterable[str]) -> None:
        with open(self.folder / "cancelled", "a") as file:
            file.writelines(f"{id}\n" for id in ids)

    def queue_alive(self) -> bool:
        """Whether the local queue that this is still runs, on this host."""
        return self.kind == "local" and lease.alive(self.content.get("queue", {}))

    def handed_out(self, pack: str) -> float:
        """When a pack was: its configuration is written then, and no more."""
        return written(self.folder / "packs" / f"{pack}.yaml") or 0.0

    def log(self, pack: str) -> Path:
        return self.folder / "logs" / f"{pack}.log"


def submissions(runs: Path, sweep: str | None = None) -> list[Submission]:
    """Those of all sweeps, or of one, oldest first."""
    folder = runs / "sweeps"
    files = folder.glob("*/*/submission.json") if sweep is None else (folder / sweep).glob("*/submission.json")
    loaded = [Submission.load(file.parent) for file in files]
    found = [s for s in loaded if s is not None]
    return sorted(found, key=lambda s: (s.created, s.folder.name, s.sweep))


def manifests(runs: Path) -> dict[str, dict[str, Any]]:
    """The sweeps that were started in this folder, by name; a damaged one is named on stderr and left out."""
    found, damaged = manifest.read_all(runs)
    for path, why in damaged.items():
        warn(f"{path}: not a sweep's manifest ({why}); left out")
    return {content["name"]: content for content in found.values()}
