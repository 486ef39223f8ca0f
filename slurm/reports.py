"""status, why, logs: what became of the runs of a folder, as text."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from iqrl.errors import InputError
from slurm import states, tables
from slurm.states import State
from slurm.submissions import Submission, manifests, submissions

# Reasons to wait that pass by themselves.
PATIENCE = ("", "None", "Resources", "Priority", "Dependency", "BeginTime", "Cleaning", "JobArrayTaskLimit", "Prolog")


class Report:
    """States of the runs of some sweeps, or of every run of the folder.

    Raises:
        InputError: for a sweep that was never started here.
    """

    def __init__(self, runs: Path, sweeps: Sequence[str] = ()) -> None:
        self.known = known = manifests(runs)
        for name in sweeps:
            if name not in known:
                expected = f"expected one of {', '.join(known)}" if known else "none was started yet"
                raise InputError(f"sweep={name}: not in {runs}/sweeps; {expected}")
        self.runs = runs
        self.where = "" if str(runs) == "runs" else f" runs={runs}"  # for commands that are shown
        self.manifests = {name: known[name] for name in sweeps} if sweeps else known
        self.handed_out = submissions(runs)
        names = list(dict.fromkeys(row["run"] for m in self.manifests.values() for row in m["runs"]))
        self.unlisted: list[str] = []
        if not sweeps:
            listed = set(names)
            self.unlisted = [name for name in run_directories(runs) if name not in listed]
        looked_for = set(names)
        jobs = {
            job.id
            for s in self.handed_out
            for job in s.jobs
            if s.sweep in self.manifests or not sweeps or not looked_for.isdisjoint(job.runs)
        }
        self.queue = states.ask(self.handed_out, jobs)
        self.states = states.look(runs, [*names, *self.unlisted], self.handed_out, self.queue)
        self.by_run = {state.run: state for state in self.states}

    def last_submission(self, sweep: str) -> Submission | None:
        return next((s for s in reversed(self.handed_out) if s.sweep == sweep), None)

    def by_sweep(self, names: Iterable[str]) -> dict[str, tuple[Submission | None, set[str]]]:
        """Runs by the sweep whose submission was the last to hold them, and the newest such submission of that sweep.

        A run that no submission holds goes with the first sweep that lists it.
        """
        holder = {run: s for s in self.handed_out if s.sweep in self.known for job in s.jobs for run in job.runs}
        listed = {row["run"]: sweep for sweep, m in reversed(self.manifests.items()) for row in m["runs"]}
        found: dict[str, set[str]] = {}
        for run in sorted(names):
            if sweep := holder[run].sweep if run in holder else listed.get(run):
                found.setdefault(sweep, set()).add(run)
        result = {}
        for sweep, own in found.items():
            last = max((holder[run] for run in own & holder.keys()), key=self.handed_out.index, default=None)
            result[sweep] = (last or self.last_submission(sweep), own)
        return result

    def of_earlier_versions(self, sweep: str) -> list[str]:
        """Ids of a sweep's jobs in the queue that hold none of the runs of which it consists by now."""
        names = {row["run"] for row in self.manifests[sweep]["runs"]}
        own = [s for s in self.handed_out if s.sweep == sweep and not s.elsewhere(self.queue.cluster)]
        jobs = [job for s in own for job in s.jobs]
        return [job.id for job in jobs if job.id in self.queue.states and names.isdisjoint(job.runs)]


def run_directories(runs: Path) -> list[str]:
    """Names of the run directories in a folder."""
    try:
        entries = [e.name for e in os.scandir(runs) if e.is_dir() and not e.name.startswith(".") and e.name != "sweeps"]
    except FileNotFoundError:
        return []
    return sorted(name for name in entries if os.path.exists(f"{runs}/{name}/config.yaml"))


def status(runs: Path, sweeps: Sequence[str], machine: bool) -> str:
    """The whole picture; with `machine`, as JSON."""
    report = Report(runs, sweeps)
    if machine:
        return json.dumps(tables.as_json(report.states), indent=1)
    lines: list[str] = []
    budgets: dict[str, int] = {}
    for name, manifest in report.manifests.items():
        groups: dict[tuple[str, str, str], list[State]] = {}
        for row in manifest["runs"]:
            groups.setdefault((row["agent"], row["task"], row["arm"]), []).append(report.by_run[row["run"]])
            budgets[row["run"]] = row["env_steps"]
        note = f"  ({manifest['note']})" if manifest.get("note") else ""
        lines += tables.overview(f"{name}{note}", groups)
        if old := report.of_earlier_versions(name):
            lines.append(
                f"  {len(old)} jobs of an earlier version of its file are in the queue, too, such as {old[0]}; "
                f"python -m slurm cancel {name}{report.where} takes out all of them"
            )
    if report.unlisted:
        groups = {}
        for run in report.unlisted:
            agent, _, rest = run.partition("-")
            groups.setdefault((agent, rest.rsplit("-", 2)[0], "-"), []).append(report.by_run[run])
        lines += tables.overview("runs of no sweep", groups)
    if not lines:
        return f"no runs in {runs} yet; make sweep starts some"
    running = tables.running(report.states, budgets)
    if running:
        lines += ["running", *running]
    lines += _next(report)
    return "\n".join(lines)


