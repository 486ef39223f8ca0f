"""Cores that this process may use, the Slurm job that it is in; and whether the process that a file names still lives,
told by its number and the time at which it started.
"""

from __future__ import annotations

import os


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def job_id() -> str:
    """The Slurm job that this process is in, as `squeue` names it; "" outside of one."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID", "")


def started(pid: int) -> int | None:
    """When a living process on this host started, in the kernel's ticks, or None if there is none (or no /proc).

    One that was killed and that its parent has not asked after (a zombie) does not live: in a container whose first
    process asks after none, it would stay for good.
    """
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return None if fields[0] == "Z" else int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


def lives(pid: int, since: int | None) -> bool:
    """Whether a process that started then still lives; without /proc (None), whether one of its number does."""
    if since is not None:
        return started(pid) == since
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
