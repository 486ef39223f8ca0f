"""What became of every run: its own files first, then who was given it, then Slurm's queue."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from iqrl.errors import InputError
from iqrl.runs import reader
from iqrl.runs.files import last_line
from iqrl.runs.lease import HERE
from iqrl.runs.reader import RunState
from slurm import queue
from slurm.submissions import Job, Submission

# In the order of tables.
STATES = ("done", "running", "queued", "failed", "lost", "cancelled", "stopped", "planned", "unknown")
MEANING = {
    "done": "complete",
    "running": "being trained",
    "queued": "waiting for its turn",
    "failed": "ended with an error of its own",
    "lost": "was given to a job or process that is gone",
    "cancelled": "its job was cancelled",
    "stopped": "interrupted; its checkpoint is in order",
    "planned": "not begun, and nobody has it",
    "unknown": "the Slurm that has its job cannot be asked here",
}
FRESH_SECONDS = 120.0  # a run of another host that nobody has on a list is running if it spoke since


@dataclass(frozen=True)
class State:
    """A run's state and where to look: see STATES.

    Attributes:
        job: id in Slurm's queue, or "".
        log: of the process that trained it last, or None.
        seconds_left: until its steps are done, while it runs and its speed is known.
    """

    run: str
    state: str
    files: RunState
    job: str = ""
    log: Path | None = None
    reason: str = ""

    @property
    def seconds_left(self) -> float | None:
        ahead = self.files.env_steps - self.files.env_step
        unknown = not self.files.speed or self.files.doing or ahead <= 0  # the last updates take no steps
        if self.state != "running" or unknown:
            return None
        return ahead / self.files.speed


def ask(handed_out: Sequence[Submission], wanted: Collection[str] | None = None) -> queue.Queue:
    """What Slurm says of these submissions' jobs (of the ids `wanted`, or all), as far as they are of its cluster.

    Login nodes of several clusters may see one folder, and each cluster counts its jobs from 1.
    """
    named = [s for s in handed_out if s.content.get("cluster")]
    cluster = queue.setting("ClusterName") if named else ""

    def asked_for(submissions: Iterable[Submission]) -> list[str]:
        return [job.id for s in submissions for job in s.jobs if wanted is None or job.id in wanted]

    if not cluster and asked_for(named) and queue.available():
        return queue.Queue(error="scontrol does not say which cluster this is")
    ids = asked_for(s for s in handed_out if not s.elsewhere(cluster))
    return dataclasses.replace(queue.look(ids, {s.user for s in handed_out}), cluster=cluster)


def look(runs: Path, names: Iterable[str], handed_out: Iterable[Submission], in_queue: queue.Queue) -> list[State]:
    """States of the runs called `names`, in that order.

    Args:
        handed_out: submissions, oldest first: a later one speaks for its runs.
    """
    holders: dict[str, tuple[Submission, Job, str]] = {}
    for submission in handed_out:
        for job in submission.jobs:
            for pack in job.packs:
                for name in pack["runs"]:
                    holders[name] = (submission, job, pack["name"])
    now = time.time()
    living = {id(s): s.queue_alive() for s, _, _ in holders.values()}
    cancelled = {id(s): s.cancelled() for s, _, _ in holders.values()}
    states = []
    for name in names:
        files = reader.look(runs / name, now)
        holder = holders.get(name)
        if holder is None:
            states.append(State(name, _alone(files), files, reason=files.reason))
            continue
        submission, job, pack_name = holder
        if files.state == "failed":  # perhaps of an attempt before this one, which has not opened the run yet
            files = reader.look(runs / name, now, submission.handed_out(pack_name))
        if submission.kind == "local":
            state = _local(files, living[id(submission)], submission)
            if state == "planned" and pack_name in submission.given_up:
                state = "lost"  # given up before it had a directory
        else:
            there = queue.Queue(error="of another cluster") if submission.elsewhere(in_queue.cluster) else in_queue
            state = _slurm(files, job.id, there, job.id in cancelled[id(submission)])
        ended = in_queue.ended.get(job.id, "") if state == "lost" else ""
        log = submission.log(pack_name)
        states.append(State(name, state, files, job.id, log, files.reason or ended))
    return states


def with_reasons(states: Iterable[State]) -> list[State]:
    """The same, with the last line of its log as the reason of each lost run that has no better one.

    A job that died before a trainer started (a wrong set-up line, no Python on the node) left word in its own logs.
    """
    found = []
    for state in states:
        if state.state == "lost" and state.log is not None and not state.files.reason:
            logs = [state.log, *job_logs(state.log.parent.parent, state.job)]
            log, said = next(((log, said) for log in logs if (said := last_line(log))), (None, ""))
            reason = ": ".join(text for text in (state.reason, said) if text)
            state = dataclasses.replace(state, reason=reason, log=log)
        found.append(state)
    return found


def job_logs(submission: Path, job: str) -> list[Path]:
    """What Slurm and the job itself said: errors first."""
    return sorted((submission / "submitit").glob(f"{job}_*_log.*")) if job else []


def _alone(files: RunState) -> str:
    """Of a run that no sweep has handed out: started by hand."""
    if files.state == "begun":
        return "running" if heard_of(files) else "lost"
    return {"training": "running", "new": "planned", "torn": "lost"}.get(files.state, files.state)


def _local(files: RunState, queue_alive: bool, submission: Submission) -> str:
    if files.state in ("done", "failed"):
        return files.state
    if files.state == "training":
        return "running"
    if queue_alive:
        return "queued"
    if submission.content.get("queue", {}).get("host") != HERE:
        return _alone(files)
    return {"new": "planned", "stopped": "stopped"}.get(files.state, "lost")


def _slurm(files: RunState, job: str, in_queue: queue.Queue, cancelled: bool) -> str:
    if files.state == "done":
        return "done"
    state = in_queue.states.get(job)
    if state in queue.WAITING:
        return "queued"
    if files.state == "failed":  # while others of its pack go on
        return "failed"
    # A process of this host whose job Slurm no longer knows was left behind on a lost node: a new one may take over.
    orphan = not in_queue.error and (files.writer or {}).get("job_id") == job
    if state is not None or (files.state == "training" and not orphan):
        return "running"
    if in_queue.error:
        return "unknown"
    return "cancelled" if cancelled else "lost"


def require_silence(command: str, states: Iterable[State]) -> None:
    """Raises InputError, as of `command`, if a process of another host has just written to one of these runs."""
    for state in states:
        if heard_of(state.files):
            raise InputError(f"{command}: {state.run} was trained on another machine in the last {FRESH_SECONDS:.0f} s")


def heard_of(files: RunState) -> bool:
    """Whether a process of another host, which did not say that it left, has just written to a run."""
    recent = files.state == "begun" and files.age is not None and files.age < FRESH_SECONDS
    return recent and (files.writer or {}).get("host") != HERE
