"""Slurm's queue, read with its own commands.

`squeue` comes first, because it knows best what is still to come: to sacct, a job whose node died is
NODE_FAIL while its requeued self completes. It also knows for some minutes how a job ended, which accounting
may not have been told yet. `sacct`, where there is accounting, adds how the others ended.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field

from iqrl.errors import InputError

WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "CONFIGURING", "SUSPENDED")
ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT"),
)
SECONDS = 30  # that a command may take
# What the user's shell, or a job that one submits from, would otherwise change about a command: squeue's filters, say.
SETTINGS = ("SLURM_", "SRUN_", "SBATCH_", "SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_", "SCONTROL_")
KEPT = (
    *("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_SACK"),  # which cluster, and who asks
    *("SBATCH_PARTITION", "SBATCH_ACCOUNT", "SBATCH_QOS", "SBATCH_CONSTRAINT"),  # where a profile says nothing
)


@dataclass(frozen=True)
class Queue:
    """What Slurm says: states of jobs in its queue, how others ended, and why it could not be asked."""

    states: dict[str, str] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)
    error: str = ""
    reasons: dict[str, str] = field(default_factory=dict)  # why those that wait do
    cluster: str = ""  # its name, where it was asked


def available() -> bool:
    return shutil.which("sbatch") is not None


def require() -> None:
    """Raises InputError on a machine without Slurm."""
    if not available():
        raise InputError("CLUSTER=slurm: no Slurm on this machine (no sbatch); `make sweep SWEEP=...` alone runs here")


def look(jobs: Iterable[str], users: Iterable[int] = ()) -> Queue:
    """States of the jobs with these ids (12 or 12_3), which these users (numbers) or the caller submitted."""
    wanted = {job for job in jobs if job}
    if not wanted:
        return Queue()
    if not available():
        return Queue(error="no Slurm on this machine")
    # The whole queue of the users: asking for ids fails as soon as one of them is forgotten.
    listed = ",".join(map(str, sorted({os.getuid(), *filter(_has_name, users)})))
    status, text = command("squeue", "--noheader", "--array", "--states=all", f"--user={listed}", "--format=%i|%T|%r")
    if status:
        return Queue(error=text.splitlines()[0] if text else "squeue failed")
    states: dict[str, str] = {}
    ended: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for line in text.splitlines():
        job, state, reason, *_ = [*line.strip().split("|"), "", ""]
        if job in wanted:
            (ended if state in ENDED else states)[job] = state
            if state in WAITING:
                reasons[job] = reason
    gone = wanted - states.keys()
    return Queue(states, {**ended, **_ended(gone)} if gone else {}, reasons=reasons)


def _has_name(user: int) -> bool:
    """Whether this machine knows a user; squeue refuses a list with one that has left."""
    try:
        pwd.getpwuid(user)
    except KeyError:
        return False
    return True


def _ended(jobs: set[str]) -> dict[str, str]:
    """How jobs ended, of those that accounting knows; nothing without accounting."""
    if not shutil.which("sacct"):
        return {}
    arrays = sorted({job.partition("_")[0] for job in jobs})
    found: dict[str, str] = {}
    for i in range(0, len(arrays), 200):
        ids = ",".join(arrays[i : i + 200])
        status, text = command(
            "sacct", "--noheader", "--allocations", "--parsable2", "--format=JobID,State", f"--jobs={ids}"
        )
        if status:
            return found
        for line in text.splitlines():
            job, _, state = line.partition("|")
            if state.split(" ")[0] not in ("PENDING", "RUNNING", "REQUEUED"):
                found[job] = state
    return {job: state for job, state in found.items() if job in jobs}


def setting(name: str) -> str:
    """A value of slurm.conf, or "" if Slurm does not say."""
    status, text = command("scontrol", "show", "config")
    match = re.search(rf"^{name}\s*=\s*(\S+)", text, re.M) if not status else None
    return match[1] if match else ""


def environment() -> dict[str, str]:
    """This process's environment, without what begins with SETTINGS and not with what is KEPT."""
    return {k: v for k, v in os.environ.items() if k.startswith(KEPT) or not k.startswith(SETTINGS)}


def command(*words: str) -> tuple[int, str]:
    """Exit status and output (errors instead, if it failed) of one of Slurm's commands."""
    try:
        result = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, env=environment())
    except subprocess.TimeoutExpired:
        return 1, f"{words[0]} gave no answer in {SECONDS} s"
    except OSError as error:
        return 1, f"{words[0]}: {error.strerror}"
    if result.returncode:
        return result.returncode, (result.stderr.strip() or result.stdout.strip())
    return 0, result.stdout
