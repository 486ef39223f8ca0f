"""Processes: cores and GPUs that this one may use, the Slurm job that it is in, signals that ask it to stop, ending
with its parent; and whether the process that a file names still lives, known by its number and starting time.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Collection


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """GPUs of this machine that may be used, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [v.strip() for v in visible.split(",") if v.strip() and v.strip() != "-1"]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    return [str(i) for i in range(sum(line.startswith("GPU ") for line in listed.stdout.splitlines()))]


def job_id() -> str:
    """The Slurm job that this process is in, as `squeue` names it; "" outside of one."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID", "")


def in_sweep_job() -> bool:
    """Whether this is a Slurm job of a sweep: not an interactive one, and none of the user's own."""
    return bool(job_id()) and "SWEEP_SCRATCH" in os.environ  # every job of a sweep has it, if an empty one


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


_libc = ctypes.CDLL(None)  # not between fork and exec


def terminate_with_parent() -> None:
    """Have Linux send this process SIGTERM when the thread that started it ends. May be called before exec."""
    with contextlib.suppress(OSError, AttributeError):
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG
        _libc.prctl(set_parent_death_signal, signal.SIGTERM)


def end_with_parent(parent: int) -> None:
    """End when the parent does, even by SIGKILL, and leave every other signal to it.

    Terminals and Slurm signal whole process groups; the parent decides what a signal means. Linux sends
    SIGTERM here when the thread that started this process ends, which need not be the end of the parent.
    """

    def when_parent_is_gone(*_: object) -> None:
        if os.getppid() != parent:
            os._exit(1)

    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(ignored, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, when_parent_is_gone)
    terminate_with_parent()
    when_parent_is_gone()  # it may have ended before


class StopFlag:
    """True once the process is asked to stop by one of some signals, which it then only notes.

    Args:
        names: signals.
        kept_ignored: of those, what stays ignored where it is (SIGHUP under nohup).
        at_once: what a second SIGINT does.
    """

    def __init__(
        self, *names: str, kept_ignored: Collection[str] = (), at_once: Callable[[], None] | None = None
    ) -> None:
        self.caught: list[int] = []
        self._at_once = at_once
        for name in names:
            number = getattr(signal, name)
            if name not in kept_ignored or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._catch)

    def _catch(self, number: int, frame: object) -> None:
        if self.caught and number == signal.SIGINT and self._at_once is not None:
            self._at_once()
        self.caught.append(number)

    def __call__(self) -> bool:
        return bool(self.caught)
