"""What a Slurm job does: train its packs, and get out of the way in time.

submitit calls `work` in the snapshot of the code that was made at submission. Its own signal handlers are replaced:
they checkpoint and requeue inside the handler, count time limits, and swallow SIGTERM. Here signals set a flag, the
trainers save at their next safe point, and then the job puts itself back into the queue, as often as it takes. What is
left to do is read from the run directories, so a job that starts over needs no memory.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from iqrl import processes
from slurm import queue
from slurm.crew import Crew
from slurm.packs import Pack

WAIT_SECONDS = 600  # to be taken off the node after requeueing


class JobFailed(RuntimeError):
    """Some of the job's packs could not be brought to an end."""


def work(task: dict[str, Any]) -> str:
    """Train the packs of a job.

    Args:
        task: {"packs": keyword arguments of `Pack`s, "slots": processes at once, "runs", "folder": paths};
            plain data, so that reading a job's pickle needs no more than this module.
    Raises:
        JobFailed: if packs were given up; Slurm then shows the job as failed.
    """
    # The time limit is near, or preemption with a word before; preemption, scancel, requeue, the time limit itself.
    signals = processes.StopFlag("SIGUSR2", "SIGTERM")
    signal.signal(signal.SIGCONT, signal.SIG_IGN)
    folder = Path(task["folder"])
    packs = [Pack(content={}, **pack) for pack in task["packs"]]
    crew = Crew(packs, _slots(task["slots"]), Path(task["runs"]), folder / "packs", folder / "logs", announce=_say)
    with _caches():
        crew.run(signals)
    if any(member.state == "stopped" for member in crew.members):
        if _goes_on(signal.SIGUSR2 in signals.caught):
            _requeue()
        raise JobFailed("asked to stop; the runs are saved")
    given_up = [f"{member.pack.name}: {member.reason}" for member in crew.members if member.state == "given_up"]
    if given_up:
        raise JobFailed("; ".join(given_up))
    return "ended"


def _slots(wanted: int) -> list[dict[str, str]]:
    """An environment for each training process: the job's GPUs in turn, and its threads."""
    gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    slots = [{k: threads for k in ("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")} for _ in range(wanted)]
    for i, slot in enumerate(slots):
        if gpus:
            slot["CUDA_VISIBLE_DEVICES"] = gpus[i % len(gpus)]
    return slots


@contextlib.contextmanager
def _caches() -> Iterator[None]:
    """Compiled kernels go to a folder of this job: processes that share one can spoil it for each other.

    It goes with them, before the job may requeue itself: the next session can be on another node.
    """
    scratch = os.path.expandvars(os.environ.get("SWEEP_SCRATCH", ""))
    if not scratch or "$" in scratch:
        yield
        return
    folder = Path(scratch) / f"sweep-{processes.job_id()}"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ |= {"TMPDIR": str(folder), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _goes_on(warned: bool) -> bool:
    """Whether this job should go on later: it was warned of its limit, or is being preempted; not when cancelled.

    A job that is cancelled while it saves is COMPLETING without a reason, and requeueing would bring it back. One
    that reaches its limit meanwhile is COMPLETING because of that.
    """
    _, text = queue.command("scontrol", "--oneliner", "show", "job", processes.job_id())
    said = dict(re.findall(r"\b(JobState|Reason|PreemptTime)=(\S+)", text))
    state, preempted = said.get("JobState"), said.get("PreemptTime", "None") != "None"
    if warned:  # also if Slurm does not say
        ending = state == "COMPLETING" and said.get("Reason") == "None" and not preempted
        return state != "CANCELLED" and not ending
    return state == "PREEMPTED" or (state == "RUNNING" and preempted)


def _requeue() -> None:
    """Back into the queue. Slurm then ends this process; until it does, or while it cannot be asked, wait."""
    for attempt in range(WAIT_SECONDS // 10):
        status, text = queue.command("scontrol", "requeue", processes.job_id())
        if not status:
            _say("requeued")
            time.sleep(WAIT_SECONDS)
        _say(f"scontrol requeue: {text.strip()} (attempt {attempt + 1})")
        time.sleep(10)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # a disk that is full is no reason to give up
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}", file=sys.stdout, flush=True)