def _next(report: Report) -> list[str]:
    """What needs the user, and the one command that helps."""
    by_hand = set(report.unlisted)
    counts = Counter(state.state for state in report.states if state.run not in by_hand)
    lines = []
    name = next(iter(report.manifests)) if len(report.manifests) == 1 else ""
    if report.queue.error:
        lines.append(f"Slurm cannot be asked: {report.queue.error}")
    lines += _waiting(report)
    others = sorted({str(s.content["cluster"]) for s in report.handed_out if s.elsewhere(report.queue.cluster)})
    if counts["unknown"] and others:
        lines.append(f"{counts['unknown']} unknown: ask on a login node of {' or '.join(others)}")
        lines.append(f"  if it is gone: python -m slurm retry{f' {name}' if name else ''} --unknown{report.where}")
    command = " ".join(filter(None, ["python -m slurm retry", name])) + report.where
    bad = {state: counts[state] for state in ("failed", "lost", "cancelled", "stopped") if counts[state]}
    if bad:
        said = ", ".join(f"{n} {state} ({states.MEANING[state]})" for state, n in bad.items())
        lines.append(said)
        if "failed" in bad or "lost" in bad:
            lines.append(f"  why: {command.replace('retry', 'why')}")
        lines.append(f"  again: {command}")
    alone = [s.run for s in report.states if s.run in by_hand and s.state in ("failed", "lost", "stopped")]
    if alone:
        lines.append(f"of no sweep, and not complete: {len(alone)}")
        lines.append(f"  again: python -m iqrl resume {report.runs / alone[0]}")
    if counts["planned"] and not counts["running"] and not counts["queued"]:
        lines.append(f"{counts['planned']} planned ({states.MEANING['planned']}); the sweep's own command starts them")
    return lines


def _waiting(report: Report) -> list[str]:
    """Why jobs wait, where that may need somebody's help."""
    jobs: dict[str, list[str]] = {}
    for job, reason in sorted(report.queue.reasons.items()):
        if reason not in PATIENCE:
            jobs.setdefault(reason, []).append(job)
    lines = []
    for reason, ids in jobs.items():
        arrays = sorted({job.partition("_")[0] for job in ids})
        help = f"; scontrol release {' '.join(arrays)}" if "held" in reason.lower() else ""
        help = "; ask the cluster's support" if reason == "JobHeldAdmin" else help
        lines.append(f"{len(ids)} jobs wait: {reason}{help}")
    return lines


def why(runs: Path, sweeps: Sequence[str]) -> int:
    """Print the reasons of failed and lost runs, most frequent first, with one log each."""
    report = Report(runs, sweeps)
    groups: dict[tuple[str, str], list[State]] = {}
    for state in states.with_reasons(report.states):
        if state.state in ("failed", "lost"):
            groups.setdefault((state.state, state.reason or "no word"), []).append(state)
    for (kind, reason), group in sorted(groups.items(), key=lambda item: -len(item[1])):
        first = group[0]
        print(f"{len(group):5d} {kind}  {reason}")
        print(f"      such as {first.run}" + (f"  log: {first.log}" if first.log else f"  see {runs / first.run}"))
    if not groups:
        print("no run failed or was lost")
    return 0


def logs(runs: Path, name: str, lines: int) -> int:
    """Print the end of the log of the run whose name begins with `name`."""
    if lines < 1:
        raise InputError(f"--lines {lines}: expected at least 1")
    name = name.rstrip("/").rpartition("/")[2]
    report = Report(runs)
    matches = [state for state in report.states if state.run.startswith(name)]
    if len(matches) != 1:
        found = f"{len(matches)} runs begin so, such as {matches[0].run}" if matches else "no such run"
        raise InputError(f"logs {name}: {found}; expected the name of one run in {runs}")
    state = matches[0]
    print(
        f"{state.run}: {state.state}"
        + (f", job {state.job}" if state.job else "")
        + (f": {state.reason}" if state.reason else "")
    )
    trace = _traceback(runs / state.run)
    files = [path for path in _log_files(state, report) if path.is_file()]
    for path in files:
        print(f"--- {path}")
        print("\n".join(path.read_text(errors="replace").splitlines()[-lines:]))
    if trace:
        print(f"--- {runs / state.run / 'FAILED'}\n{trace}")
    if not files and not trace:
        print("no log: it was started by hand, or has not begun")
    return 0


def _log_files(state: State, report: Report) -> list[Path]:
    """The training process's log and, of a Slurm job, what Slurm and the job itself said."""
    found = [state.log] if state.log else []
    for submission in report.handed_out:
        if state.job and any(job.id == state.job for job in submission.jobs):
            found += states.job_logs(submission.folder, state.job)
    return found


def _traceback(directory: Path) -> str:
    try:
        content: Any = json.loads((directory / "FAILED").read_text())
        return str(content.get("traceback", "")).rstrip()
    except (OSError, ValueError, AttributeError):
        return ""
