"""The right to write a run: a folder of numbered files, of which the largest number wins.

    lease/00000001 lease/00000002        each {"host", "pid", "started", "job_id"}, and "released" once it has left

Whoever trains a run first claims its lease, which gives a token larger than any before. No clock is read and no file
is locked, so this holds on network file systems too; `iqrl.runs.directory` says why a former writer does no harm.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iqrl import processes
from iqrl.errors import InputError
from iqrl.runs.files import read_mapping, replace_text, umask, written

HERE = socket.gethostname()


class LeaseLost(Exception):
    """Another process has taken this run over; this one must not write any more."""


def newest_token(run: Path | str) -> int:
    """The largest number in a run's lease; 0 before the first."""
    try:
        return max((int(name) for name in os.listdir(f"{run}/lease") if name.isdigit()), default=0)
    except (FileNotFoundError, NotADirectoryError):
        return 0


def newest_writer(run: Path | str) -> tuple[int, dict[str, Any]]:
    """The lease's newest token, and who holds it; (0, {}) before the first."""
    token = newest_token(run)
    return token, read_mapping(f"{run}/lease/{token:08d}") if token else {}


def claimed(run: Path | str, token: int) -> float | None:
    """When a lease was claimed: releasing it leaves its time as it is."""
    return written(f"{run}/lease/{token:08d}")


def alive(writer: Mapping[str, Any]) -> bool:
    """Whether a recorded process may still write: it lives on this host and has not released.

    Of a process of another host that is unknown: False. Without the time of its start (no /proc), any process of its
    number may be it.
    """
    pid, started = writer.get("pid"), writer.get("started")
    if writer.get("released") or writer.get("host") != HERE or not isinstance(pid, int) or pid < 1:
        return False
    return processes.lives(pid, started)


def myself() -> dict[str, Any]:
    """This process as a lease records it."""
    pid, job = os.getpid(), processes.job_id() or None
    return {"host": HERE, "pid": pid, "started": processes.started(pid), "job_id": job}


class Lease:
    """This process's hold of one run."""

    def __init__(self, run: Path) -> None:
        self.run, self.folder = run, run / "lease"
        self.token = 0

    def claim(self) -> None:
        """Become the run's only writer.

        Inside a sweep's Slurm job, the queue has said that it is this process's turn: whoever still writes was left
        behind on a node that Slurm lost, and is fenced off. Elsewhere, an interactive job included, two writers are
        a mistake.

        Raises:
            InputError: if a living process on this host is the writer, and this is no sweep's job.
        """
        own, (_, writer) = myself(), newest_writer(self.run)
        if not processes.in_sweep_job() and alive(writer) and writer != own:
            raise InputError(f"{self.run}: process {writer['pid']} is training this run")
        self.folder.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=self.folder, prefix=".claim-", delete=False) as file:
            json.dump(own, file)
        os.chmod(file.name, 0o666 & ~umask())  # others of a shared folder read who writes
        try:
            while True:
                token = max(newest_token(self.run), self._newest_kept()) + 1
                with contextlib.suppress(FileExistsError):
                    os.link(file.name, self.folder / f"{token:08d}")
                    break
        finally:
            os.unlink(file.name)
        self.token = token
        for old in self.folder.glob("[0-9]*"):
            if int(old.name) < token - 1:
                old.unlink(missing_ok=True)

    def check(self) -> None:
        """Raises LeaseLost if another process has claimed the run since."""
        if newest_token(self.run) != self.token:
            raise LeaseLost(f"{self.run.name}: another process has taken this run over")

    def release(self) -> None:
        """Say that this process has stopped writing. The lease stays as old as the claim."""
        if self.token and newest_token(self.run) == self.token:
            lease = self.folder / f"{self.token:08d}"
            with contextlib.suppress(OSError):
                claimed = lease.stat().st_mtime_ns
                replace_text(lease, json.dumps({**myself(), "released": True}))
                os.utime(lease, ns=(claimed, claimed))

    def _newest_kept(self) -> int:
        """The newest token in the name of a replay segment or a folder of lost files, should lease/ be gone."""
        kept = [path.stem for path in (self.run / "replay").glob("*.f32")]
        kept += [path.name.removeprefix("lost-") for path in self.run.glob("lost-*")]
        return max((int(name) for name in kept if name.isdigit()), default=0)
