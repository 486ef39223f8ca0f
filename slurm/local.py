"""The local queue: a sweep's packs as processes of this machine, a bounded number at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from ablations import Sweep
from iqrl import processes
from iqrl.config import Execution
from iqrl.errors import FAILED, INTERRUPTED, InputError
from iqrl.processes import StopFlag
from iqrl.runs import lease
from iqrl.training import execution
from slurm import states, tables
from slurm.crew import Crew
from slurm.packs import Pack
from slurm.plan import AUTOMATIC_PACK, pack
from slurm.submissions import Job, Submission, submissions, write_manifest

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
    take: bool = False,
    dry_run: bool = False,
    out: TextIO = sys.stdout,
) -> int:
    """Run what a sweep lacks, here.

    Args:
        jobs: processes at once: "auto", or a number.
        words: how to execute every run, from the user.
        source: the sweep's name or file, as `ablations.load` takes it.
        only: names of the runs to look at; all if None.
        take: runs of a Slurm that cannot be asked here, too, as if it had lost them.
        dry_run: say what would be run, and stop.
    Returns:
        0 all runs are complete (or the plan was shown), 1 some are not, 75 interrupted: the same command goes on.
    """
    slots, defaults, size = places(jobs, asked)
    wanted = [run for run in sweep.unique_runs() if only is None or run.name in only]
    handed_out = submissions(runs)
    in_queue = states.ask(handed_out)
    found = states.look(runs, [run.name for run in wanted], handed_out, in_queue)
    by_name = {state.run: state.state for state in found}
    left = states.others(take)
    elsewhere = [run for run in wanted if by_name[run.name] in left]
    unknown = [run for run in elsewhere if by_name[run.name] == "unknown"]
    todo = [run for run in wanted if by_name[run.name] not in ("done", *left)]
    packs = pack(todo, size, defaults, runs, words)
    done = len(wanted) - len(todo) - len(elsewhere)
    note = f" ({sweep.note})" if sweep.note else ""
    plan = f"{sweep.name}{note}: {len(wanted)} runs, {done} already done"
    if elsewhere:
        plan += f", {len(elsewhere)} running or queued elsewhere"
    if unknown:
        reason = in_queue.error or "they are another cluster's"
        plan += f" (perhaps: {len(unknown)} are unknown, since Slurm cannot be asked: {reason})"
    print(f"{plan}; {len(packs)} packs, {len(slots)} at once", file=out, flush=True)
    if dry_run:
        return 0
    write_manifest(sweep, runs)
    if not packs:
        return 1 if elsewhere else 0
    submission = Submission.create(runs, sweep.name, "local")
    submission.content |= {"source": source, "words": [f"{k}={v}" for k, v in words.items()], "places": jobs}
    return _work(submission, packs, slots, runs, out)


def places(jobs: str, asked: Execution) -> tuple[list[dict[str, str]], dict[str, str], int]:
    """Environment of each place where a process may run, words for all of them, and seeds a pack.

    On CPUs, one process a core with one thread each beats one process with more threads, and packing seeds
    gains nothing. On GPUs, a pack of seeds costs little more than one seed, and the cores are divided.
    """
    gpus = [] if asked.device == "cpu" else _gpus()
    count = len(gpus) or _by_memory(processes.cores())
    if jobs != "auto":
        if not jobs.isdigit() or not 1 <= int(jobs) <= 1024:
            raise InputError(f"jobs={jobs}: expected auto, or how many processes to run at once, 1 to 1024")
        count = int(jobs)
    if gpus:
        size = AUTOMATIC_PACK if asked.pack == "auto" else int(asked.pack)
        threads = str(max(1, processes.cores() // count))
        slots = [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i in range(count)]
        return slots, {"train.threads": threads}, size
    size = 1 if asked.pack == "auto" else int(asked.pack)
    threads = str(asked.threads or 1)
    environment = {k: threads for k in _ONE_THREAD}
    return [dict(environment) for _ in range(count)], {"train.threads": threads, "train.workers": "0"}, size


def _gpus() -> list[str]:
    """GPUs of this machine that may be used, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [v.strip() for v in visible.split(",") if v.strip() and v.strip() != "-1"]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    return [str(i) for i in range(sum(line.startswith("GPU ") for line in listed.stdout.splitlines()))]


def _by_memory(count: int) -> int:
    import torch

    return max(1, min(count, int(execution.free_memory(torch.device("cpu")) / PROCESS_BYTES)))


def _work(submission: Submission, packs: list[Pack], slots: list[dict[str, str]], runs: Path, out: TextIO) -> int:
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
        told=view.told,
    )
    stop = _stop_flag()
    crew.run(stop, lambda: view.show(crew))
    view.finish(crew)
    submission.content["left"] = [member.pack.name for member in crew.members if member.state == "left"]
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
            elif member.state == "left":
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
