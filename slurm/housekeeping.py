"""cancel, gc, clean: taking things back and away."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from iqrl.errors import InputError
from iqrl.runs import reader
from slurm import queue, states, tables
from slurm.reports import Report
from slurm.states import State

KEPT_CHECKPOINTS = 1  # of a finished run: what `evaluate` and transfer need


def cancel(runs: Path, sweep: str, names: Sequence[str], pending: bool) -> int:
    """Take a sweep's jobs out of the queue, and stop its local queue; with names, whatever job holds those runs.

    Sweeps share runs, so jobs that another sweep submitted stay unless a run of theirs is named. Cancels are
    recorded: Slurm forgets an array element that was cancelled before it began.

    Raises:
        InputError: for a name that is no run of the sweep, and with scancel's words once all jobs were tried.
    """
    report = Report(runs, [sweep])
    own = {name for s in report.handed_out if s.sweep == sweep for job in s.jobs for name in job.runs}
    strange = [name for name in names if name not in report.by_run and name not in own]
    if strange:
        raise InputError(f"cancel {sweep}: {strange[0]}: no run of this sweep")
    wanted = set(names) or set(report.by_run)
    stopped, refused, others = 0, "", dict[str, int]()
    for submission in report.handed_out:
        if submission.queue_alive() and not pending and submission.sweep == sweep:
            if names:
                raise InputError(f"cancel {sweep}: the queue of this machine stops as a whole; name no runs")
            os.kill(submission.content["queue"]["pid"], signal.SIGTERM)
            print("the local queue saves and stops")
            stopped += 1
        whole = submission.sweep == sweep and not names  # an earlier version of its file had other runs
        jobs = [] if submission.elsewhere(report.queue.cluster) else submission.jobs
        ids = [
            job.id
            for job in jobs
            if job.id in report.queue.states
            and (whole or not wanted.isdisjoint(job.runs))
            and (not pending or report.queue.states[job.id] in queue.WAITING)
        ]
        if submission.sweep != sweep and not names:
            if ids:
                others[submission.sweep] = others.get(submission.sweep, 0) + len(ids)
            continue
        submission.record_cancelled(ids)  # first: scancel fails as soon as one job has ended meanwhile
        for i in range(0, len(ids), 500):
            status, text = queue.command("scancel", *ids[i : i + 500])
            if status:
                refused = text.splitlines()[0] if text else f"exit status {status}"
        stopped += len(ids)
        if ids and not refused:
            print(f"{len(ids)} jobs cancelled")
    for name, count in others.items():
        print(f"{count} jobs of {name} hold runs of {sweep}, and stay: python -m slurm cancel {name}{report.where}")
    if refused:
        raise InputError(f"cancel {sweep}: of {stopped} jobs some stay, or had ended: scancel: {refused}")
    if report.queue.error:
        raise InputError(f"cancel {sweep}: Slurm cannot be asked what is queued: {report.queue.error}")
    unknown = [name for name in wanted if name in report.by_run and report.by_run[name].state == "unknown"]
    if unknown:
        raise InputError(f"cancel {sweep}: {unknown[0]} was handed to another cluster; expected its login node")
    if not stopped:
        print(f"{sweep}: nothing to cancel")
    return 0


def collect(runs: Path, sweeps: Sequence[str], yes: bool) -> int:
    """Remove what finished runs no longer need: their replay, and all checkpoints but the newest."""
    report = Report(runs, sweeps)
    done = [state for state in report.states if state.state == "done"]
    doomed = [path for state in done for path in _spare(runs, state)]
    size = sum(_bytes(path) for path in doomed)
    if not doomed:
        print("nothing to remove")
        return 0
    question = f"remove replay and old checkpoints of {len(done)} finished runs: {tables.size(size)} in {runs}?"
    if not agreed(question, yes):
        return 1
    for path in doomed:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    print(f"removed {tables.size(size)}")
    return 0


def clean(runs: Path, yes: bool) -> int:
    """Remove all run directories and sweeps of a folder, and nothing else that lies there."""
    report = Report(runs)
    busy = [state.run for state in report.states if state.state in ("running", "queued")]
    # Jobs of an earlier version of a sweep's file hold runs that no manifest lists.
    busy += [s.sweep for s in report.handed_out if s.queue_alive() or any(j.id in report.queue.states for j in s.jobs)]
    if busy:
        raise InputError(f"clean runs={runs}: {busy[0]} is being trained or queued; python -m slurm cancel first")
    if report.queue.error:
        raise InputError(f"clean runs={runs}: Slurm cannot be asked whether jobs are queued: {report.queue.error}")
    far = {  # again with those that no manifest lists
        run: submission
        for submission in report.handed_out
        if submission.elsewhere(report.queue.cluster)
        for job in submission.jobs
        for run in job.runs
    }
    for state in states.look(runs, far, report.handed_out, report.queue):
        if state.state == "unknown":
            submission = far[state.run]
            raise InputError(
                f"clean runs={runs}: {state.run} was handed to another cluster, {submission.content['cluster']}, which "
                f"may still train it; if it is gone, remove {submission.folder} first"
            )
    states.require_silence(f"clean runs={runs}", report.states)
    doomed = [runs / state.run for state in report.states if (runs / state.run).is_dir()]
    doomed += [path for path in (runs / "sweeps", runs / ".analysis") if path.is_dir()]
    if not doomed:
        print(f"nothing to remove in {runs}")
        return 0
    count = len([state for state in report.states if (runs / state.run).is_dir()])
    size = sum(_bytes(path) for path in doomed)
    if not agreed(f"remove all {count} runs in {runs} ({tables.size(size)}), results included?", yes):
        return 1
    for path in doomed:
        shutil.rmtree(path, ignore_errors=True)
    print(f"removed {count} runs")
    return 0


def _spare(runs: Path, state: State) -> list[Path]:
    folder = runs / state.run
    old = [file for _, file in reader.checkpoints(folder)[KEPT_CHECKPOINTS:]]
    torn = list((folder / "checkpoint").glob(".writing-*"))
    replay = [folder / "replay"] if (folder / "replay").is_dir() else []
    return [*old, *torn, *replay]


def _bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(
        os.path.getsize(f"{base}/{name}")
        for base, _, names in os.walk(path)
        for name in names
        if os.path.exists(f"{base}/{name}")
    )


def agreed(question: str, yes: bool) -> bool:
    """Ask, unless told not to; without a terminal, the answer is no."""
    if yes:
        return True
    if not sys.stdin.isatty():
        print(f"{question} not without --yes")
        return False
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        print()
        return False
