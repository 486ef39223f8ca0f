"""The local queue: a sweep's packs as processes of this machine, a bounded number at once."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from ablations import Sweep
from ablations.hours import estimate
from iqrl import processes
from iqrl.config import Execution
from iqrl.errors import FAILED, INTERRUPTED, InputError
from iqrl.processes import StopFlag
from iqrl.runs import lease, manifest, reader
from iqrl.training import execution
from slurm import tables
from slurm.crew import Crew
from slurm.packs import Pack, with_agents
from slurm.remaining import AUTOMATIC_PACK, make_packs, remaining
from slurm.submissions import Job, Submission

PROCESS_BYTES = 1.2 * 2**30  # that a small run takes with its libraries, about
_ONE_THREAD = {k: "1" for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")}


def run(
    sweep: Sweep,
    runs: Path,
    jobs: str,
    words: Mapping[str, str],
    asked: Execution,
    *,
    source: str,
    only: set[str] | None = None,
    reclaim_unknown: bool = False,
    dry_run: bool = False,
    out: TextIO = sys.stdout,
) -> int:
    """Run what a sweep lacks, here.

    Args:
        jobs: processes at once: "auto", or a number.
        words: how to execute every run, from the user.
        source: the sweep's name or file, as `ablations.load` takes it.
        only: names of the runs to look at; all if None.
        reclaim_unknown: runs of a Slurm that cannot be asked here, too, as if it had lost them.
        dry_run: say what would be run, and stop.
    Returns:
        0 all runs are complete (or it was a dry run), 1 some are not, 75 interrupted: the same command goes on.
    """
    slots, defaults, size = slots_and_words(jobs, asked)
    device = "cuda" if any("CUDA_VISIBLE_DEVICES" in slot for slot in slots) else "cpu"
    todo = remaining(sweep, runs, only, reclaim_unknown)
    even = len(slots) if device == "cpu" and asked.pack == "auto" else 0
    packs = make_packs(todo.missing, size, defaults, runs, words, even)
    note = f" ({sweep.note})" if sweep.note else ""
    summary = f"{sweep.name}{note}: {len(todo.states)} runs, {todo.count('done')} already done"
    if elsewhere := len(todo.states) - len(todo.missing) - todo.count("done"):
        summary += f", {elsewhere} running or queued elsewhere"
        if not reclaim_unknown and (unknown := todo.count("unknown")):
            reason = todo.queue.error or "they are another cluster's"
            summary += f" (perhaps: {unknown} are unknown, since Slurm cannot be asked: {reason})"
    print(f"{summary}; {len(packs)} packs, {len(slots)} at once", file=out, flush=True)
    for remark in sweep.remarks():
        print(f"note: {remark}", file=out)
    if packs:
        print(f"time: {estimate(todo.missing, runs, device).words()}", file=out, flush=True)
    if dry_run:
        return 0
    manifest.write(runs, sweep.manifest())
    if not packs:
        return 1 if elsewhere else 0
    submission = Submission.create(runs, sweep.name, "local")
    submission.content |= {"source": source, "words": [f"{k}={v}" for k, v in words.items()], "processes": jobs}
    status = _work(submission, packs, slots, runs, out)
    trained_here = {name for each in packs for name in each.runs}
    others = [name for name, state in todo.states.items() if state != "done" and name not in trained_here]
    lacking = [name for name in others if reader.look(runs / name, time.time()).state != "done"]
    if lacking:
        print(f"{len(lacking)} more of its runs are another queue's, and not complete yet", file=out, flush=True)
    return status or (FAILED if lacking else 0)


def slots_and_words(jobs: str, asked: Execution) -> tuple[list[dict[str, str]], dict[str, str], int]:
    """Environment of each process that may run at once, words for all of them, and seeds a pack at most.

    On CPUs, one process a core with one thread each beats one process with more threads, and a pack saves what its
    seeds would each compile or load. On GPUs, it costs little more than one seed, and the cores are divided.
    """
    gpus = [] if asked.device == "cpu" else processes.gpus()
    count = len(gpus) or _by_memory(processes.cores())
    if jobs != "auto":
        if not jobs.isdigit() or not 1 <= int(jobs) <= 1024:
            raise InputError(f"jobs={jobs}: expected auto, or how many processes to run at once, 1 to 1024")
        count = int(jobs)
    size = AUTOMATIC_PACK if asked.pack == "auto" else int(asked.pack)
    if gpus:
        threads = str(max(1, processes.cores() // count))
        slots = [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i in range(count)]
        return slots, {"train.threads": threads}, size
    threads = str(asked.threads or 1)
    environment = {k: threads for k in _ONE_THREAD}
    return [dict(environment) for _ in range(count)], {"train.threads": threads, "train.workers": "0"}, size


def _by_memory(count: int) -> int:
    import torch

    return max(1, min(count, int(execution.free_memory(torch.device("cpu")) / PROCESS_BYTES)))


def _work(submission: Submission, packs: list[Pack], slots: list[dict[str, str]], runs: Path, out: TextIO) -> int:
    packs = with_agents(packs, submission.folder)
    for each in packs:
        each.write(submission.folder / "packs")
    submission.jobs = [Job("", [{"name": each.name, "runs": list(each.runs)}]) for each in packs]
    submission.content["queue"] = lease.myself()
    submission.save()
    view = tables.Live(packs, out)
    crew = Crew(
        packs,
        slots,
        runs.resolve(),
        submission.folder.resolve() / "packs",
        submission.folder.resolve() / "logs",
        announce=view.announce,
    )
    stop = _stop_flag()
    crew.run(stop, lambda: view.show(crew))
    view.finish(crew)
    submission.content["given_up"] = [member.pack.name for member in crew.members if member.state == "given_up"]
    submission.content["ended"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    submission.save()
    return _summary(crew, submission, stop(), out)


def _summary(crew: Crew, submission: Submission, interrupted: bool, out: TextIO) -> int:
    bad = []
    complete = 0
    for member in crew.members:
        for name, files in zip(member.pack.runs, crew.files(member.pack), strict=True):
            if files.state == "done":
                complete += 1
            elif files.state == "failed":
                bad.append((name, files.reason, member))
            elif member.state == "given_up":
                bad.append((name, member.reason, member))
    total = sum(len(member.pack.runs) for member in crew.members)
    print(f"{complete} of {total} runs complete" + (f", {len(bad)} failed" if bad else ""), file=out)
    for name, reason, member in bad:
        print(f"  {name}: {reason}\n    log: {submission.log(member.pack.name)}", file=out)
    if interrupted and complete + len(bad) < total:
        print("interrupted; the same command goes on from here", file=out, flush=True)
        return INTERRUPTED
    return 0 if complete == total else FAILED


def _stop_flag() -> StopFlag:
    """Of the queue. A second Ctrl-C leaves through the crew's clean-up, which kills the processes."""
    return StopFlag("SIGINT", "SIGTERM", "SIGHUP", kept_ignored=("SIGHUP",), at_once=_interrupt)


def _interrupt() -> None:
    raise KeyboardInterrupt
